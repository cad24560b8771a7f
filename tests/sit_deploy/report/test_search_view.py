"""The page of a search: what it says, that it is whole, and that nothing in it is taken for markup."""

import copy

import pytest

from sit_deploy.errors import InputError
from sit_deploy.report.search_record import SearchRecord
from sit_deploy.report.search_view import render_search, schedule_words, search_headline, search_view


def point(stages, kept, ms, divergence, *, chosen=False, front=True, measured=None, **more):
    score = {"divergence": divergence, "agreement": 0.95, "images": 64, "top1": 88.0}
    fields = {"stages": stages, "kept": kept, "precision": "fp32", "predicted_ms": ms, "score": score}
    if measured:
        fields |= {"measured_ms": measured, "low_ms": measured * 0.98, "high_ms": measured * 1.03}
        fields["engine_score"] = {**score, "agreement": 0.9}
    return {**fields, "front": front, "chosen": chosen, **more}


RECORD = {
    "schema": 1, "date": "2026-11-27T10:00:00+00:00", "model": "lvvit_nano", "engine": "openvino 2026.4", "where": "a CPU", "batch_size": 1,
    "threads": 2, "limit_ms": 1.0, "asked": "1 ms", "method": "transform", "images": "64 of 100 images in photos, labelled",
    "unslimmed_ms": {"fp32": 2.0}, "unslimmed_top1": 90.0, "tried": 130, "finished": True, "seconds": 61.5,
    "points": [
        point([8], [49], 2.0, 0.0, measured=2.0),
        point([2, 3, 3], [49, 24, 12], 0.95, 0.04, chosen=True, measured=0.98),
        point([1, 7], [49, 12], 0.8, 0.2),
        point([1, 7], [49, 13], 0.9, 0.3, front=False),
    ],
    "commands": {"Train it by FRD": "sit-deploy train --model lvvit_nano --stages 2,3,3 --kept 49,24,12"},
    "notes": ["seconds <ran> out"],
}  # fmt: skip


def record(**changes):
    return SearchRecord.from_dict(copy.deepcopy({**RECORD, **changes}))


def test_the_headline_says_what_was_chosen_and_what_it_gives():
    said = search_headline(record())
    assert "--stages 2,3,3 --kept 49,24,12 takes 0.98 of 1 ms at fp32, 2.04× as fast as unslimmed" in said
    assert "90.0 % of images" in said  # the engine's own, not that of the float model


def test_nothing_chosen_is_said():
    points = [p | {"chosen": False} for p in RECORD["points"]]
    assert search_headline(record(points=points)) == "no schedule that was built takes 1 ms"


def test_an_unslimmed_model_that_is_fast_enough_is_said():
    points = [point([8], [49], 0.9, 0.0, chosen=True, measured=0.9)]
    assert (
        search_headline(record(points=points)) == "lvvit_nano as it is keeps the limit: 0.9 of 1 ms at fp32"
    )
    assert schedule_words(record(points=points).points[0]) == "unslimmed"


def test_the_table_holds_the_front_and_what_was_built_the_fastest_first():
    view = search_view(record())
    assert [row[0] for row in view["rows"]] == [
        "--stages 1,7 --kept 49,12",
        "--stages 2,3,3 --kept 49,24,12",
        "unslimmed",
    ]
    assert view["rows"][1][1:] == ("fp32", "0.98 (0.96–1.01)", "2.04×", "0.04", "90.0", "88.00", "chosen")
    assert view["rows"][0][2:4] == ("0.8", "2.50×")


def test_without_labels_there_is_no_column_of_them():
    points = copy.deepcopy(RECORD["points"])
    for one in points:
        for name in ("score", "engine_score"):
            one.get(name, {}).pop("top1", None)
    view = search_view(record(points=points))
    assert "top-1 %" not in view["head"] and {len(row) for row in view["rows"]} == {len(view["head"])}


def test_a_time_that_says_nothing_is_told():
    points = [
        *RECORD["points"],
        point([4, 4], [49, 24], 1.1, 0.01, measured=1.2, doubt="others took the CPUs"),
    ]
    rows = search_view(record(points=points))["rows"]
    assert "not measurable: others took the CPUs" in [row[-1] for row in rows]


def test_the_page_is_one_file_in_which_nothing_is_markup():
    page = render_search(record(model="<script>x</script>"))
    assert "<script" not in page and "&lt;script&gt;x" in page and "seconds &lt;ran&gt; out" in page
    assert "<svg" in page and "--muted" not in page and "http" not in page.split("</style>")[1]
    assert "sit-deploy train --model lvvit_nano --stages 2,3,3 --kept 49,24,12" in page


def test_markdown_says_the_same():
    text = render_search(record(), "md")
    assert "| --stages 2,3,3 --kept 49,24,12 | fp32 |" in text and "seconds \\<ran\\> out" in text
    assert "    sit-deploy train" in text


@pytest.mark.parametrize(
    "change",
    [{"limit_ms": 0}, {"points": [{}]}, {"unslimmed_ms": {"fp32": -1}}, {"tried": -1}, {"notes": "x"}],
)
def test_a_record_that_is_none_is_refused(change):
    with pytest.raises(InputError):
        record(**change)

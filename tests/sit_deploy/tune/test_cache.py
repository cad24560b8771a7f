"""The file of timings: what it holds for, what is read back, and what is wrong with one."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from msgspec.structs import replace

from sit_deploy.errors import InputError
from sit_deploy.tune.cache import Circumstances, Timings
from sit_deploy.tune.measured import Candidate, LogitsError, Measured, Timing

HERE = Circumstances(cpu="A", cpus=2, tool="t", engine="openvino 1", threads=None, batch=1, graph="g")
PLAN = Candidate(frozenset({"fc1", "stem"}), "bf16", ("stem/1", "stem/0"))
ONE = Measured(PLAN, Timing(2.0, 1.9, 2.1, 5.0), LogitsError(1e-3))


@pytest.fixture
def path(tmp_path: Path) -> Path:
    path = tmp_path / "c.timings.json"
    Timings(HERE, "images", path).keep([ONE])
    return path


def test_what_was_kept_is_read_again(path: Path) -> None:
    again = Timings(HERE, "images", path)
    assert (again.timing(PLAN.key), again.error(PLAN.key)) == (ONE.timing, ONE.error)
    assert again.timing("|fp32|") is again.error("|fp32|") is None
    assert again.known() == [ONE] and again.foreign == ()
    again.forget()
    assert again.known() == [] and again.timing(PLAN.key) is None


def test_errors_hold_for_one_calibration(path: Path) -> None:
    other = Timings(HERE, "other images", path)
    assert other.timing(PLAN.key) == ONE.timing and other.error(PLAN.key) is None


@pytest.mark.parametrize(
    "change",
    [
        {"cpu": "B"},
        {"cpus": 4},
        {"tool": "u"},
        {"engine": "openvino 2"},
        {"threads": 1},
        {"batch": 8},
        {"dynamic": (1, 1, 2)},
        {"graph": "h"},
        {"instructions": "avx2"},
        {"limit": "ONEDNN_MAX_CPU_ISA=AVX2"},
    ],
)
def test_times_hold_for_what_they_were_taken_in(path: Path, change: dict[str, Any]) -> None:
    other = Timings(replace(HERE, **change), "images", path)
    assert other.timing(PLAN.key) is None and other.foreign == (
        ("A",) if {"cpu", "instructions", "limit"} & change.keys() else ()
    )
    other.keep([Measured(PLAN, Timing(3.0, 3.0, 3.0, 1.0))])  # and those of others stay in the file
    assert Timings(HERE, "images", path).timing(PLAN.key) == ONE.timing


def test_a_limit_is_told(tmp_path: Path) -> None:
    limited = replace(HERE, limit="ONEDNN_MAX_CPU_ISA=AVX2")
    Timings(limited, "images", tmp_path / "c.json").keep([ONE])
    assert Timings(HERE, "images", tmp_path / "c.json").foreign == ("A, ONEDNN_MAX_CPU_ISA=AVX2",)


def test_noise_and_the_engine_that_all_are_timed_against_are_not_kept(tmp_path: Path) -> None:
    timings = Timings(HERE, "images", None)
    timings.keep(
        [
            Measured(PLAN, Timing(2.0, 1.9, 2.1, 5.0, "others took the CPUs")),
            Measured(Candidate(), Timing(1.0, 1.0, 1.0, 9.0), LogitsError(0.0)),
        ]
    )
    assert timings.timing(PLAN.key) is timings.timing(Candidate().key) is None
    timings.save(tmp_path / "bundle.json")
    assert Timings(HERE, "images", None, [tmp_path / "none.json", tmp_path / "bundle.json"]).known() == []


def test_a_bundle_that_is_replaced_gives_its_own(path: Path) -> None:
    assert Timings(HERE, "images", None, [path]).timing(PLAN.key) == ONE.timing


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (lambda _: "{", "cannot be read"),
        (lambda text: text.replace('"ratio": 2.0', '"ratio": -2.0'), "ratio"),
        (lambda text: text.replace('"ratio": 2.0', '"ratio": NaN'), "NaN"),
        (lambda text: text.replace('"ratio": 2.0', '"ratio": 2e6'), "ratio"),
        (lambda text: text.replace('"ratio": 2.0', '"ratio": 3.0'), "is not between its quartiles"),
        (lambda text: text.replace('"cpus": 2', '"cpus": "two"'), "cpus"),
        (lambda _: "[]", "expected"),
        (lambda text: text.replace('"schema": 1', '"schema": 9'), "schema 9"),
        (lambda text: text.replace("stem|bf16|", "stem"), "measured"),
        (lambda text: text.replace("|bf16|", "||"), "measured"),
    ],
)
def test_a_damaged_file_is_one_line(path: Path, damage: Any, words: str) -> None:
    path.write_text(damage(path.read_text()))
    with pytest.raises(InputError) as caught:
        Timings(HERE, "images", path)
    message = str(caught.value)
    assert (
        words in message and message.startswith(str(path)) and "delete it" in message and "\n" not in message
    )


def test_two_builds_that_share_a_file(tmp_path: Path) -> None:
    """Each wrote what it had read at its start, so that the last one took the other's times away."""
    path = tmp_path / "c.json"
    one, other = Timings(HERE, "images", path), Timings(replace(HERE, batch=8), "images", path)
    one.keep([ONE])
    other.keep([ONE])
    one.keep([])
    for where in (HERE, replace(HERE, batch=8)):
        assert Timings(where, "images", path).known() == [ONE]
    path.write_text("{")
    other.keep([])  # what another has broken meanwhile is written whole
    assert Timings(replace(HERE, batch=8), "images", path).known() == [ONE]


def test_a_file_that_cannot_be_written_is_told_and_ends_nothing(tmp_path: Path) -> None:
    """A cache that others made, on a disk that is full or read-only: a build of minutes ended at its first timing."""
    timings = Timings(HERE, "images", tmp_path / "gone" / "c.json")
    assert timings.lost is None
    timings.keep([ONE])
    assert "gone does not exist" in timings.lost and timings.known() == [ONE]
    (tmp_path / "gone").mkdir()
    timings.keep([])  # it is not tried again and again
    assert not list((tmp_path / "gone").iterdir())


def test_the_file_is_plain_json(path: Path) -> None:
    (section,) = json.loads(path.read_text())["sections"]
    assert section["where"]["cpu"] == "A" and list(section["measured"]) == ["fc1,stem|bf16|stem/1,stem/0"]


OTHER = Measured(Candidate(frozenset({"fc2"})), Timing(1.5, 1.4, 1.6, 6.0), LogitsError(1e-4))


def test_two_builds_of_the_same_circumstances(path: Path) -> None:
    """Only sections of other circumstances were taken in, so that each build took the other's times away."""
    one, other = Timings(HERE, "images", path), Timings(HERE, "images", path)
    new = Measured(PLAN, Timing(3.0, 2.9, 3.1, 4.0), LogitsError(1e-3))
    one.keep([new])
    other.keep([ONE, OTHER])  # the first of them as it was read: it is not newer
    assert Timings(HERE, "images", path).known() == [new, OTHER]
    one.keep([new])
    assert Timings(HERE, "images", path).known() == [new, OTHER]


def test_what_is_dropped_does_not_come_back_from_the_file(path: Path) -> None:
    one, other = Timings(HERE, "images", path), Timings(HERE, "images", path)
    one.drop(PLAN.key)
    one.drop("|bf16|")  # which it does not know
    one.keep([])
    assert Timings(HERE, "images", path).known() == []
    other.keep([ONE, OTHER])  # nor by one that read it before
    assert Timings(HERE, "images", path).known() == [OTHER]
    one.forget()
    one.keep([])
    assert Timings(HERE, "images", path).known() == [OTHER]  # which was measured since
    again = Timings(HERE, "images", path)
    again.forget()
    again.keep([ONE])
    assert Timings(HERE, "images", path).known() == [ONE]


def test_a_bundles_timings_stay_where_another_build_makes_the_file_first(path: Path, tmp_path: Path) -> None:
    """Times of the bundle that is replaced: of these circumstances, and of others."""
    shared, far = tmp_path / "shared.json", replace(HERE, batch=8)
    Timings(far, "images", path).keep([ONE])
    here = Timings(HERE, "images", shared, [path])
    Timings(replace(HERE, batch=2), "images", shared).keep([ONE])
    Timings(far, "images", shared).keep([OTHER])
    here.keep([])
    for where, known in ((HERE, [ONE]), (replace(HERE, batch=2), [ONE]), (far, [ONE, OTHER])):
        assert Timings(where, "images", shared).known() == known


def test_a_time_without_its_error_leaves_the_error_that_is_known(path: Path) -> None:
    timings = Timings(HERE, "images", path)
    timings.keep([Measured(PLAN, ONE.timing)])
    assert timings.known() == [ONE]

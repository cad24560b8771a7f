"""What a report is given: the search that chose a bundle is found wherever the bundle is named, and never mistaken."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from sit_deploy.errors import InputError
from sit_deploy.validation.report_sources import open_sources
from tests.helpers.command_line import CommandLine
from tests.helpers.searches import search_fields, search_folder


@pytest.fixture
def found(nano_fp32: Path, tmp_path: Path) -> Path:
    return search_folder(nano_fp32, tmp_path / "all" / "found")


@pytest.mark.parametrize("given", ["found", "found/bundle"])
def test_a_search_is_found_with_its_bundle(given: str, found: Path) -> None:
    sources = open_sources((found.parent / given,))
    (bundle,) = sources.bundles
    assert bundle.path == found / "bundle" and sources.notes == []
    assert sources.searches[bundle.path].to_dict()["points"] == search_fields()["points"]
    assert sources.name(bundle) == "found"


@pytest.mark.parametrize("inside", ["found", "found/bundle"])
def test_one_is_found_from_within(inside: str, found: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(found.parent / inside)
    sources = open_sources((Path(),))
    assert [sources.name(bundle) for bundle in sources.bundles] == ["found"] and len(sources.searches) == 1


def test_one_stands_among_bundles(found: Path, nano_fp32: Path) -> None:
    shutil.copytree(nano_fp32, found.parent / "plain")
    (found.parent / "notes").mkdir()
    sources = open_sources((found.parent,))
    assert [sources.name(bundle) for bundle in sources.bundles] == ["found", "plain"]
    assert list(sources.searches) == [found / "bundle"]


@pytest.mark.parametrize(
    ("fields", "why"),
    [
        ("{", "cannot be read"),
        ({"hits": []}, "is not of a search by sit-deploy"),
        ([1], "is not of a search by sit-deploy"),
        (search_fields(limit_ms=-1), "limit_ms"),
        (search_fields(schema=9), "schema is 9, and 1 is known here"),
        (search_fields(bundle="0" * 64), "chose another bundle than this one"),
        (search_fields(), "chose another bundle than this one"),
    ],
)
def test_a_search_that_is_not_the_bundles_is_left_out_and_said(
    fields: object, why: str, found: Path, nano_fp32: Path
) -> None:
    (found / "search.json").write_text(fields if isinstance(fields, str) else json.dumps(fields))
    sources = open_sources((found,))
    assert [sources.name(bundle) for bundle in sources.bundles] == ["bundle"] and sources.searches == {}
    (note,) = sources.notes
    assert note.startswith(f"the search beside {found / 'bundle'} is left out: ") and why in note


def test_a_search_without_a_bundle_says_why(found: Path) -> None:
    shutil.rmtree(found / "bundle")
    with pytest.raises(InputError, match="lacks its bundle"):
        open_sources((found,))
    points = [{**point, "chosen": False} for point in search_fields()["points"]]
    (found / "search.json").write_text(json.dumps(search_fields(points=points)))
    with pytest.raises(InputError, match="chose no schedule"):
        open_sources((found,))
    (found / "search.json").unlink()
    (found / "scores.json").write_text("{}")
    with pytest.raises(InputError, match="not finished; run the same `sit-deploy search` again"):
        open_sources((found,))


@pytest.mark.slow
def test_the_command_shows_it(found: Path, cli: CommandLine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sit_deploy.validation.stages.SYNTHETIC", 4)
    out = cli("report", found, "--rounds", 0, "-o", "page.html", "-o", "one.json").out
    assert out.startswith("found: Do not ship it.")  # its weights are random
    assert "Asked for 1 ms: at most 1 ms a batch of 1" in out and "--stages 2,3,3 --kept 49,24,12" in out
    assert "Not known: which schedule is the best after training" in out
    assert "How the schedule was chosen" in (cli.folder / "page.html").read_text()
    row = json.loads((cli.folder / "one.json").read_text())["bundles"][0]
    assert row["name"] == "found" and row["search"]["tried"] == 130
    (found / "search.json").write_text("{")
    left = cli("report", found, "--rounds", 0, "-o", "two.html")
    assert "is left out" in left.err and "bundle: Do not ship it." in left.out

"""The folder of a search: nothing of others is touched, a finished one stays, and one that was stopped goes on."""

import pytest

from sit_deploy.errors import InputError
from sit_deploy.report.search_record import BUNDLE, RECORD, read_search
from sit_deploy.search.folder import MARKDOWN, PAGE, SearchFolder
from tests.sit_deploy.report.test_search_view import record


def finish(path, force=False, words="x"):
    with SearchFolder.open(path, force) as folder:
        bundle = folder.work / "one"
        bundle.mkdir()
        (bundle / "engine").write_text(words)
        folder.finish(record(), bundle)


def test_a_finished_search_is_whole(tmp_path):
    finish(tmp_path / "a" / "found")
    found = tmp_path / "a" / "found"
    assert sorted(p.name for p in found.iterdir()) == sorted((BUNDLE, MARKDOWN, PAGE, RECORD))
    assert (found / BUNDLE / "engine").read_text() == "x"
    assert read_search(found).to_dict() == read_search(found / RECORD).to_dict() == record().to_dict()


def test_a_finished_search_is_replaced_by_force_alone(tmp_path):
    finish(tmp_path / "found")
    with (
        pytest.raises(InputError, match="finished; pass --force"),
        SearchFolder.open(tmp_path / "found", False),
    ):
        pass
    (tmp_path / "found" / "scores.json").write_text("{}")
    finish(tmp_path / "found", force=True, words="y")
    assert (tmp_path / "found" / BUNDLE / "engine").read_text() == "y"
    assert not (tmp_path / "found" / "scores.json").exists()


def test_one_that_was_stopped_keeps_what_it_knows(tmp_path):
    with pytest.raises(KeyboardInterrupt), SearchFolder.open(tmp_path / "found", False) as folder:
        folder.scores.write_text("{}")
        folder.table("fp32").write_text("{}")
        (folder.work / "half").mkdir()
        raise KeyboardInterrupt
    assert sorted(p.name for p in (tmp_path / "found").iterdir()) == ["latency-fp32.json", "scores.json"]
    finish(tmp_path / "found")
    assert (tmp_path / "found" / RECORD).exists() and (tmp_path / "found" / "scores.json").exists()


def test_one_that_did_nothing_leaves_nothing(tmp_path):
    with pytest.raises(InputError, match="no images"), SearchFolder.open(tmp_path / "found", False):
        raise InputError("no images")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("force", [False, True])
def test_what_is_not_ours_is_not_touched(tmp_path, force):
    (tmp_path / "notes.txt").write_text("mine")
    with (
        pytest.raises(InputError, match=r"other files in it \(notes.txt\)"),
        SearchFolder.open(tmp_path, force),
    ):
        pass
    assert [p.name for p in tmp_path.iterdir()] == ["notes.txt"]


def test_a_file_in_its_place_is_said(tmp_path):
    (tmp_path / "found").write_text("x")
    with pytest.raises(InputError, match="not a folder"), SearchFolder.open(tmp_path / "found", True):
        pass


def test_no_search_is_said(tmp_path):
    with pytest.raises(InputError, match="sit-deploy search -o"):
        read_search(tmp_path)


@pytest.mark.parametrize("force", [False, True])
def test_a_bundle_that_no_search_has_made_stays(tmp_path, force):
    """As `sit-deploy build -o bundle` leaves it."""
    (tmp_path / "bundle").mkdir()
    (tmp_path / "bundle" / "engine").write_text("mine")
    with (
        pytest.raises(InputError, match=r"other files in it \(bundle\)"),
        SearchFolder.open(tmp_path, force),
    ):
        pass
    assert (tmp_path / "bundle" / "engine").read_text() == "mine"


def test_tables_that_no_search_has_measured_there_stay(tmp_path):
    (tmp_path / "latency-fp16.json").write_text("of a machine with a GPU")
    finish(tmp_path, force=True)
    assert (tmp_path / "latency-fp16.json").exists()


def test_a_table_that_is_given_outlives_what_it_was_measured_for(tmp_path):
    finish(tmp_path / "found")
    given, other = (tmp_path / "found" / f"latency-{name}.json" for name in ("fp32", "int8"))
    for table in (given, other):
        table.write_text("{}")
    with SearchFolder.open(tmp_path / "found", True, [tmp_path / "found" / ".." / "found" / given.name]):
        assert given.exists() and not other.exists()


def test_an_empty_folder_that_was_there_stays_and_those_made_go(tmp_path):
    (tmp_path / "mine").mkdir()
    for place in (tmp_path / "mine", tmp_path / "a" / "b" / "found"):
        with pytest.raises(InputError, match="no images"), SearchFolder.open(place, False):
            raise InputError("no images")
    assert [p.name for p in tmp_path.iterdir()] == ["mine"]

"""Where a bundle goes: it is there whole or not at all, and nothing of anybody else is touched."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from engines import files
from sit_deploy import bundle as bundles
from sit_deploy import files as stages
from sit_deploy.bundle import check_destination, load_bundle, staging
from sit_deploy.errors import InputError
from sit_deploy.files import scratch, write_whole
from tests.helpers.bundles import make_bundle
from tests.helpers.command_line import snapshot


def write(folder: Path) -> None:
    (folder / "model.onnx").write_text("new")
    (folder / "manifest.json").write_text('{"files": {"model.onnx": {}}}')


def test_moved_into_place_whole(tmp_path: Path) -> None:
    with staging(tmp_path / "new" / "deep" / "bundle", force=False) as folder:
        assert list(folder.iterdir()) == []
        assert (
            folder.parent == tmp_path / "new" / "deep"
        )  # the same file system, so that moving is one rename
        assert folder.name.startswith(".")
        write(folder)
        assert not (tmp_path / "new" / "deep" / "bundle").exists()
    assert [p.name for p in (tmp_path / "new" / "deep").iterdir()] == ["bundle"]
    assert (tmp_path / "new" / "deep" / "bundle" / "model.onnx").read_text() == "new"


def test_an_empty_folder_is_taken(tmp_path: Path) -> None:
    (tmp_path / "b").mkdir()
    with staging(tmp_path / "b", force=False) as folder:
        write(folder)
    assert sorted(p.name for p in tmp_path.rglob("*")) == ["b", "manifest.json", "model.onnx"]


def test_the_folder_has_the_permissions_the_user_wants(tmp_path: Path) -> None:
    before = os.umask(0o027)
    try:
        with staging(tmp_path / "b", force=False) as folder:
            write(folder)
    finally:
        os.umask(before)
    assert (tmp_path / "b").stat().st_mode & 0o777 == 0o750


@pytest.mark.parametrize(
    "error", [InputError("no"), KeyboardInterrupt(), OSError(28, "No space left on device")]
)
def test_nothing_left_behind(error: BaseException, tmp_path: Path) -> None:
    make_bundle(tmp_path / "there")
    before = snapshot(tmp_path)
    for path in (tmp_path / "there", tmp_path / "new" / "deep" / "bundle"):
        with pytest.raises(type(error)), staging(path, force=True) as folder:
            write(folder)
            raise error
    assert snapshot(tmp_path) == before


def test_force_replaces_a_bundle_and_all_of_it(tmp_path: Path) -> None:
    path = make_bundle(tmp_path / "b")
    with pytest.raises(InputError, match=r"already a bundle; pass --force to replace it"):
        check_destination(path, force=False)
    with staging(path, force=True) as folder:
        write(folder)
    assert sorted(p.name for p in path.iterdir()) == ["manifest.json", "model.onnx"]
    assert list(tmp_path.iterdir()) == [path]


def test_force_replaces_a_damaged_bundle(tmp_path: Path) -> None:
    path = make_bundle(tmp_path / "b")
    (path / "engine.onnx").unlink()
    (path / "model.onnx").write_text("changed")
    check_destination(path, force=True)


@pytest.mark.parametrize("force", [False, True])
@pytest.mark.parametrize("content", ["notes.txt", "manifest.json", "both"])
def test_other_files_are_never_replaced(content: str, force: bool, tmp_path: Path) -> None:
    """A folder of something else may have a manifest.json of its own (web applications do)."""
    path = tmp_path / "site"
    path.mkdir()
    if content != "manifest.json":
        (path / "notes.txt").write_text("precious")
    if content != "notes.txt":
        (path / "manifest.json").write_text('{"name": "a web app", "icons": []}')
    before = snapshot(tmp_path)
    with pytest.raises(InputError, match="has other files in it"), staging(path, force):
        pytest.fail("the work was begun")
    assert snapshot(tmp_path) == before


def test_a_users_file_beside_a_bundle_is_never_deleted(tmp_path: Path) -> None:
    path = make_bundle(tmp_path / "b")
    (path / "notes.txt").write_text("precious")
    with pytest.raises(InputError, match=r"files in it that are no bundle's \(notes\.txt\); move them away"):
        check_destination(path, force=True)


@pytest.mark.parametrize("force", [False, True])
def test_what_appeared_while_building_is_not_replaced(force: bool, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="has other files in it"), staging(tmp_path / "b", force) as folder:
        write(folder)
        (tmp_path / "b").mkdir()
        (tmp_path / "b" / "notes.txt").write_text("precious")
    assert {str(p.relative_to(tmp_path)) for p in tmp_path.rglob("*")} == {"b", "b/notes.txt"}


def test_obstacles(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("x")
    (tmp_path / "link").symlink_to(tmp_path / "nowhere")
    (tmp_path / "empty").mkdir()
    for path, problem in {
        "file": "is not a folder",
        "link": "is a symbolic link",
        "file/below": r"file is not a folder\)",
        "file/far/below": r"file is not a folder\)",
    }.items():
        with pytest.raises(InputError, match=problem):
            check_destination(tmp_path / path, force=True)
    monkeypatch.chdir(tmp_path / "empty")
    with pytest.raises(InputError, match=r"is the folder you are in; choose one inside it, as -o bundle"):
        check_destination(Path(), force=True)
    with pytest.raises(InputError, match="mount point"):
        check_destination(Path("/proc"), force=True)
    monkeypatch.setattr(os, "access", lambda *_: False)
    with pytest.raises(InputError, match="is not writable"):
        check_destination(tmp_path / "new", force=True)


def test_a_place_that_turns_out_to_be_unwritable() -> None:
    """Root may write everywhere, says the system, and then it does not let it."""
    with (
        pytest.raises(InputError, match=r"cannot write to /proc .*choose another -o"),
        scratch(Path("/proc/x")),
    ):
        pytest.fail("made a folder in /proc")


def test_a_failed_move_puts_the_old_bundle_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = make_bundle(tmp_path / "b")
    before = snapshot(tmp_path)
    rename = Path.rename

    def refuse(self: Path, target: Path) -> Path:
        if self.name.endswith(".partial"):
            raise OSError(5, "Input/output error")
        return rename(self, target)

    monkeypatch.setattr(Path, "rename", refuse)
    with pytest.raises(OSError, match="Input/output"), staging(path, force=True) as folder:
        write(folder)
    assert snapshot(tmp_path) == before


@pytest.mark.usefixtures("ctrl_c")
@pytest.mark.parametrize("place", ["move_in", "rmtree"])
def test_ctrl_c_at_the_worst_moment(place: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Pressed between the two renames, or a second time while the first press is being cleaned up after."""
    path = make_bundle(tmp_path / "b")
    holder = stages if place == "move_in" else files.shutil
    work = getattr(holder, place)

    def press(*args: Any, **options: Any) -> None:
        signal.raise_signal(signal.SIGINT)
        work(*args, **options)

    monkeypatch.setattr(holder, place, press)
    if place == "move_in":
        try:
            with staging(path, force=True) as folder:
                write(folder)
        except KeyboardInterrupt:  # left to itself, it would end the whole run of tests
            pytest.fail("interrupted in the middle of the move")
        assert (path / "model.onnx").read_text() == "new"
    else:
        with pytest.raises(InputError, match="first"), staging(path, force=True) as folder:
            write(folder)
            raise InputError("first")
        assert (path / "model.onnx").read_text() == "this is model.onnx"
    assert list(tmp_path.iterdir()) == [path]
    with pytest.raises(KeyboardInterrupt):  # the handler is the usual one again
        signal.raise_signal(signal.SIGINT)


KILLED = """
import engines.files, os, signal
from pathlib import Path
from sit_deploy.bundle import staging
def stop(folder, destination):
    os.kill(os.getpid(), signal.SIGKILL)
engines.files.exchange = lambda *_: {exchange}
engines.files.shutil.rmtree = stop
move = Path.rename
def rename(self, target):
    if self.name == "b":
        move(self, target)
        os.kill(os.getpid(), signal.SIGKILL)
    return move(self, target)
Path.rename = rename
with staging(Path("b"), force=True) as folder:
    (folder / "model.onnx").write_text("new")
    (folder / "manifest.json").write_text('{{"files": {{"model.onnx": {{}}}}}}')
"""


def test_a_bundle_moved_away_by_a_killed_run_is_back_at_the_next_look(tmp_path: Path) -> None:
    """Where the system cannot exchange two folders in one step."""
    path = make_bundle(tmp_path / "b")
    before = snapshot(path)
    for look in (load_bundle, lambda path: check_destination(path, force=True)):
        done = subprocess.run([sys.executable, "-c", KILLED.format(exchange=False)], cwd=tmp_path)
        assert done.returncode == -signal.SIGKILL and not path.exists()
        look(path)
        assert snapshot(path) == before and list(tmp_path.iterdir()) == [path]


def test_builds_into_one_place_at_the_same_time(tmp_path: Path) -> None:
    """One wins; the other says so in one line and leaves nothing."""
    slower, quicker = staging(tmp_path / "b", force=False), staging(tmp_path / "b", force=False)
    with pytest.raises(InputError, match="is already a bundle; pass --force"), slower as folder:
        write(folder)
        with quicker as other:
            write(other)
            (other / "model.onnx").write_text("the quicker one's")
    assert (tmp_path / "b/model.onnx").read_text() == "the quicker one's"
    with staging(tmp_path / "b", force=True) as first, staging(tmp_path / "b", force=True) as second:
        write(first)
        write(second)
    assert [p.name for p in tmp_path.iterdir()] == ["b"]


def test_what_came_at_the_last_moment_is_left_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    looked = bundles.check_destination

    def late(path: Path, force: bool) -> None:
        looked(path, force)
        if path.name == "b" and any(tmp_path.iterdir()):
            (path / "thesis").mkdir(parents=True)

    monkeypatch.setattr(bundles, "check_destination", late)
    left = pytest.raises(InputError, match="made by another program meanwhile, and is left as it is")
    with left, staging(tmp_path / "b", force=False) as folder:
        write(folder)
    assert [p.name for p in tmp_path.rglob("*")] == ["b", "thesis"]


@pytest.mark.parametrize("place", ["fifo", "folder"])
def test_a_text_replaces_files_alone(place: str, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo")
    (tmp_path / "folder").mkdir()
    before = snapshot(tmp_path)
    with pytest.raises(InputError, match="is not a file; choose another -o"):
        write_whole(tmp_path / place, "text")
    assert snapshot(tmp_path) == before
    (tmp_path / "link").symlink_to("real")
    write_whole(tmp_path / "link", "text")
    assert (tmp_path / "link").is_symlink() and (tmp_path / "real").read_text() == "text"

"""Files and folders that are written whole, killed at every moment; and what is swept, and what never."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import threading
from pathlib import Path
from types import SimpleNamespace

import pytest

from engines import files
from engines.errors import EngineError
from engines.files import atomic_path, exchange, held, move_in, partial_folder, sweep
from tests.helpers import killed

WITHOUT_EXCHANGE = "import engines.files\nengines.files.exchange = lambda *_: False\n"

FOLDER = """
import shutil
from pathlib import Path
from engines.files import move_in, partial_folder
---
with partial_folder(Path("place")) as folder:
    (folder / "a").write_text("new")
    (folder / "b").write_text("new")
    move_in(folder, Path("place"), replace=True)
"""

FILE = """
from pathlib import Path
from engines.files import atomic_path
---
with atomic_path(Path("place")) as path:
    path.write_text("half of ")
    path.write_text("new")
"""


def make(place: Path) -> Path:
    shutil.rmtree(place, ignore_errors=True)
    place.mkdir()
    for name in ("a", "b"):
        (place / name).write_text("old")
    return place


def content(place: Path) -> dict[str, str]:
    return {path.name: path.read_text() for path in place.iterdir()}


@pytest.mark.parametrize("prelude", ["", WITHOUT_EXCHANGE], ids=["exchange", "two renames"])
def test_a_folder_is_old_or_new_whenever_its_writer_is_killed(prelude: str, tmp_path: Path) -> None:
    place, seen = tmp_path / "place", set()
    for moment in killed.moments(prelude + FOLDER, tmp_path, lambda: make(place)):
        if prelude:
            sweep(tmp_path)  # the next look brings it back
        (found,) = set(content(place).values())
        assert len(content(place)) == 2, moment
        seen.add(found)
        sweep(tmp_path)
        assert list(tmp_path.iterdir()) == [place], moment
    assert seen == {"old", "new"}


def test_a_file_is_old_or_new_whenever_its_writer_is_killed(tmp_path: Path) -> None:
    place, seen = tmp_path / "place", set()
    for moment in killed.moments(FILE, tmp_path, lambda: place.write_text("old")):
        seen.add(place.read_text())
        sweep(tmp_path)
        assert list(tmp_path.iterdir()) == [place], moment
    assert seen == {"old", "new"}


def test_the_next_run_sweeps_whatever_it_writes_itself(tmp_path: Path) -> None:
    assert killed.run(FOLDER, tmp_path, 3)
    assert [p.name for p in tmp_path.iterdir() if p.name.startswith(".place.")]
    with atomic_path(tmp_path / "another") as path:
        path.touch()
    assert [p.name for p in tmp_path.iterdir()] == ["another"]


def test_what_a_living_run_is_at_is_never_swept(tmp_path: Path) -> None:
    program = (
        "import sys\nfrom pathlib import Path\nfrom engines.files import partial_folder\n"
        "with partial_folder(Path('place')) as folder:\n"
        "    (folder / 'a').touch(); print(folder.name, flush=True); sys.stdin.read()\n"
    )
    with subprocess.Popen(
        [sys.executable, "-c", program], cwd=tmp_path, stdin=-1, stdout=-1, text=True
    ) as other:
        name = other.stdout.readline().strip()
        os.utime(tmp_path / name, (0, 0))  # however old it looks
        sweep(tmp_path)
        with partial_folder(tmp_path / "place") as mine:
            sweep(tmp_path)
            assert mine.is_dir() and (tmp_path / name / "a").exists()
        other.kill()
        other.wait()
        sweep(tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_another_machines_folder_is_swept_when_it_is_old(tmp_path: Path) -> None:
    """Not every file system tells one machine of another's locks."""
    folder = tmp_path / ".b.0123456789abcdef.partial"
    folder.mkdir()
    sweep(tmp_path)
    assert folder.is_dir()
    os.utime(folder, (0, 0))
    sweep(tmp_path)
    assert not folder.exists()


@pytest.mark.parametrize(
    "name",
    [
        ".b.partial",
        "b.0123456789abcdef.partial",
        ".b.0123456789abcdef.partial.mine",
        ".git",
        ".b.xyz.partial",
    ],
)
def test_other_names_are_nobodys_remains(name: str, tmp_path: Path) -> None:
    (tmp_path / name).mkdir()
    os.utime(tmp_path / name, (0, 0))
    sweep(tmp_path)
    assert (tmp_path / name).is_dir()


def test_a_file_or_a_link_with_such_a_name_stays(tmp_path: Path) -> None:
    (tmp_path / "precious").mkdir()
    link, file = (tmp_path / f".{name}.0123456789abcdef.partial" for name in ("link", "file"))
    link.symlink_to("precious")
    file.touch()
    sweep(tmp_path)
    assert link.is_symlink() and file.exists() and (tmp_path / "precious").is_dir()


def test_a_file_system_without_locks_is_not_swept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert killed.run(FOLDER, tmp_path, 3)

    def refuse(*_: object) -> None:
        raise OSError(95, "Operation not supported")

    monkeypatch.setattr(files.fcntl, "flock", refuse)
    with atomic_path(tmp_path / "another") as path, held(tmp_path):
        path.touch()
    assert len(list(tmp_path.iterdir())) == 2


def test_move_in_leaves_what_came_in_between(tmp_path: Path) -> None:
    place = make(tmp_path / "place")
    with pytest.raises(FileExistsError), partial_folder(place) as folder:
        move_in(folder, place, replace=False)
    assert content(place) == {"a": "old", "b": "old"} and list(tmp_path.iterdir()) == [place]


def test_exchange_says_where_it_is_not_offered(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    one, two = make(tmp_path / "one"), tmp_path / "two"
    two.mkdir()
    assert exchange(one, two) and not content(one) and content(two)
    with pytest.raises(FileNotFoundError):
        exchange(one, tmp_path / "gone")
    monkeypatch.setattr("ctypes.CDLL", lambda *_, **__: object())
    assert not exchange(one, two) and not content(one)


@pytest.mark.parametrize("error", [RuntimeError("Protobuf serialization failed"), OSError("iostream error")])
def test_a_full_disk_is_said_whatever_the_runtime_says(
    error: Exception, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Runtimes that write files themselves say that they failed, and not why."""

    def write(left: int, text: str) -> None:
        usage = SimpleNamespace(free=left)
        monkeypatch.setattr(files.shutil, "disk_usage", lambda _: usage)
        with atomic_path(tmp_path / "engine.onnx") as temporary:
            if text:
                temporary.write_text(text)
            raise error

    with pytest.raises(EngineError, match=r"^cannot write .*engine\.onnx: No space left on device$"):
        write(4096, "half of it")
    for left, text in ((4096, ""), (1 << 30, "all of it")):  # nothing was written, or there is room
        with pytest.raises((RuntimeError, EngineError), match=str(error)):
            write(left, text)
    assert not list(tmp_path.iterdir())


def test_a_link_stays_and_its_file_is_replaced(tmp_path: Path) -> None:
    (tmp_path / "disk").mkdir()
    (tmp_path / "link").symlink_to("disk/file")
    for text in ("first", "second"):
        with atomic_path(tmp_path / "link") as path:
            path.write_text(text)
        assert (tmp_path / "disk/file").read_text() == text and (tmp_path / "link").is_symlink()


@pytest.mark.parametrize("kind", ["fifo", "folder", "/dev/null"])
def test_what_is_no_file_is_not_replaced(kind: str, tmp_path: Path) -> None:
    place = tmp_path / kind
    if kind == "fifo":
        os.mkfifo(place)
    elif kind == "folder":
        place.mkdir()
    before = place.stat().st_mode
    with (
        pytest.raises(EngineError, match=r"it is (a folder|a device or a pipe), not a file"),
        atomic_path(place),
    ):
        pytest.fail("the work was begun")
    assert place.stat().st_mode == before


def test_a_name_as_long_as_names_may_be(tmp_path: Path) -> None:
    for name in ("n" * 255, "ä" * 127):
        with atomic_path(tmp_path / name) as path:
            path.touch()
        assert (tmp_path / name).is_file()


def test_one_process_at_a_time(tmp_path: Path) -> None:
    inside: list[int] = []

    def work(number: int) -> None:
        with held(tmp_path):
            inside.append(number)
            assert inside == [number]
            inside.remove(number)

    threads = [threading.Thread(target=work, args=(n,)) for n in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not inside

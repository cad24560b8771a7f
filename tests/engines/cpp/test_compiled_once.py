"""Objects that builds of the tests share are of the same text and the same options, and have passed the warnings."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.helpers import compiled_once

ONE, OTHER = "int one() { return 1; }\n", "int one() { return 2; }\n"


class Launched:
    """Compiles in a folder of its own by the launcher; `kept` says how many objects are kept."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.objects = folder, folder / "objects"

    def __call__(self, how: str, place: str, text: str, *options: str) -> bytes:
        """Write a source in a folder of this name and compile it; returns its object."""
        folder = self.folder / place
        folder.mkdir(exist_ok=True)
        (folder / "part.hpp").write_text(text)
        (folder / "part.cpp").write_text('#include "part.hpp"\n')
        command = [
            "c++",
            *options,
            "-MD",
            "-MT",
            "part.o",
            "-MF",
            "part.o.d",
            "-o",
            "part.o",
            "-c",
            "part.cpp",
        ]
        launcher = [sys.executable, compiled_once.__file__, how, str(self.objects)]
        subprocess.run([*launcher, *command], cwd=folder, check=True, capture_output=True)
        assert (
            "part.hpp" in (folder / "part.o.d").read_text()
        )  # what the object depends on, taken or compiled
        return (folder / "part.o").read_bytes()

    @property
    def kept(self) -> int:
        return len(list(self.objects.glob("*.o")))


@pytest.fixture
def launched(tmp_path: Path) -> Launched:
    if not shutil.which("c++"):
        pytest.skip("needs c++: apt-get install g++")
    return Launched(tmp_path)


def test_an_object_is_taken_wherever_its_source_is(launched: Launched) -> None:
    launched("keep", "a", ONE, "-O2", "-Wall", "-Werror")
    (kept,) = launched.objects.glob("*.o")
    kept.write_bytes(b"the one that was kept")
    assert launched("take", "b", ONE, "-O2") == b"the one that was kept"
    assert (
        launched("keep", "a", ONE, "-O2", "-Wall", "-Werror") != b"the one that was kept"
    )  # it always compiles


def test_another_text_or_option_is_another_object(launched: Launched) -> None:
    launched("keep", "a", ONE, "-O2")
    (kept,) = launched.objects.glob("*.o")
    kept.write_bytes(b"the one that was kept")
    others = [(OTHER, ("-O2",)), (ONE, ("-O1",)), (ONE, ("-O2", "-fPIC")), (ONE, ("-O2", "-g"))]
    for text, options in others:
        assert launched("take", "b", text, *options).startswith(b"\x7fELF")
    assert launched.kept == 1  # without warnings on, nothing is kept


def test_what_does_not_compile_is_said_by_the_compiler(launched: Launched) -> None:
    for how in ("keep", "take"):
        with pytest.raises(subprocess.CalledProcessError) as caught:
            launched(how, "a", "no C++")
        assert b"part.hpp" in caught.value.stderr and caught.value.returncode == 1
    assert not launched.kept

"""Packs for a GPU machine: made, cut, carried and unpacked, whatever is wrong with them."""

from __future__ import annotations

import errno
import hashlib
import io
import json
import os
import shutil
import subprocess
import sys
import tarfile
from collections.abc import Callable
from pathlib import Path

import click
import numpy as np
import pytest
from click.testing import CliRunner

from benchmarks.gpu_machine import make_packs
from benchmarks.gpu_machine.packs import require, unpack_complete
from benchmarks.gpu_machine.session import Session, StepFailed

ROOT = Path(__file__).resolve().parents[2]


def pack(session: Session, name: str = "rtx") -> list[Path]:
    """Write a pack with one package in two parts, and their list; return the parts."""
    site = session.home.parent / "tree" / "site"
    site.mkdir(parents=True)
    (site / "packed.py").write_text("VALUE = 7\n")
    archive = session.home.parent / "pack.tar.xz"
    with tarfile.open(archive, "w:xz") as tar:
        tar.add(site.parent, arcname=".")
    data = archive.read_bytes()
    parts = [session.kit.parent / f"{name}.{index}" for index in range(2)]
    for part, piece in zip(parts, (data[:100], data[100:]), strict=True):
        part.write_bytes(piece)
    listed = [{"file": p.name, "sha256": hashlib.sha256(p.read_bytes()).hexdigest()} for p in parts]
    (session.kit / "parts.json").write_text(json.dumps({name: listed}))
    return parts


def test_a_pack_is_unpacked_when_its_last_part_has_come(session: Session) -> None:
    _, second = pack(session)
    late = second.rename(second.with_name("late"))
    unpack_complete(session)
    with pytest.raises(StepFailed, match="the pack rtx is not here"):
        require(session, "rtx")
    assert "rtx: 1 of 2 parts are here" in (session.out / "log.txt").read_text()
    late.rename(second)
    unpack_complete(session)
    assert (require(session, "rtx") / "site" / "packed.py").is_file()
    words = [sys.executable, "-c", "import packed; print(packed.VALUE)"]
    assert session.run(words, 30, session.environment("rtx")) == (0, "7\n")
    unpack_complete(session)  # of a later call, which carries none


def test_a_damaged_part_is_dropped(session: Session) -> None:
    _, second = pack(session)
    second.write_bytes(second.read_bytes()[:-1])
    with pytest.raises(StepFailed, match=r"rtx\.1 came damaged and was dropped; carry it again"):
        unpack_complete(session)
    assert [path.name for path in (session.home / "parts").iterdir()] == ["rtx.0"]


def archive_of(path: Path, kind: str) -> bytes:
    """Write an archive that is no pack, and return its bytes."""
    with tarfile.open(path, "w:xz") as tar:
        member = tarfile.TarInfo("site/data")
        if kind == "leads out":
            member.name = "../escaped"
        elif kind == "links out":
            member.type, member.linkname = tarfile.SYMTYPE, "/etc"
        member.size = 100_000 if member.isreg() else 0
        tar.addfile(member, io.BytesIO(np.random.default_rng(0).bytes(100_000)))
    data = path.read_bytes()
    path.write_bytes({"cut": data[:-2000], "text": b"<html>not found</html>"}.get(kind, data))
    return path.read_bytes()


BROKEN = ("cut", "text", "leads out", "links out")


@pytest.mark.parametrize("kind", BROKEN)
def test_a_pack_that_is_none_costs_the_others_nothing(kind: str, session: Session) -> None:
    pack(session)
    listed = json.loads((session.kit / "parts.json").read_text())
    data = archive_of(session.kit.parent / "bad.0", kind)
    bad = {"file": "bad.0", "sha256": hashlib.sha256(data).hexdigest()}
    (session.kit / "parts.json").write_text(json.dumps({"bad": [bad], **listed}))
    with pytest.raises(StepFailed, match=r"^bad: cannot be unpacked \(.+\) and was dropped; make it again$"):
        unpack_complete(session)
    assert (require(session, "rtx") / "site" / "packed.py").is_file()
    assert sorted(path.name for path in session.home.iterdir()) == ["parts", "rtx"]
    assert sorted(path.name for path in (session.home / "parts").iterdir()) == ["rtx.0", "rtx.1"]
    assert not (session.home.parent / "escaped").exists()


def test_a_disk_that_is_full_drops_no_part(session: Session, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    pack(session)
    monkeypatch.setattr(tarfile.TarFile, "extractall", full)
    with pytest.raises(StepFailed, match=r"rtx: cannot be unpacked .*No space left on device"):
        unpack_complete(session)
    monkeypatch.undo()
    unpack_complete(session)
    assert require(session, "rtx")


def test_steps_run_whatever_becomes_of_the_packs(script: Callable, tmp_path: Path) -> None:
    data = archive_of(tmp_path / "bad.0", "text")
    listed = {"bad": [{"file": "bad.0", "sha256": hashlib.sha256(data).hexdigest()}]}
    (tmp_path / "kit" / "parts.json").write_text(json.dumps(listed))
    done = script("facts")
    assert done.returncode == 1 and "Traceback" not in done.stderr
    results = json.loads((tmp_path / "out" / "result.json").read_text())
    assert list(results) == ["packs", "facts"] and results["facts"]["cpus"]
    assert results["packs"]["failed"].startswith("bad: cannot be unpacked")


def test_packs_are_cut_to_fill_calls_and_come_together_again(session: Session) -> None:
    archives = {}
    for name, size in (("first", 100), ("second", 3000)):
        site = session.home.parent / name / "site"
        site.mkdir(parents=True)
        (site / "data").write_bytes(np.random.default_rng(size).bytes(size))
        archives[name] = session.home.parent / f"{name}.tar.xz"
        with tarfile.open(archives[name], "w:xz") as tar:
            tar.add(site, arcname="site")
    carried, room = session.kit.parent, 1500
    calls, listing = make_packs.cut(archives, carried, room)
    (session.kit / "parts.json").write_text(json.dumps(listing))
    assert len(calls) > 2 and calls[0][0] == "first.0"
    assert all(sum((carried / part).stat().st_size for part in call) <= room for call in calls)
    unpack_complete(session)
    assert (require(session, "second") / "site" / "data").read_bytes() == np.random.default_rng(3000).bytes(
        3000
    )
    assert (require(session, "first") / "site" / "data").stat().st_size == 100


def test_what_is_packed_has_the_release_of_the_constraints_and_replaces_nothing_of_others(
    tmp_path: Path,
) -> None:
    assert make_packs.pinned("msgspec").startswith("msgspec==") and make_packs.pinned("unknown") == "unknown"

    def run(*words: str) -> subprocess.CompletedProcess:
        command = [sys.executable, "-m", "benchmarks.gpu_machine.make_packs", *words]
        return subprocess.run(command, cwd=ROOT, capture_output=True, text=True)

    (tmp_path / "photographs").mkdir()
    done = run(str(tmp_path / "photographs"), "--packages", "")
    assert done.returncode == 2 and "was not made by this" in done.stderr
    assert (
        run(str(tmp_path / "new"), "rtx=nothing.tar.xz").returncode == 2 and not (tmp_path / "new").exists()
    )
    good = tmp_path / "good.tar.xz"
    archive_of(good, "good")
    for kind in BROKEN:
        archive_of(tmp_path / f"{kind}.tar.xz", kind)
    for words, message in (
        *(([f"rtx={tmp_path / kind}.tar.xz"], "is no whole .tar.xz of a pack") for kind in BROKEN),
        ([f"../up={good}"], "a pack cannot be called '../up'"),
        ([f"kit={good}"], "a pack cannot be called 'kit'"),
        ([f"out={good}"], "a pack cannot be called 'out'"),
        ([f"rtx={good}", f"rtx={good}"], "a pack cannot be called 'rtx'"),
    ):
        done = CliRunner().invoke(make_packs.main, [str(tmp_path / "new"), "--packages", "", *words])
        assert done.exit_code == 2 and message in done.output, done.output
    assert not (tmp_path / "new").exists()


def test_packs_that_are_made_anew_come_whole_and_take_nothing_along(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(make_packs, "tree_bytes", lambda: 0)
    good, kit = tmp_path / "good.tar.xz", tmp_path / ".gpu"
    archive_of(good, "good")
    words = [str(kit), "--packages", ""]
    made = CliRunner().invoke(make_packs.main, [*words, f"rtx={good}"], catch_exceptions=False)
    assert made.exit_code == 0 and made.output == f"call 1: {kit / 'kit'} {kit / 'rtx.0'}\n"
    before = sorted(path.name for path in kit.iterdir())
    mine = Path(shutil.copy(good, kit / "mine.tar.xz"))
    done = CliRunner().invoke(make_packs.main, [*words, f"rtx={mine}"])
    assert done.exit_code == 2 and "is made anew; put it elsewhere" in done.output and mine.is_file()
    mine.unlink()

    def fail(*_: object) -> None:
        raise click.ClickException("pip finds no wheel")

    monkeypatch.setattr(make_packs, "pack_packages", fail)
    assert CliRunner().invoke(make_packs.main, [str(kit), f"rtx={good}"]).exit_code == 1
    assert sorted(path.name for path in kit.iterdir()) == before == ["kit", "rtx.0"]
    assert sorted(path.name for path in tmp_path.iterdir()) == [".gpu", "good.tar.xz"]

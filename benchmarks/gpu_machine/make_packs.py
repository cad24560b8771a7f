"""Make packs for a GPU machine that can fetch nothing, where there is a network.

    python -m benchmarks.gpu_machine.make_packs .gpu --packages 'msgspec timm'        # what `facts` said is missing there
    python -m benchmarks.gpu_machine.make_packs .gpu rtx=rtx.tar.xz trt86=trt86.tar.xz --room 60

FOLDER/kit gets `on_device.py` and `parts.json`, and FOLDER the packs, cut where a call can carry only --room MiB; it prints what each
call carries, in order. The product cannot start without its packages, so the pack of those (`pinned`) is in the first call. They
are of the releases in constraints.txt, and for the release of Python that the machine has; `--old-python` makes the pack `python310`
too, of what a Python for TensorRT 8.6 needs to import sit_deploy.
"""

from __future__ import annotations

import hashlib
import json
import lzma
import re
import shutil
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from collections.abc import Sequence
from pathlib import Path

import click

from engines.files import move_in, partial_folder

ROOT = Path(__file__).resolve().parents[2]
MIB = 1 << 20
LEAST = MIB  # of a part: a smaller one would be a call's last crumb
# folders of the session, or here beside the packs
TAKEN = ("kit", "parts", "out", "cache", "inductor", "runs", "jpegs", "folder")
PLATFORMS = ("manylinux_2_28_x86_64", "manylinux_2_17_x86_64", "manylinux2014_x86_64")


def cut(
    archives: dict[str, Path], folder: Path, room: int
) -> tuple[list[list[str]], dict[str, list[dict[str, str]]]]:
    """Cut archives, one after another, into parts that fill each call.

    Args:
        archives: of each pack, in the order that they are carried in.
        folder: where the parts are written.
        room: bytes that a call has for parts.

    Returns:
        The parts of each call, and of each pack their names and hashes, as `packs.unpack_complete` reads them.
    """
    calls: list[list[str]] = [[]]
    listing: dict[str, list[dict[str, str]]] = {}
    free = room
    for pack, path in archives.items():
        listing[pack] = []
        with path.open("rb") as archive:
            while True:
                if free < min(LEAST, room):
                    calls.append([])
                    free = room
                data = archive.read(free)
                if not data:
                    break
                name = f"{pack}.{len(listing[pack])}"
                (folder / name).write_bytes(data)
                listing[pack].append({"file": name, "sha256": hashlib.sha256(data).hexdigest()})
                calls[-1].append(name)
                free -= len(data)
    return [call for call in calls if call], listing


def pack_packages(packages: list[str], python: str, target: Path) -> None:
    """Write a pack of packages' wheels, unpacked into `site`, for another machine's release of Python.

    Args:
        packages: names, at the release that constraints.txt has, else the newest.
        python: "3.12".
        target: the .tar.xz.

    Raises:
        click.ClickException: pip finds no wheel.
    """
    with tempfile.TemporaryDirectory() as scratch:
        wheels, site = Path(scratch, "wheels"), Path(scratch, "site")
        words = ["--no-deps", "--only-binary=:all:", "--implementation", "cp", "--python-version", python]
        words += [word for platform in PLATFORMS for word in ("--platform", platform)]
        wanted = [pinned(name) for name in packages]
        command = [sys.executable, "-m", "pip", "download", "-q", *words, "-d", str(wheels), *wanted]
        done = subprocess.run(command, capture_output=True, text=True)
        if done.returncode:
            reasons = [line for line in done.stderr.splitlines() if line.startswith("ERROR")]
            raise click.ClickException(reasons[-1] if reasons else done.stderr[-300:])
        for wheel in sorted(wheels.glob("*.whl")):
            with zipfile.ZipFile(wheel) as archive:
                archive.extractall(site)
        with tarfile.open(target, "w:xz") as tar:
            tar.add(site, arcname="site")


def pinned(name: str) -> str:
    """Return a requirement of the release that constraints.txt has for the newest Pythons; the name alone where it has none."""
    found = [
        line.split(";")[0].strip()
        for line in (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
        if line.split("==")[0] == name
    ]
    return found[-1] if found else name


def tree_bytes() -> int:
    """Return the bytes of what travels in every call: files that git tracks or would.

    Raises:
        click.ClickException: this is no checkout.
    """
    command = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    if done.returncode:
        raise click.ClickException(f"git cannot list what travels: {done.stderr.strip()}")
    listed = done.stdout.split("\0")
    return sum((ROOT / name).stat().st_size for name in listed if name and (ROOT / name).is_file())


def _given(words: Sequence[str]) -> dict[str, Path]:
    """Return the archives of NAME=FILE, read to their ends: on the machine it would be too late.

    Raises:
        click.UsageError: a name that is taken or no folder's, a file that is not there, or no archive of what a pack may have.
    """
    found: dict[str, Path] = {}
    for word in words:
        name, is_there, file = word.partition("=")
        if not is_there or not Path(file).is_file():
            raise click.UsageError(f"{word}: expected NAME=FILE with a file that is there")
        if not re.fullmatch("[a-z][a-z0-9_]*", name) or name in (*TAKEN, *found):
            raise click.UsageError(
                f"{word}: a pack cannot be called {name!r}; choose another name, of a-z, 0-9 and _"
            )
        try:
            with tarfile.open(file, "r:xz") as archive:
                for member in archive:
                    tarfile.data_filter(member, "/pack")
        except (tarfile.TarError, lzma.LZMAError, EOFError, OSError) as error:
            raise click.UsageError(
                f"{word}: {file} is no whole .tar.xz of a pack ({error}); make it again"
            ) from None
        found[name] = Path(file)
    return found


@click.command(help=__doc__.splitlines()[0])
@click.argument("folder", type=click.Path(path_type=Path))
@click.argument("packs", metavar="NAME=FILE.tar.xz...", nargs=-1)
@click.option("--packages", default="msgspec timm", show_default=True, help="Of the pack `pinned`.")
@click.option("--python", default="3.12", show_default=True, help="Of that machine.")
@click.option("--old-python", help="Also the pack python310, for this release.")
@click.option(
    "--room", type=click.IntRange(2), default=62, show_default=True, help="MiB of a call, the tree included."
)
def main(folder: Path, packs: tuple[str, ...], packages: str, python: str, old_python: str | None, room: int) -> None:  # fmt: skip
    """Make packs, cut them, and print the calls."""
    given = _given(packs)
    if folder.exists() and not (folder / "kit" / "parts.json").is_file():
        raise click.UsageError(f"{folder} is there and was not made by this; name another")
    for file in given.values():
        if file.resolve().is_relative_to(folder.resolve()):
            raise click.UsageError(f"{file} lies in {folder}, which is made anew; put it elsewhere")
    folder.absolute().parent.mkdir(parents=True, exist_ok=True)
    with partial_folder(folder.absolute()) as there, tempfile.TemporaryDirectory() as scratch:
        kit = there / "kit"
        kit.mkdir()
        shutil.copy(ROOT / "benchmarks" / "on_device.py", kit)
        made: dict[str, Path] = {}
        if old_python:
            made["python310"] = Path(scratch, "python310.tar.xz")
            pack_packages(["msgspec"], old_python, made["python310"])
        if packages.split():
            made["pinned"] = Path(scratch, "pinned.tar.xz")
            pack_packages(packages.split(), python, made["pinned"])
        travels = tree_bytes() + sum(path.stat().st_size for path in kit.iterdir())
        left = room * MIB - travels - 64 * 1024
        if left < LEAST:
            raise click.ClickException(f"the tree alone is {travels / MIB:.1f} MiB of --room {room}")
        calls, listing = cut({**made, **given}, there, left)
        (kit / "parts.json").write_text(json.dumps(listing, indent=1) + "\n", encoding="utf-8")
        move_in(there, folder.absolute(), replace=True)
    for number, parts in enumerate(calls, 1):
        print(f"call {number}: {' '.join([str(folder / 'kit'), *(str(folder / part) for part in parts)])}")


if __name__ == "__main__":
    main()

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
import shutil
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from pathlib import Path

import click

ROOT = Path(__file__).resolve().parents[2]
MIB = 1 << 20
LEAST = MIB  # of a part: a smaller one would be a call's last crumb
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
    """Return the bytes of what travels in every call: files that git tracks or would."""
    command = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    listed = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout.split("\0")
    return sum((ROOT / name).stat().st_size for name in listed if name and (ROOT / name).is_file())


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
    given = {}
    for word in packs:
        name, found, file = word.partition("=")
        if not found or not Path(file).is_file():
            raise click.UsageError(f"{word}: expected NAME=FILE with a file that is there")
        given[name] = Path(file)
    kit = folder / "kit"
    if folder.exists() and not (kit / "parts.json").is_file():
        raise click.UsageError(f"{folder} is there and was not made by this; name another")
    shutil.rmtree(folder, ignore_errors=True)
    kit.mkdir(parents=True)
    shutil.copy(ROOT / "benchmarks" / "on_device.py", kit)
    with tempfile.TemporaryDirectory() as scratch:
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
        calls, listing = cut({**made, **given}, folder, left)
    (kit / "parts.json").write_text(json.dumps(listing, indent=1) + "\n", encoding="utf-8")
    for number, parts in enumerate(calls, 1):
        print(f"call {number}: {' '.join([str(kit), *(str(folder / part) for part in parts)])}")


if __name__ == "__main__":
    main()

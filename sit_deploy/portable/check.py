"""The program check.py of a folder: are the bundles here what was validated, and how fast are they on this machine?

Exit status: 0 good; 1 golden outputs that are not the reference's; 2 bad usage, or a bundle that does not run on this machine.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import math
import os
import re
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NoReturn

from engines.errors import Error
from engines.files import atomic_path
from engines.imports import require_threads
from engines.timing import TimingOptions

from ..errors import InputError
from ..hashes import digest
from ..interrupts import heed_signals, heeded
from ..limits import ROUNDS, SECONDS
from ..outputs import can_be_reported
from ..text import printable, shortened
from . import build
from .bundle import BUILT, BUNDLES, Bundle, open_bundle
from .examine import isolated
from .record import measure
from .table import lines


def main(root: Path, args: Sequence[str] | None = None) -> None:
    """Run the program and exit.

    Args:
        root: the folder that it checks.
        args: of the command line.
    """
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")
    heed_signals()
    written: list[str] = []
    try:
        with heeded():
            status = _check(root, _parse(args), written)
    except KeyboardInterrupt:
        _fail(f"interrupted{_written(written) or '; nothing was written'}")
    except SystemExit:  # of --help
        if not _print([]):
            sys.exit(2)
        raise
    except Error as error:
        _fail(f"{error}{_written(written)}", error.exit_status)
    except Exception as error:  # whatever it is, the golden outputs are not what is wrong
        where = getattr(error, "filename", None)
        reason = (getattr(error, "strerror", None) or str(error) or "no reason given") + (
            f" ({where})" if where else ""
        )
        _fail(f"check.py failed: {type(error).__name__}: {reason}{_written(written)}")
    sys.exit(status)


def _written(names: Sequence[str]) -> str:
    """Return the end of a message that says what is there all the same; nothing where nothing is."""
    if not names:
        return ""
    return f"; only {', '.join(names)} {'was' if len(names) == 1 else 'were'} written"


def _check(root: Path, options: argparse.Namespace, written: list[str]) -> int:
    """Do all that the options say, and return the exit status; `written` gets what is there afterwards, as it comes."""
    output = Path(options.output)
    require_threads(options.threads)
    _require_output(output, options.force)
    bundles = _bundles(root, options.bundles)
    unbuilt: dict[str, str] = {}
    if options.build:
        unbuilt = _build(bundles, options, written)
        bundles = [open_bundle(bundle.path) for bundle in bundles]
    timing = TimingOptions(
        rounds=options.rounds,
        seconds=options.seconds,
        warmup_seconds=min(1.0, options.seconds),
        threads=options.threads,
        device=options.device,
    )
    fields, times = measure(bundles, timing, _say, unbuilt)
    told = lines(fields, times)
    # the file first: what took minutes does not go with a reader who has seen enough, nor with a disk that is full
    unwritten = None
    try:
        _write(output, fields)
    except Error as error:
        unwritten = error
    else:
        written.append(str(output))
        told.append(_where_it_is(output, bundles))
    printed = _print(told)
    if unwritten is not None:
        _complain(str(unwritten))
    rows = fields["bundles"]
    if bad := [row["name"] for row in rows if row["golden"] and not row["golden"]["passed"]]:
        _complain(
            f"{', '.join(bad)}: the golden outputs are not the reference's on this machine; do not serve it here"
        )
        return 1
    refused = [row["refused"] for row in rows if row["refused"]]
    refused += filter(None, [fields["timing"]["note"]] if not refused else [])
    for reason in refused:
        _complain(reason)
    return 2 if refused or not printed or unwritten is not None else 0


def _build(bundles: Sequence[Bundle], options: argparse.Namespace, written: list[str]) -> dict[str, str]:
    """Build the engine of each bundle for the GPU that is here.

    Args:
        bundles: of the folder.
        options: of the command line.
        written: gets the place of each engine, as it comes.

    Returns:
        Why an engine could not be built, by the name of its bundle; the others are built all the same.

    Raises:
        Error: none of them can be built here.
    """
    kind, unbuilt = build.choose_kind(options.engine), {}
    build.require_device(options.device)
    for bundle in bundles:
        _say(f"{bundle.name}: building its {kind} engine from model.onnx")
        try:
            isolated(build.build_here, bundle, kind, options.device)
        except Error as error:
            unbuilt[bundle.name] = str(error)
        else:
            written.append(f"{BUILT}/{bundle.name}")
    return unbuilt


def _write(output: Path, fields: dict[str, Any]) -> None:
    """Write the JSON, whole or not at all.

    Raises:
        EngineError: it cannot be written.
    """
    fields["digest"] = digest(fields)
    with atomic_path(output) as temporary:
        text = json.dumps(fields, indent=1, ensure_ascii=False, allow_nan=False)
        temporary.write_text(text + "\n", encoding="utf-8")


def _where_it_is(output: Path, bundles: Sequence[Bundle]) -> str:
    if any(can_be_reported(one.name for one in bundle.outputs) for bundle in bundles):
        return f"{output}: take it to sit-deploy report BUNDLE --measured {output.name}"
    return f"{output} has all of it"


def _print(told: Sequence[str]) -> bool:
    """Print lines and return True; False where standard output does not take them, which is said unless it is its reader that has gone."""
    try:
        print("".join(f"{printable(line)}\n" for line in told), end="", flush=True)
    except OSError as error:
        if not isinstance(error, BrokenPipeError):
            _complain(
                f"standard output could not be written ({error.strerror or error}), and what was written to files is whole; send the "
                "output elsewhere"
            )
        # at its end Python would try once more, and print a traceback
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return False
    return True


def _bundles(root: Path, names: Sequence[str]) -> list[Bundle]:
    """Open the bundles that were named, or all of the folder.

    Raises:
        InputError: there is none, or one is not whole.
    """
    folder = root / BUNDLES
    there = sorted(p for p in folder.iterdir() if p.is_dir()) if folder.is_dir() else []
    if not there:
        raise InputError(
            f"{folder} has no bundle in it; write the folder again with sit-deploy package python"
        )
    if not names:
        return [open_bundle(path) for path in there]
    by_name = {path.name: path for path in there}
    wanted = []
    for name in names:
        last = Path(name).name  # bundles/sit_s-fp16 as well as sit_s-fp16
        if last not in by_name:
            raise InputError(f"there is no bundle {name} in {folder}; there is {', '.join(by_name)}")
        if by_name[last] not in wanted:
            wanted.append(by_name[last])
    return [open_bundle(path) for path in wanted]


def _require_output(path: Path, force: bool) -> None:
    """Refuse, before anything is measured, a file that cannot be written."""
    folder = Path(os.path.realpath(path)).parent
    if not folder.is_dir() or not os.access(folder, os.W_OK | os.X_OK):
        raise InputError(
            f"cannot write {path}: {folder} is no folder, or cannot be written; choose another with -o"
        )
    if path.exists() and (not path.is_file() or not force):
        what = "exists; pass --force to replace it, or" if path.is_file() else "is no file;"
        raise InputError(f"output {path} {what} choose another with -o")


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        _fail(f"{message}; see --help")


def _parse(args: Sequence[str] | None) -> argparse.Namespace:
    parser = _Parser(
        prog="check.py",
        description="Checks the bundles of this folder on this machine: hashes, golden outputs, layers, latencies. Prints a table "
        "and writes one JSON file. Exit status: 0 good; 1 golden outputs differ; 2 bad usage, or a bundle does not run here.",
    )
    add = parser.add_argument
    add("bundles", nargs="*", metavar="BUNDLE", help="names below bundles/; all by default")
    add(
        "-o",
        "--output",
        default="check.json",
        metavar="FILE",
        help="default: check.json, in the current folder",
    )
    add("--force", action="store_true", help="replace FILE")
    add(
        "--build",
        action="store_true",
        help="first build the engines from model.onnx, with TensorRT, for this GPU",
    )
    add(
        "--engine",
        metavar="KIND",
        help="what --build builds with: tensorrt or tensorrt-rtx; what is installed by default",
    )
    add(
        "--rounds",
        type=_whole(0, ROUNDS),
        default=5,
        metavar="N",
        help="turns of each at being timed; 0 times nothing; default: 5",
    )
    add("--seconds", type=_seconds, default=1.0, metavar="S", help="length of a turn; default: 1")
    add(
        "--threads",
        type=_whole(1, 4096),
        metavar="N",
        help="CPU threads; those that each was built for by default, or the runtime's own number",
    )
    add("--device", type=_device, metavar="D", help="cpu, cuda or cuda:N; what the engine is for by default")
    options = parser.parse_args(args)
    if options.engine and not options.build:
        parser.error("--engine says what --build builds with; pass both")
    return options


def _whole(least: int, most: int) -> Any:
    def parse(text: str) -> int:
        if not (text.isascii() and text.isdecimal() and len(text) < 10 and least <= int(text) <= most):
            raise argparse.ArgumentTypeError(f"{text[:40]!r} is no whole number from {least} to {most}")
        return int(text)

    return parse


def _device(text: str) -> str:
    if not re.fullmatch("cpu|cuda(:[0-9]{1,4})?", text):
        raise argparse.ArgumentTypeError(f"{text[:40]!r} is no device; use cpu, cuda or cuda:N")
    return text


def _seconds(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not 0 < value <= SECONDS:
        raise argparse.ArgumentTypeError(f"{text[:40]!r} is no number of seconds above 0 and up to {SECONDS}")
    return value


def _say(text: str) -> None:
    if sys.stderr is not None and sys.stderr.isatty():
        print(printable(text), file=sys.stderr, flush=True)


def _complain(message: str) -> None:
    with contextlib.suppress(OSError):  # nobody to tell, and the status is told all the same
        print(f"Error: {printable(shortened(' '.join(message.split())))}", file=sys.stderr, flush=True)


def _fail(message: str, status: int = 2) -> NoReturn:
    _complain(message)
    sys.exit(status)

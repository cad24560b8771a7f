from __future__ import annotations

import errno
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from calibration.errors import CalibrationError
from sit_deploy import __version__
from sit_deploy.cli import COMMANDS, _Group, cli, main
from sit_deploy.cli.failures import DEFECT, TRACEBACK, explain
from sit_deploy.errors import GateError
from tests.helpers.command_line import CommandLine, context_of


@pytest.fixture
def models_does(monkeypatch: pytest.MonkeyPatch) -> Callable[[Callable[[], Any]], None]:
    """A function that puts something else in the place of `sit-deploy models`."""
    from sit_deploy.cli import models

    return lambda work: monkeypatch.setattr(models.command, "callback", lambda **_: work())


def raiser(error: BaseException) -> Callable[[], None]:
    def work() -> None:
        raise error

    return work


# ------------------------------------------------------------------------------------------------------------ help


def test_help_lists_every_command(cli: CommandLine) -> None:
    out = cli("--help").out
    for name, line in COMMANDS.items():
        assert re.search(rf"^  {name} +{re.escape(line)}$", out, re.MULTILINE)
    assert "Start with: sit-deploy build --model sit_s --precision fp16" in out
    assert "Exit status: 0 good; 1 a check failed" in " ".join(out.split())


@pytest.mark.parametrize("name", COMMANDS)
def test_help_of_a_command_has_examples_that_parse(name: str, cli: CommandLine) -> None:
    out = cli(name, "-h").out
    _, found, after = out.partition("Examples:\n")
    lines = [line.strip() for line in after.splitlines()]
    assert found and lines
    command = _Group(params=[]).get_command(None, name)  # type: ignore[arg-type]
    for line in lines:
        assert line.startswith(f"sit-deploy {name}")
        words = line.partition(" > ")[0].split()[2:]
        context_of(command, words)  # raises for an unknown or malformed option
    assert all(len(line) <= 110 for line in out.splitlines())
    assert "x<=" not in out.replace("17<=x<=20", "").replace("1<=x<=65535", "")  # limits that nobody meets


@pytest.mark.parametrize(
    "words", [["--help"], ["--version"], *([name, "--help"] for name in COMMANDS)], ids=" ".join
)
def test_help_imports_nothing_heavy(words: list[str]) -> None:
    code = """
import sys
from sit_deploy.cli import main
try:
    main()
finally:
    print(sorted({"torch", "timm", "onnx", "onnxruntime", "numpy", "PIL", "rich", "tensorrt_rtx"} & set(sys.modules)),
          file=sys.stderr)
"""
    done = subprocess.run([sys.executable, "-c", code, *words], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "[]\n")
    assert "sit-deploy" in done.stdout


def test_python_dash_m() -> None:
    done = subprocess.run([sys.executable, "-m", "sit_deploy", "--version"], capture_output=True, text=True)
    assert (done.returncode, done.stdout.splitlines()[0]) == (0, f"sit-deploy {__version__}")


# ----------------------------------------------------------------------------------------------------------- usage


def test_unknown_command_suggests_the_nearest(cli: CommandLine) -> None:
    assert cli("biuld", status=2).the_error() == "No such command 'biuld'; did you mean 'build'?"
    assert cli("xyzzy", status=2).the_error() == "No such command 'xyzzy'"


def test_no_command_shows_the_help(cli: CommandLine) -> None:
    result = cli(status=2)
    assert result.out == "" and "Commands:" in result.err


def test_unknown_option_suggests_the_nearest(cli: CommandLine) -> None:
    assert "--precision" in cli("build", "--model", "sit_s", "--precison", "fp16", status=2).usage_error()


# ---------------------------------------------------------------------------------------------------------- errors


@pytest.mark.parametrize(
    ("error", "status", "line"),
    [
        (GateError("out of\ntolerance"), 1, "out of tolerance"),  # always one line
        (CalibrationError("no images"), 2, "no images"),
        (MemoryError(), 2, "out of memory; take a smaller model, image, batch or --calib-images"),
        (
            OSError(28, "No space left on device", "a.onnx"),
            2,
            "No space left on device (a.onnx): ",
        ),
        (
            OSError(30, "Read-only file system"),
            2,
            "Read-only file system; choose a folder on a writable file system",
        ),
        (
            PermissionError(13, "Permission denied", "x"),
            2,
            "Permission denied (x); check its permissions or choose",
        ),
        (OSError("something else"), 2, "something else; check the path"),
        (KeyboardInterrupt(), 2, "interrupted; nothing was left half-written"),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, BaseException) else "",
)
def test_every_foreseen_error_is_one_line(
    error: BaseException, status: int, line: str, cli: CommandLine, models_does: Callable[..., None]
) -> None:
    models_does(raiser(error))
    assert cli("models", status=status).the_error().startswith(line)


def test_out_of_memory_in_torch_is_one_line(cli: CommandLine, models_does: Callable[..., None]) -> None:
    import torch

    models_does(lambda: torch.empty(2**60, dtype=torch.uint8))
    assert cli("models", status=2).the_error().startswith("out of memory; take a smaller model")


@pytest.mark.parametrize(
    "error",
    [KeyError("a thing"), EOFError("no more"), RecursionError("deep\x1b[2J\nand so on"), ValueError()],
)
def test_a_defect_is_one_line_that_says_so(
    error: Exception,
    models_does: Callable[..., None],
    cli: CommandLine,
    capfd: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Status 2: that a check failed is another thing. Where it is, an environment variable shows."""
    models_does(raiser(error))
    with pytest.raises(SystemExit) as ended:
        main(["models"])
    out, err = capfd.readouterr()
    assert (ended.value.code, out) == (2, "")
    (line,) = err.splitlines()
    assert line.startswith(f"Error: {DEFECT}: ") and line.isprintable()
    assert str(error).split(chr(27))[0].strip("'") in line
    monkeypatch.setenv(TRACEBACK, "1")
    with pytest.raises((type(error), RuntimeError)):
        main(["models"])


def test_os_errors_without_words() -> None:
    assert explain(OSError(), ()) == ("; check the path", 2)


@pytest.fixture
def full_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder on a disk of its own, as far as anybody asks, with nothing left on it."""
    place = tmp_path / "full"
    place.mkdir()
    free, stat = shutil.disk_usage, Path.stat
    nothing = free(place)._replace(free=0)

    def its_stat(path: Path, **options: Any) -> os.stat_result:
        found = stat(path, **options)
        return os.stat_result([*found[:2], -1, *found[3:]]) if path == place else found

    monkeypatch.setattr(shutil, "disk_usage", lambda path: nothing if Path(path) == place else free(path))
    monkeypatch.setattr(Path, "stat", its_stat)
    return place


@pytest.mark.parametrize(
    "error",
    [
        OSError(errno.ENOSPC, "No space left on device"),
        OSError(errno.EDQUOT, "Disk quota exceeded"),
        RuntimeError("[enforce fail at inline_container.cc:672] . PytorchStreamWriter failed writing file data/3"),
        shutil.Error([("a", "b", "[Errno 28] No space left on device: 'a' -> 'b'")]),
    ],
)  # fmt: skip
def test_the_disk_that_is_full_is_named(error: Exception, full_disk: Path, tmp_path: Path) -> None:
    """First, whether the output is there already or not, and beside the others that may have been meant."""
    for words in (["build", "-o", str(full_disk / "new" / "b")], ["build", f"--output={full_disk}", "\0"]):
        line, status = explain(error, words)
        assert status == 2
        assert re.match(rf"No space left on device( \(b\))?: 0\.0 kB left for {full_disk}, ", line)
        assert line.endswith("; free some space there or choose another output folder")
    assert str(full_disk) not in explain(error, [str(tmp_path)])[0]


def test_a_full_folder_for_temporary_files_is_named(full_disk: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(full_disk))
    line, _ = explain(OSError(errno.ENOSPC, "No space left on device"), [])
    assert line.startswith(f"No space left on device: 0.0 kB left for {full_disk} (temporary files, TMPDIR)")


def test_a_copy_that_fails_names_both_ends() -> None:
    error = shutil.Error([("a", "b", "Permission denied"), ("c", "d", "Permission denied")])
    assert explain(error, []) == ("cannot copy a to b (Permission denied); check the path", 2)


# --------------------------------------------------------------------------------------------------------- signals


@pytest.mark.parametrize("name", ["SIGINT", "SIGTERM", "SIGHUP"])
@pytest.mark.usefixtures("ctrl_c")
def test_signals_end_a_command_in_one_line(
    name: str, cli: CommandLine, models_does: Callable[..., None]
) -> None:
    if name == "SIGHUP":  # ignored, where the tests themselves run under nohup; the fixture puts it back
        signal.signal(signal.SIGHUP, signal.SIG_DFL)
    models_does(lambda: signal.raise_signal(getattr(signal, name)))
    assert cli("models", status=2).the_error() == "interrupted; nothing was left half-written"


@pytest.mark.parametrize(("name", "background"), [("SIGINT", False), ("SIGTERM", True)])
@pytest.mark.usefixtures("ctrl_c")
def test_a_signal_that_meets_a_destructor_ends_a_command_too(
    name: str,
    background: bool,
    cli: CommandLine,
    models_does: Callable[..., None],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Python prints what a destructor or a callback of a weak reference raises, and goes on."""
    if background:
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # the fixture puts it back

    class Gone:
        def __del__(self) -> None:
            signal.raise_signal(getattr(signal, name))

    def work() -> None:
        gone = Gone()
        del gone
        deadline = time.monotonic() + 20
        while time.monotonic() < deadline:
            time.sleep(0.01)

    monkeypatch.setattr(sys, "unraisablehook", before := lambda _: pytest.fail("Python printed it"))
    models_does(work)
    assert cli("models", status=2).the_error() == "interrupted; nothing was left half-written"
    assert sys.unraisablehook is before


def test_a_signal_that_is_ignored_stays_ignored(cli: CommandLine) -> None:
    """`nohup sit-deploy build ... &` goes on when the terminal is closed."""
    signal.signal(signal.SIGHUP, signal.SIG_IGN)  # the fixture puts it back
    cli("models")
    assert signal.getsignal(signal.SIGHUP) == signal.SIG_IGN
    assert signal.getsignal(signal.SIGTERM) != signal.SIG_DFL


PRINTING = [["models"], ["models", "--json"], ["doctor"], ["--help"], ["build", "--help"], ["--version"]]


@pytest.mark.parametrize("words", [*PRINTING, ["SIT_DEPLOY_TRACEBACK=1", "models"]], ids=" ".join)
def test_a_reader_that_has_gone(words: list[str]) -> None:
    """As with `| head -1`: silent, and not status 1, which says that a check failed; nor is it a defect to trace back."""
    reader, writer = os.pipe()
    os.close(reader)
    variable, equals, value = words[0].partition("=")
    environment, words = ({variable: value}, words[1:]) if equals else ({}, words)
    done = subprocess.run(
        [sys.executable, "-m", "sit_deploy", *words],
        env={**os.environ, **environment},
        stdout=writer,
        stderr=subprocess.PIPE,
        text=True,
    )
    os.close(writer)
    assert (done.returncode, done.stderr) == (2, "")


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs Linux's /dev/full")
@pytest.mark.parametrize("words", PRINTING, ids=" ".join)
def test_standard_output_that_cannot_be_written_is_named(words: list[str]) -> None:
    """No other disk is full: neither the folder for temporary files nor the one that the command is in."""
    with Path("/dev/full").open("w") as full:
        done = subprocess.run(
            [sys.executable, "-m", "sit_deploy", *words], stdout=full, stderr=subprocess.PIPE, text=True
        )
    assert (done.returncode, done.stderr) == (
        2,
        "Error: standard output could not be written (No space left on device), and what was written to files is whole; send the "
        "output elsewhere, or free some space there\n",
    )


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs Linux's /dev/full")
@pytest.mark.parametrize(("words", "status"), [(["models"], 0), (["build"], 2), (["biuld"], 2)], ids=str)
def test_standard_error_that_cannot_be_written_ends_no_work(words: list[str], status: int) -> None:
    with Path("/dev/full").open("w") as full:
        done = subprocess.run(
            [sys.executable, "-m", "sit_deploy", *words], stdout=subprocess.PIPE, stderr=full, text=True
        )
    assert done.returncode == status
    assert ("sit_nano" in done.stdout) == (status == 0)


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs Linux's /dev/full")
def test_progress_that_cannot_be_shown_ends_no_work() -> None:
    code = (
        "import sys\nfrom sit_deploy.cli import main, models\n"
        "models.command.callback = lambda **_: (sys.stderr.write('at it'), sys.stderr.flush(), print('done'))\nmain(['models'])"
    )
    with Path("/dev/full").open("w") as full:
        done = subprocess.run([sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=full, text=True)
    assert (done.returncode, done.stdout) == (0, "done\n")


def test_another_pipe_that_breaks_is_told(cli: CommandLine, models_does: Callable[..., None]) -> None:
    """Of a process that was started; the reader of our output is there, and must not be left without a word."""
    models_does(raiser(BrokenPipeError(errno.EPIPE, "Broken pipe")))
    assert (
        cli("models", status=2).the_error().startswith("Broken pipe; a process that it had started has gone")
    )


def test_the_group_is_the_command_itself() -> None:
    assert cli.name == "cli" and isinstance(cli, _Group)


# ------------------------------------------------------------------------------------------------------------ versions


def test_version_tells_what_is_installed_without_importing_it(cli: CommandLine) -> None:
    from sit_deploy.doctor import runtimes, versions

    first, *rest = cli("--version").out.splitlines()
    assert first == f"sit-deploy {__version__}"
    installed = versions()
    named = [name for name in ("python", "torch", "timm", "onnx", *runtimes()) if installed[name]]
    assert rest == [f"{name} {installed[name]}" for name in named]
    assert {"torch", "onnxruntime"} <= set(named)
    code = "import sys; from sit_deploy.cli import main\ntry:\n    main(['--version'])\nexcept SystemExit:\n    print({'torch', 'numpy', 'onnx', 'timm'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout.endswith("set()\n"), done.stderr

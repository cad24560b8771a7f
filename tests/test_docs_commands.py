"""What the pages tell people to type: every `sit-deploy` line is taken by the real parser, and what can run here runs.

A fence of `sh` is run on sit_nano and made-up pictures, unless the comment before it says why not: `<!-- not run: it trains for hours -->`.
"""

from __future__ import annotations

import configparser
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import click
import pytest

from engines import cpu
from sit_deploy.bundle import load_bundle
from sit_deploy.cli import cli
from tests.helpers.command_line import CommandLine, context_of
from tests.helpers.pages import PAGES, ROOT, Block, Command, blocks, commands, inline, lines, run_lines

pytest.importorskip("torch", reason="needs PyTorch for its models")
from tests.helpers.stand_ins import StandIns
from tests.sit_deploy.conftest import Trained, teacher, trained

__all__ = ["teacher", "trained"]  # the fixtures

FIVE = ROOT / "docs/tasks/timm.md"  # run as it stands, below
BLOCKS = [block for page in PAGES for block in blocks(page)]
CHOICES = re.compile(
    r"[a-z0-9_]+(?:[-_][a-z0-9]+)*(?:\|[a-z0-9_]+(?:[-_][a-z0-9]+)*)+"
)  # a metavar that lists values
OF_A_MODEL = {"build", "export", "calibrate", "search", "slim"}


def find(words: tuple[str, ...]) -> tuple[click.Command, list[str]]:
    """Return the command that words name, and the rest of them."""
    context, command, rest = click.Context(cli), cli, list(words)
    while isinstance(command, click.Group) and rest:
        name = rest.pop(0)
        inner = command.get_command(context, name)
        if inner is None:
            raise click.UsageError(f"no such command: {name}")
        command = inner
    return command, rest


def check(command: Command) -> None:
    """Let the real parser take a command.

    Raises:
        click.UsageError: it does not, or a value is none of those that the option's help lists.
    """
    if not command.words or command.words[0] in ("--version", "--help"):
        return
    found, rest = find(command.words)
    if command.mentioned:
        known = {name for option in found.params for name in (*option.opts, *option.secondary_opts)} | {
            "--help"
        }
        options = [word.partition("=")[0] for word in rest if word.startswith("-")]
        if unknown := [option for option in options if option not in known]:
            raise click.UsageError(f"no such option: {unknown[0]}")
        return
    context = context_of(found, rest)
    if found.name in OF_A_MODEL and not context.params["model"] and not context.params["checkpoint"]:
        raise click.UsageError("neither --model nor --checkpoint")
    for option in found.params:
        value = context.params.get(option.name or "")
        listed = CHOICES.fullmatch(getattr(option, "metavar", None) or "")
        if listed and isinstance(value, str) and value not in listed[0].split("|"):
            raise click.UsageError(f"{option.opts[0]} takes {listed[0]}, not {value}")


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("sit-deploy build --modle sit_s", "--modle"),
        ("sit-deploy export --model sit_s --precision", "requires an argument"),
        ("python -m sit_deploy train --data digits", "'--model'"),
        ("true && sit-deploy package trition b -o m", "trition"),
        ("sit-deploy serve b --performance fast", "'fast'"),
        ("sit-deploy build --model sit_s --precision fp12 | head", "fp12"),
        ("sit-deploy build --batch-size 0x --model sit_s", "0x"),
        ("sit-deploy build --precision fp16", "neither --model nor"),
        ("sit-deploy bild", "bild"),
    ],
)
def test_what_is_wrong_is_noticed(line: str, said: str) -> None:
    (command,) = commands(line, "a page")
    with pytest.raises(click.ClickException) as caught:
        check(command)
    assert said in caught.value.format_message()


def test_extras_that_pages_install_are_there() -> None:
    setup = configparser.ConfigParser()
    setup.read(ROOT / "setup.cfg")
    named = {
        extra
        for page in PAGES
        for names in re.findall(r"(?:'\.|\.whl|\"sit-deploy)\[([a-z,]+)\]", page.read_text(encoding="utf-8"))
        for extra in names.split(",")
    }
    assert {"openvino", "triton", "tensorrt"} <= named <= set(setup["options.extras_require"])


def all_commands() -> Iterator[Command]:
    for block in BLOCKS:
        for line in lines(block):
            yield from commands(line, block.name)
    for page in PAGES:
        yield from inline(page)


def test_every_command_on_a_page_is_one_that_is_taken() -> None:
    found, wrong = list(all_commands()), []
    for command in found:
        try:
            check(command)
        except click.ClickException as error:
            wrong.append(f"{command.where}: sit-deploy {' '.join(command.words)}: {error.format_message()}")
    assert not wrong, "\n".join(wrong)
    assert sum(not command.mentioned for command in found) > 80
    assert {command.words[:1] for command in found if command.words} > {
        ("build",),
        ("train",),
        ("search",),
        ("package",),
    }


RUN = [block for block in BLOCKS if run_lines(block) and block.page != FIVE]


@pytest.mark.slow
@pytest.mark.parametrize("block", RUN, ids=lambda block: block.name)
def test_what_a_page_tells_to_type_runs(
    block: Block, cli: CommandLine, trained: Trained, teacher: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """In an empty folder, with files of the names on the page."""
    stand_ins = StandIns(cli.folder, trained, teacher, tmp_path_factory)
    for line in run_lines(block):
        found = list(commands(line, block.name))
        assert len(found) == 1, (
            f"{block.name}: only lines of one sit-deploy are run, not {line!r}: say before the fence why it is not, <!-- not run: … -->"
        )
        words = stand_ins.take(found[0].words)
        command, rest = find(words)
        stand_ins.provide(context_of(command, rest).params)
        cli(*words)


SHIM = """\
import sys
from engines import timing
from sit_deploy.cli import main

if __name__ == "__main__":  # what is timed, is timed by processes that import this
    worker = timing.Worker
    timing.Worker = lambda name, spec, seconds: worker(name, spec, min(seconds, 0.01))
    main([*sys.argv[1:], *(["--tune-seconds", "1"] if sys.argv[1] == "build" else [])])
"""


@pytest.mark.slow
def test_five_commands_lead_from_a_timm_model_to_int8(tmp_path: Path, trained: Trained) -> None:
    """The page's own lines, by a shell: MODEL and PHOTOS are set as it says, and what times engines is told to be brief."""
    pytest.importorskip("openvino", reason="needs OpenVINO: pip install '.[openvino]'")
    if cpu.int8_saturates():
        pytest.skip("needs a CPU with VNNI, as the page says")
    import timm
    from timm.models import save_for_hf

    install, script = (block for block in blocks(FIVE) if block.language == "sh")
    assert len(lines(install)) + sum("sit-deploy" in line for line in lines(script)) == 5
    assert install.why_not and not script.why_not
    size = {"depth": 2, "embed_dim": 64, "num_heads": 2, "img_size": 64}
    model = timm.create_model("vit_tiny_patch16_224", num_classes=7, **size)
    save_for_hf(model, tmp_path / "my model", model_args=size, safe_serialization=True)
    work, programs = tmp_path / "empty", tmp_path / "bin"
    work.mkdir(), programs.mkdir()
    (programs / "shim.py").write_text(SHIM)
    (programs / "sit-deploy").write_text(f'#!/bin/sh\nexec "{sys.executable}" "{programs}/shim.py" "$@"\n')
    (programs / "sit-deploy").chmod(0o755)
    given = {
        "MODEL": f"local-dir:{tmp_path}/my model",
        "PHOTOS": str(trained.images),
        "PYTHONPATH": str(ROOT),
    }
    path = f"{programs}{os.pathsep}{os.environ['PATH']}"
    done = subprocess.run(
        ["bash", "-euo", "pipefail", "-c", script.text],
        cwd=work,
        env={**os.environ, **given, "PATH": path, "HF_HUB_OFFLINE": "1"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    manifest = load_bundle(work / "engine-int8").manifest
    assert (manifest.precision, manifest.engine.kind) == ("int8", "openvino")
    for words in ("multiplies", "openvino engine", "golden output", "probability"):  # of each command
        assert words in done.stdout


def test_most_fences_are_run() -> None:
    """A page says of each that is not, why."""
    fences = [block for block in BLOCKS if block.language == "sh"]
    assert len(RUN) >= 10
    assert all(block.why_not for block in fences if len(run_lines(block)) < len(lines(block)))

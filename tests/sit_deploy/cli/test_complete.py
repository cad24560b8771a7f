"""Completion as a shell has it: bash asks the program, as after the line of docs/installing.md."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import click
import pytest

from engines import KINDS
from sit_deploy.cli import COMMANDS, cli
from sit_deploy.cli.complete import listed
from sit_deploy.models.catalog import CONFIGS
from sit_deploy.precisions import FLOATS

ROOT = Path(__file__).parents[3]
BASH = shutil.which("bash")


@pytest.mark.parametrize(
    ("metavar", "values"),
    [
        ("fp32|fp16|bf16", ("fp32", "fp16", "bf16")),
        ("cpu|cuda[:N]", ("cpu", "cuda")),
        ("onnxruntime", ("onnxruntime",)),
        ("auto|tensorrt-rtx", ("auto", "tensorrt-rtx")),
        ("17..20|23", ()),
        ("DIR|NAME", ()),
        ("NAME", ()),
        ("smXY", ()),
        (None, ()),
    ],
)
def test_which_values_a_metavar_lists(metavar: str | None, values: tuple[str, ...]) -> None:
    assert listed(metavar) == values


@pytest.fixture
def complete(tmp_path: Path):
    """Complete a line in a real bash, in an empty folder: the words that it offers, and whether it leaves files to itself."""
    if BASH is None:
        pytest.skip("needs bash")
    program = tmp_path / "bin" / "sit-deploy"
    program.parent.mkdir()
    program.write_text(f'#!/bin/sh\nexec {sys.executable} -m sit_deploy "$@"\n')
    program.chmod(0o755)
    (tmp_path / "empty").mkdir()
    environment = {**os.environ, "PATH": f"{program.parent}:{os.environ['PATH']}", "PYTHONPATH": str(ROOT)}

    def offered(line: str) -> list[str]:
        words = line.split(" ")
        script = (
            'eval "$(_SIT_DEPLOY_COMPLETE=bash_source sit-deploy)"\n'
            "complete -p sit-deploy >&2\n"
            f"COMP_WORDS=({' '.join(repr(word) for word in words)})\nCOMP_CWORD={len(words) - 1}\n"
            '_sit_deploy_completion sit-deploy\nprintf "%s\\n" "${COMPREPLY[@]}"\n'
        )
        done = subprocess.run(
            [BASH, "--norc", "-c", script],
            capture_output=True,
            text=True,
            env=environment,
            cwd=tmp_path / "empty",
        )
        assert done.returncode == 0, done.stderr
        assert done.stderr == "complete -o nosort -F _sit_deploy_completion sit-deploy\n"
        return done.stdout.split()

    return offered


@pytest.mark.slow
def test_bash_completes_commands(complete) -> None:
    assert complete("sit-deploy bui") == ["build"]
    assert complete("sit-deploy ") == list(COMMANDS)
    assert complete("sit-deploy package ") == ["cpp", "python", "triton"]
    assert complete("sit-deploy --ver") == ["--version"]


@pytest.mark.slow
def test_bash_completes_options_and_their_values(complete) -> None:
    assert complete("sit-deploy build --prec") == ["--precision"]
    assert complete("sit-deploy build --precision ") == [*FLOATS, "int8", "fp8"]
    assert complete("sit-deploy build --engine ") == ["auto", *KINDS]
    assert complete("sit-deploy build --engine tensorrt-") == ["tensorrt-rtx"]
    assert complete("sit-deploy build --model sit_n") == ["sit_nano"]
    assert complete("sit-deploy train --model ") == list(CONFIGS)
    assert complete("sit-deploy bench --device cu") == ["cuda"]
    assert complete("sit-deploy build --method ") == ["tsm", "transform", "merge"]  # click's own


@pytest.mark.slow
def test_bash_says_nothing_after_a_command_that_is_none(complete) -> None:
    assert complete("sit-deploy biuld --mo") == []


def test_every_option_that_lists_values_completes_them() -> None:
    """Of every command, whoever wrote it."""
    seen = 0
    for name in COMMANDS:
        command = cli.get_command(click.Context(cli), name)
        assert command is not None
        for part in (command, *getattr(command, "commands", {}).values()):
            context = click.Context(part)
            for option in part.params:
                values = listed(option.metavar) if isinstance(option, click.Option) else ()
                if values:
                    found = [item.value for item in option.shell_complete(context, "")]
                    assert found == (list(CONFIGS) if "--model" in option.opts else list(values))
                    seen += 1
    assert seen > 20


def test_completing_imports_nothing_heavy() -> None:
    code = (
        "import os, sys; os.environ.update(_SIT_DEPLOY_COMPLETE='bash_complete', "
        "COMP_WORDS='sit-deploy build --model ', COMP_CWORD='3')\n"
        "from sit_deploy.cli import main\n"
        "try:\n    main([])\nexcept SystemExit:\n    print({'torch', 'numpy', 'onnx', 'timm'} & set(sys.modules))\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT)
    assert "plain,sit_nano" in done.stdout and done.stdout.endswith("set()\n"), done.stderr

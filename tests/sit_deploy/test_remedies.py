"""Remedies: an option that a message names is one of the command that says it."""

from __future__ import annotations

import ast
import re
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import click
import pytest
import torch

from sit_deploy.cli import COMMANDS, cli
from sit_deploy.errors import InputError
from sit_deploy.validation.reference import TeacherSource, teacher_model
from tests.helpers.models import named_model

ROOT = Path(__file__).parents[2]
OPTION = re.compile(r"(?<![\w-])--[a-z][a-z0-9-]*")
# other programs' options
FOREIGN = {
    "--nproc-per-node",
    "--force-reinstall",
    "--model-repository",
    "--data-binary",
    "--gpus",
    "--build",
    "--parallel",
    "--help",
    "--revision",
    *("--rm", "--shm-size", "--ulimit"),
    *("--load-model", "--model-control-mode"),
}
# which commands a message can come from; of any other module, from some command that has the option
COMMANDS_OF = {
    "sit_deploy/data/hub.py": (),  # opens data sets for train, validate and report
    "training/slim": ("slim",),
    "training/": ("train",),
    "sit_deploy/cli/models.py": ("build",),  # whose models it lists
    "sit_deploy/cli/doctor.py": ("build",),  # whose engines it lists
    "sit_deploy/validation/bench.py": ("bench",),
    "sit_deploy/measure/evaluate.py": ("validate",),
    "sit_deploy/models/find_weights.py": ("build", "export", "calibrate", "train", "visualize"),
    "sit_deploy/models/load.py": ("build", "export", "calibrate"),
    "sit_deploy/models/mismatch.py": ("build", "export", "calibrate"),
    "sit_deploy/validation/reference.py": ("validate", "bench", "report"),
    "sit_deploy/report/kernels_text.py": ("build",),
    "sit_deploy/report/search_view.py": ("build", "slim", "train"),  # whose options a schedule is
    "sit_deploy/report/": ("report",),
    "sit_deploy/validation/report.py": ("report",),
    "sit_deploy/validation/validate.py": ("validate",),
    "sit_deploy/pipeline/request": ("build",),  # and its check
    "sit_deploy/triton/repository.py": ("package triton",),
    "sit_deploy/triton/install.py": ("serve",),
    "sit_deploy/triton/server.py": ("serve",),
}
# what is said of another command than the one that says it
ELSEWHERE = {
    r"sit-deploy (\w+)|\b(package triton|train)\b": None,
    r"\b(?:build|building|built|builds)\b": "build",
    r"--teacher-model": "report",
    r"--val-data": "build",  # what a report says of its build
}


def _options(command: click.Command) -> set[str]:
    return {name for param in command.params for name in (*param.opts, *param.secondary_opts)}


@cache
def every_option() -> dict[str, set[str]]:
    found = {}
    for name in COMMANDS:
        command = cli.get_command(click.Context(cli), name)
        assert command is not None
        parts = command.commands.items() if isinstance(command, click.Group) else [("", command)]
        found |= {f"{name} {part}".strip(): _options(inner) for part, inner in parts}
    return found


def _text(node: ast.AST) -> str:
    if isinstance(node, ast.JoinedStr):
        return "".join(map(_text, node.values))
    return node.value if isinstance(node, ast.Constant) and isinstance(node.value, str) else "{}"


def messages() -> Iterator[tuple[str, str]]:
    """Give every module's texts that name options, but for docstrings."""
    for top in ("sit_deploy", "training", "engines", "calibration"):
        for path in sorted((ROOT / top).rglob("*.py")):
            tree = ast.parse(path.read_text(encoding="utf-8"))
            inner = {id(v) for n in ast.walk(tree) if isinstance(n, ast.JoinedStr) for v in n.values}
            docs = {id(n.value) for n in ast.walk(tree) if isinstance(n, ast.Expr)}
            for node in ast.walk(tree):
                if isinstance(node, ast.JoinedStr | ast.Constant) and id(node) not in inner | docs:
                    text = _text(node)
                    if " " in text and OPTION.search(text):
                        yield path.relative_to(ROOT).as_posix(), text


def _is_there(option: str, module: str, text: str) -> bool:
    """Say whether the option is one of the command that a text speaks of, or of every one that says it."""
    have = every_option()
    for pattern, command in ELSEWHERE.items():
        if found := re.search(pattern, text):
            named = command or next(filter(None, found.groups()), "")
            if option in have.get(named, ()):
                return True
    sayers = next((names for start, names in COMMANDS_OF.items() if module.startswith(start)), None)
    if sayers is None and module.startswith("sit_deploy/cli/") and Path(module).stem in have:
        sayers = (Path(module).stem,)
    return all(option in have[s] for s in sayers) if sayers else any(option in h for h in have.values())


@pytest.mark.slow
def test_every_option_that_a_message_names_exists_where_it_is_said() -> None:
    found = list(messages())
    wrong = [
        f"{module}: {option} in {text[:100]!r}"
        for module, text in found
        for option in set(OPTION.findall(text)) - FOREIGN
        if not _is_there(option, module, text)
    ]
    assert not wrong, "\n".join(wrong)
    assert len(found) > 150


def refusal(call: Callable[[], Any]) -> str:
    with pytest.raises(InputError) as caught:
        call()
    return str(caught.value)


WRONG_TEACHERS: dict[str, tuple[Callable[[], dict[str, torch.Tensor]], str | None]] = {
    "no name": (lambda: named_model("lvvit_nano", num_classes=7).state_dict(), None),
    "another": (lambda: named_model("sit_nano", num_classes=7).state_dict(), "lvvit_nano"),
    "part": (lambda: {"norm.weight": torch.ones(128)}, "lvvit_nano"),
    "one output": (lambda: named_model("lvvit_nano", num_classes=1).state_dict(), "lvvit_nano"),
    "other classes": (lambda: named_model("lvvit_nano", num_classes=5).state_dict(), "lvvit_nano"),
    "no such name": (lambda: named_model("lvvit_nano").state_dict(), "lvvit_nana"),
}  # fmt: skip


@pytest.mark.parametrize("kind", WRONG_TEACHERS)
def test_what_report_says_of_a_teacher(kind: str, tmp_path: Path) -> None:
    make, name = WRONG_TEACHERS[kind]
    torch.save(make(), tmp_path / "teacher.pth")
    model = SimpleNamespace(image_size=(112, 112), num_classes=7, name="sit_nano")
    bundle = SimpleNamespace(path=Path("b"), manifest=SimpleNamespace(model=model))
    message = refusal(lambda: teacher_model(bundle, TeacherSource(tmp_path / "teacher.pth", name)))  # type: ignore[arg-type]
    assert set(OPTION.findall(message)) <= every_option()["report"], message


@pytest.mark.parametrize("kind", ["another", "part", "one output"])
def test_what_train_says_of_a_teacher(kind: str, tmp_path: Path) -> None:
    """--model, --stages and --num-classes are there of the student and of the data."""
    from sit_deploy.models import get_config
    from training import TrainRequest
    from training.make_models import _load_teacher

    torch.save(WRONG_TEACHERS[kind][0](), tmp_path / "teacher.pth")
    request = TrainRequest("sit_nano", "digits", tmp_path / "run", teacher=tmp_path / "teacher.pth")
    message = refusal(lambda: _load_teacher(request, get_config("sit_nano"), 112, 7))
    assert not OPTION.findall(message), message

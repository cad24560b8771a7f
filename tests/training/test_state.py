"""The state of a run on disk: whole or not there, of one run only, and exact."""

from __future__ import annotations

import copy
import errno
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from sit_deploy.errors import InputError
from sit_deploy.models.sit import SiT
from tests.helpers.models import TINY
from training.optimizer import make_optimiser, make_schedule, set_learning_rate
from training.recipes import Recipe
from training.state import Position, read_state, restore, save_state

RUN = {"model": "sit_s", "seed": 0, "stages": [9, 3, 2, 2], "lr": 2e-4, "epochs": 125, "teacher": None}


def saved(path: Path, **position: Any) -> nn.Module:
    torch.manual_seed(0)
    model = nn.Linear(3, 2)
    save_state(path, RUN, Position(**position), {"model": model})
    return model


def refusal(path: Path, run: dict[str, Any] = RUN) -> str:
    with pytest.raises(InputError) as error:
        read_state(path, run)
    message = str(error.value)
    assert "\n" not in message and str(path) in message
    return message


def test_what_was_written_is_read(tmp_path: Path) -> None:
    position = Position(
        epoch=3, step=17, best={"epoch": 2, "top1": 81.25, "loss": 0.7}, sums={"loss": 12.5}, window={"loss": 0.1},
        window_steps=4, log_bytes=1234, seconds=56.7,
    )  # fmt: skip
    model = saved(tmp_path / "last.pt", **vars(position))
    found, parts = read_state(tmp_path / "last.pt", copy.deepcopy(RUN))
    assert found == position
    other = nn.Linear(3, 2)
    assert not torch.equal(other.weight, model.weight)
    restore({"model": other}, parts)
    assert torch.equal(other.weight, model.weight) and torch.equal(other.bias, model.bias)
    assert [p.name for p in tmp_path.iterdir()] == ["last.pt"]


def train_for(steps: range, parts: dict[str, Any], recipe: Recipe) -> None:
    model, optimiser, schedule = parts["model"], parts["optimiser"], parts["schedule"]
    model.train()
    for step in steps:
        set_learning_rate(schedule, recipe, 0, step, 10)
        images = torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(step))
        model(images).square().mean().backward()
        optimiser.step()
        optimiser.zero_grad()


def make_parts(recipe: Recipe, seed: int) -> dict[str, Any]:
    torch.manual_seed(seed)
    model = SiT(**TINY)
    optimiser = make_optimiser(model, recipe, 512)
    return {"model": model, "optimiser": optimiser, "schedule": make_schedule(optimiser, recipe, 10, 512)}


def test_training_goes_on_bit_by_bit(tmp_path: Path) -> None:
    """Weights, BatchNorm statistics, and AdamW's moments and step counts."""
    recipe = Recipe(epochs=2, lr_per_step=True, lr=1e-3)
    straight, broken, resumed = (make_parts(recipe, seed) for seed in (0, 0, 1))
    train_for(range(5), straight, recipe)
    train_for(range(3), broken, recipe)
    save_state(tmp_path / "last.pt", RUN, Position(step=3), broken)
    position, states = read_state(tmp_path / "last.pt", RUN)
    restore(resumed, states)
    train_for(range(position.step, 5), resumed, recipe)
    ours, theirs = straight["model"].state_dict(), resumed["model"].state_dict()
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)
    assert straight["optimiser"].param_groups[0]["lr"] == resumed["optimiser"].param_groups[0]["lr"]
    moments = [p["optimiser"].state_dict()["state"] for p in (straight, resumed)]
    for ours, theirs in zip(moments[0].values(), moments[1].values(), strict=True):
        assert all(torch.equal(ours[name], theirs[name]) for name in ours)
    assert not torch.equal(broken["model"].head.weight, straight["model"].head.weight)


@pytest.mark.parametrize(
    "error",
    [
        OSError(errno.ENOSPC, "No space left on device"),
        RuntimeError("PytorchStreamWriter failed\nwriting file"),
    ],
)
def test_a_failing_write_leaves_the_old_file(
    error: Exception, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "last.pt"
    saved(path, epoch=1)
    before = path.read_bytes()

    def half(content: Any, file: Any) -> None:
        file.write(b"half of a file")
        raise error

    monkeypatch.setattr(torch, "save", half)
    with pytest.raises(InputError) as refused:
        saved(path, epoch=2)
    message = str(refused.value)
    assert message.startswith(f"cannot write {path} (") and "--resume" in message and "\n" not in message
    assert path.read_bytes() == before and [p.name for p in tmp_path.iterdir()] == ["last.pt"]
    monkeypatch.undo()
    assert read_state(path, RUN)[0].epoch == 1


def test_ctrl_c_in_the_middle_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "last.pt"
    saved(path, epoch=1)

    def interrupted(content: Any, file: Any) -> None:
        file.write(b"half of a file")
        raise KeyboardInterrupt

    monkeypatch.setattr(torch, "save", interrupted)
    with pytest.raises(KeyboardInterrupt):
        saved(path, epoch=2)
    assert [p.name for p in tmp_path.iterdir()] == ["last.pt"]
    assert read_state(path, RUN)[0].epoch == 1


def test_the_file_appears_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is complete before it has its name, and on the disk before it has."""
    path = tmp_path / "last.pt"
    events = []
    monkeypatch.setattr("os.fsync", lambda _: events.append("on disk"))
    real = Path.replace

    def replace(self: Path, target: Path) -> Path:
        events.append("named")
        assert not path.exists() and read_state(self, RUN)[0].epoch == 4
        return real(self, target)

    monkeypatch.setattr(Path, "replace", replace)
    saved(path, epoch=4)
    assert events == ["on disk", "named"]


def test_a_folder_that_cannot_be_written(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"cannot write .*No such file or directory"):
        saved(tmp_path / "nowhere" / "last.pt")


def test_files_that_are_no_state(tmp_path: Path) -> None:
    path = tmp_path / "last.pt"
    saved(path)
    whole = path.read_bytes()
    for content in (b"", b"no state", whole[: len(whole) // 2], whole[: len(whole) - 30]):
        path.write_bytes(content)
        assert "is not the state of a training run" in refusal(path)
    for other in ({"model": {}}, [1, 2], {"schema": 1, "run": "{", "position": {}, "parts": {}}):
        torch.save(other, path)
        assert "is not the state of a training run" in refusal(path)


def test_no_code_of_a_file_is_run(tmp_path: Path) -> None:
    class Evil:
        def __reduce__(self) -> Any:
            return Path.touch, (tmp_path / "touched",)

    torch.save({"schema": 1, "run": "{}", "position": {}, "parts": Evil()}, tmp_path / "last.pt")
    assert "is not the state" in refusal(tmp_path / "last.pt", {})
    assert not (tmp_path / "touched").exists()


def test_a_state_of_another_version(tmp_path: Path) -> None:
    path = tmp_path / "last.pt"
    saved(path)
    content = torch.load(path, weights_only=True)
    torch.save({**content, "schema": 2}, path)
    assert "has schema 2, and 1 is known here" in refusal(path)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"seed": 1}, "seed was 0 and is 1"),
        ({"model": "sit_m"}, 'model was "sit_s" and is "sit_m"'),
        ({"stages": None}, "stages was [9, 3, 2, 2] and is null"),
        ({"teacher": "ab12"}, 'teacher was null and is "ab12"'),
        ({"lr": 1e-4}, "lr was 0.0002 and is 0.0001"),
        ({"new": 5}, "new was null and is 5"),
    ],
)
def test_another_run_is_named_by_what_differs(change: dict[str, Any], words: str, tmp_path: Path) -> None:
    saved(tmp_path / "last.pt")
    message = refusal(tmp_path / "last.pt", {**RUN, **change})
    assert "is of another run" in message and words in message
    assert message.count(" and is ") == 1  # and nothing that is the same


# ------------------------------------------------------------------------------------------- states of something else


def altered(path: Path, change: Callable[[dict[str, Any]], object]) -> None:
    content = torch.load(path, weights_only=True)
    change(content)
    torch.save(content, path)


@pytest.mark.parametrize("field", vars(Position()))
@pytest.mark.parametrize("value", [None, "x", -1, [], {"a": "b"}, True, 10**30, float("nan")])
def test_positions_of_wrong_types(field: str, value: Any, tmp_path: Path) -> None:
    path = tmp_path / "last.pt"
    saved(path, epoch=1)
    altered(path, lambda content: content["position"].update({field: value}))
    if field == "best" and isinstance(value, dict):
        return  # what is in it, `require_within` checks
    assert re.search(rf"position: field {field}|is not the state", refusal(path))


@pytest.mark.parametrize(
    ("position", "told"),
    [
        ({"epoch": 10**9}, "step 0 of epoch 1000000001 is next, and the run has 5 epochs of 20 steps"),
        ({"epoch": 5, "step": 1}, "step 1 of epoch 6"),
        ({"step": 10**9}, "step 1000000000 of epoch 1"),
        ({"epoch": 2, "best": {}}, "does not say which of its epochs was the best"),
        ({"epoch": 2, "best": {"epoch": "1", "top1": 3.0, "loss": 1.0}}, "does not say which"),
        ({"epoch": 2, "best": {"epoch": 1, "top1": None, "loss": 1.0}}, "does not say which"),
    ],
)
def test_positions_that_no_run_comes_to(position: dict[str, Any], told: str) -> None:
    best = {"epoch": 1, "top1": 50.0, "loss": 1.5}
    for good in ({}, {"step": 20}, {"epoch": 5, "best": best}, {"epoch": 4, "step": 20, "best": best}):
        Position(**good).require_within(Path("last.pt"), 5, 20)
    with pytest.raises(InputError, match=rf"^last\.pt .*{told}.*; remove it to start anew$"):
        Position(**{"best": best, **position}).require_within(Path("last.pt"), 5, 20)


@pytest.mark.parametrize(
    "state",
    [
        {},
        [],
        None,
        "x",
        {"weight": torch.ones(2, 3)},
        {"weight": 3, "bias": None},
        {"weight": torch.ones(9), "bias": torch.ones(2)},
    ],
)
def test_weights_of_another_run(state: Any) -> None:
    with pytest.raises(
        InputError, match=r"^r/last\.pt does not fit this run: model \(.*\); remove it to start anew$"
    ):
        restore({"model": nn.Linear(3, 2)}, {"model": state}, Path("r/last.pt"))
    with pytest.raises(InputError, match=r"does not fit this run: model \(KeyError"):
        restore({"model": nn.Linear(3, 2)}, {}, Path("r/last.pt"))


def test_the_optimisers_state_of_another_run() -> None:
    parts = make_parts(Recipe(), 0)
    states = {name: part.state_dict() for name, part in parts.items()}
    for wrong in ({}, {"state": {}, "param_groups": []}, {"state": [], "param_groups": None}):
        with pytest.raises(InputError, match=r"does not fit this run: optimiser"):
            restore(parts, {**states, "optimiser": wrong})


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_states_that_are_no_numbers_are_named(value: float) -> None:
    model = nn.Linear(3, 2)
    state = {"weight": torch.full((2, 3), value), "bias": torch.ones(2)}
    with pytest.raises(InputError, match=r"holds NaN or infinity: model, weight; remove it"):
        restore({"model": model}, {"model": state})


@pytest.mark.parametrize("run", ["[" * 100_000, "3", "[]", '{"a": NaN}', 5, None])
def test_what_the_run_was_is_no_json(run: Any, tmp_path: Path) -> None:
    path = tmp_path / "last.pt"
    saved(path)
    altered(path, lambda content: content.update(run=run))
    assert "is not the state of a training run" in refusal(path)

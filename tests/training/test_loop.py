"""Whole runs: stopped and resumed, and diverged."""

from __future__ import annotations

import json
import shutil
import signal
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.helpers.train import (
    PLAIN,
    RICH,
    Stopper,
    assert_same_run,
    at_pass,
    differences,
    log_rows,
    read_parts,
    small_request,
)
from training import Summary, TrainRequest, train
from training.loop import DivergedError, StoppedError

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("small_nano", "no_curves")]


# ------------------------------------------------------------------------------------------------ stopped and resumed


def run_rich(pictures: Path, output: Path, *stops: tuple[str, int], **options: Any) -> Summary:
    """Train with all that is random on, 3 steps an epoch, stopped at each of `stops` and resumed after."""
    for stop in stops:
        with pytest.raises(StoppedError):
            train(small_request(pictures, output, RICH, accumulate=2, resume=True, **options), Stopper(*stop))
    return train(small_request(pictures, output, RICH, accumulate=2, resume=True, **options))


@pytest.fixture(scope="module")
def uninterrupted(pictures: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    output = tmp_path_factory.mktemp("uninterrupted") / "run"
    run_rich(pictures, output)
    return output


def test_the_uninterrupted_run_is_one_that_would_show_a_difference(uninterrupted: Path) -> None:
    steps, epochs = log_rows(uninterrupted, "step"), log_rows(uninterrupted, "epoch")
    assert [row["step"] for row in steps] == list(range(1, 10))
    assert [row["epoch"] for row in epochs] == [0, 1, 2, 3]
    assert len({row["loss"] for row in steps}) == 9
    assert len({row["lr"] for row in steps}) == 7  # the three of the cooldown are the smallest one
    assert len({row["loss"] for row in epochs}) == 4
    parts = read_parts(uninterrupted)
    assert parts.keys() == {"model", "ema", "optimiser", "schedule", "scaler", "damaged"}
    assert differences(parts["model"], parts["ema"])


def test_a_resumed_run_is_the_uninterrupted_one(pictures: Path, uninterrupted: Path, tmp_path: Path) -> None:
    """Stopped at every kind of moment, one after the other; 3 batches a validation."""
    wanted = small_request(pictures, tmp_path, RICH, accumulate=2, resume=True)
    for what, call, place in (
        ("evaluating", 2, "step 0 of epoch 1"),  # before the start
        ("steps", 2, "step 2 of epoch 1"),  # in the middle of an epoch
        ("evaluating", 2, "step 3 of epoch 1"),  # of its end
        ("epoch", 1, "step 1 of epoch 2"),  # just after it
        ("steps", 2, "step 3 of epoch 2"),  # at its last step
        ("evaluating", 3, "step 3 of epoch 2"),  # at the last batch of its validation
    ):
        with pytest.raises(StoppedError, match=f"after {place}; "):
            train(wanted, Stopper(what, call))
    train(wanted, Stopper("epoch", 2))  # just after the last one: nothing is left to stop
    assert_same_run(tmp_path, uninterrupted)


def test_with_workers_too(pictures: Path, uninterrupted: Path, tmp_path: Path) -> None:
    run_rich(pictures, tmp_path, ("steps", 4), ("evaluating", 2), workers=2)
    assert_same_run(tmp_path, uninterrupted)


def test_distillation_resumes_too(wide_pictures: Path, teacher: Path, tmp_path: Path) -> None:
    recipe = {**RICH, "epochs": 1, "cooldown_epochs": 0, "warmup_epochs": 0, "batch_size": 16}

    def wanted(output: Path) -> TrainRequest:
        file, overrides = teacher / "model.safetensors", tuple(recipe.items())
        return TrainRequest(
            "sit_nano", str(wide_pictures), output,
            image_size=48, teacher=file, overrides=overrides, log_every=1, workers=0, resume=True,
        )  # fmt: skip

    train(wanted(tmp_path / "whole"))
    with pytest.raises(StoppedError):
        train(wanted(tmp_path / "stopped"), Stopper("steps", 2))
    train(wanted(tmp_path / "stopped"))
    assert_same_run(tmp_path / "stopped", tmp_path / "whole")
    rows = log_rows(tmp_path / "whole", "step")
    assert len(rows) == 3 and {"classification", "tokens", "logits"} < rows[0].keys()


def test_resuming_a_finished_run_changes_nothing(pictures: Path, uninterrupted: Path, tmp_path: Path) -> None:
    shutil.copytree(uninterrupted, tmp_path / "run")
    first = json.loads((uninterrupted / "summary.json").read_text(encoding="utf-8"))
    places = {name: str(tmp_path / "run" / Path(first[name]).name) for name in ("weights", "curves")}
    again = run_rich(pictures, tmp_path / "run").to_dict()
    assert json.loads(json.dumps(again)) == {**first, **places}
    assert_same_run(tmp_path / "run", uninterrupted)


@pytest.mark.parametrize("log_every", [1, 3])
@pytest.mark.parametrize("accumulate", [1, 2, 3])
def test_resumed_with_another_number_of_passes_a_step(
    accumulate: int, log_every: int, pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Started with 2. The losses logged for the steps and for the epoch are means of the same."""

    def wanted(passes: int) -> TrainRequest:
        recipe = {**PLAIN, "epochs": 1, "batch_size": 12 // passes}
        return small_request(pictures, tmp_path, recipe, accumulate=passes, log_every=log_every, resume=True)

    with monkeypatch.context() as patched:
        at_pass(patched, 3, lambda _: signal.raise_signal(signal.SIGTERM))
        with pytest.raises(StoppedError, match="after step 2 of epoch 1"):
            train(wanted(2))
    train(wanted(accumulate))
    losses = [row["loss"] for row in log_rows(tmp_path, "step")]
    assert len(losses) == 3 // log_every
    assert log_rows(tmp_path, "epoch")[-1]["train_loss"] == pytest.approx(sum(losses) / len(losses))


def test_rows_of_the_log_that_span_a_stop(
    pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Stopped between two rows: the next one is the mean over the steps before the stop and after it."""
    recipe = {**RICH, "epochs": 1, "cooldown_epochs": 0, "warmup_epochs": 0}
    train(small_request(pictures, tmp_path / "whole", recipe, log_every=2))
    with monkeypatch.context() as patched:
        at_pass(patched, 3, lambda _: signal.raise_signal(signal.SIGTERM))
        with pytest.raises(StoppedError, match="after step 3 of epoch 1"):
            train(small_request(pictures, tmp_path / "resumed", recipe, log_every=2))
    train(small_request(pictures, tmp_path / "resumed", recipe, log_every=2, resume=True))
    assert_same_run(tmp_path / "resumed", tmp_path / "whole")


# ---------------------------------------------------------------------------------------------------------- diverged


@pytest.mark.parametrize("save_every", [1, 1000])
def test_a_loss_that_is_not_finite(
    save_every: int, pictures: Path, uninterrupted: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    wanted = small_request(pictures, tmp_path / "run", RICH, accumulate=2, save_every=save_every, resume=True)
    with monkeypatch.context() as patched:
        at_pass(patched, 10, lambda images: images * float("nan"))  # the second half of step 2 of epoch 2
        with pytest.raises(DivergedError) as raised:
            train(wanted)
    last = tmp_path / "run" / "last.pt"
    assert str(raised.value) == (
        f"the loss is not finite at step 2 of epoch 2; the last good state is {last}; "
        "start again with a smaller --lr, or with --clip-grad 1"
    )
    state = torch.load(last, weights_only=True)
    assert (state["position"]["epoch"], state["position"]["step"]) == (1, 1 if save_every == 1 else 0)
    tensors = [t for name in ("model", "ema") for t in state["parts"][name].values()]
    assert all(t.isfinite().all() for t in tensors)
    train(wanted)  # and without what made it diverge, it ends as if nothing had been
    assert_same_run(tmp_path / "run", uninterrupted)


def test_no_state_yet(pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    at_pass(monkeypatch, 2, lambda images: images * float("inf"))
    with pytest.raises(
        DivergedError, match="the loss is not finite at step 2 of epoch 1; there is no earlier state"
    ):
        train(small_request(pictures, tmp_path, PLAIN))
    assert len(log_rows(tmp_path, "step")) == 1  # what led there can still be read
    assert not (tmp_path / "last.pt").exists()


@pytest.mark.parametrize(
    "how", ["at the end of an epoch", "where the state is saved", "where the run is stopped"]
)
def test_weights_that_are_not_finite(
    how: str, pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The loss was finite and the gradient was not: neither the state nor the weights are kept."""

    def overflow(parameters: Any, norm: float) -> None:
        for parameter in parameters:
            if parameter.grad is not None:
                parameter.grad.mul_(float("inf"))

    monkeypatch.setattr("training.loop.clip_grad_norm_", overflow)
    at_end = how == "at the end of an epoch"
    recipe = {**PLAIN, "batch_size": 36 if at_end else 12, "clip_grad": 1.0}
    reporter = Stopper("steps", 1) if how == "where the run is stopped" else None
    save_every = 1 if how == "where the state is saved" else 1000
    with pytest.raises(
        DivergedError, match="a weight is not finite at step 1 of epoch 1; there is no earlier state"
    ):
        train(small_request(pictures, tmp_path, recipe, save_every=save_every), reporter)
    assert {path.name for path in tmp_path.iterdir()} == {"log.jsonl"}

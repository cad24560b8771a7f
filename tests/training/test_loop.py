"""Whole runs: stopped, killed, diverged and resumed."""

from __future__ import annotations

import contextlib
import gc
import io
import json
import os
import random
import shutil
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.helpers.train import (
    PLAIN,
    RICH,
    Child,
    Stopper,
    assert_same_run,
    differences,
    log_rows,
    read_parts,
    start,
    words,
)
from training import Summary, TrainRequest, train
from training.loop import DivergedError, StoppedError

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("small_nano", "no_curves")]


def request(pictures: Path, output: Path, recipe: dict[str, Any], **options: Any) -> TrainRequest:
    """A small run that logs every step."""
    defaults = {"image_size": 32, "log_every": 1, "workers": 0, "overrides": tuple(recipe.items())}
    return TrainRequest("lvvit_nano", str(pictures), output, **{**defaults, **options})


# ------------------------------------------------------------------------------------------------ stopped and resumed


def run_rich(pictures: Path, output: Path, *stops: tuple[str, int], **options: Any) -> Summary:
    """Train with all that is random on, 3 steps an epoch, stopped at each of `stops` and resumed after."""
    for stop in stops:
        with pytest.raises(StoppedError):
            train(request(pictures, output, RICH, accumulate=2, resume=True, **options), Stopper(*stop))
    return train(request(pictures, output, RICH, accumulate=2, resume=True, **options))


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
    wanted = request(pictures, tmp_path, RICH, accumulate=2, resume=True)
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
        return request(pictures, tmp_path, recipe, accumulate=passes, log_every=log_every, resume=True)

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
    train(request(pictures, tmp_path / "whole", recipe, log_every=2))
    with monkeypatch.context() as patched:
        at_pass(patched, 3, lambda _: signal.raise_signal(signal.SIGTERM))
        with pytest.raises(StoppedError, match="after step 3 of epoch 1"):
            train(request(pictures, tmp_path / "resumed", recipe, log_every=2))
    train(request(pictures, tmp_path / "resumed", recipe, log_every=2, resume=True))
    assert_same_run(tmp_path / "resumed", tmp_path / "whole")


def at_pass(
    monkeypatch: pytest.MonkeyPatch,
    number: int,
    act: Callable[[Tensor], Tensor | None],
    then_on: bool = False,
) -> None:
    """Give the images of the nth pass of every run (of all passes from it on) to `act`, which may replace them."""
    from training.augment import make_mixing

    def make(*arguments: Any) -> Callable:
        mix, passes = make_mixing(*arguments), 0

        def mixed(images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
            nonlocal passes
            passes += 1
            images, targets = mix(images, labels)
            if passes == number or (then_on and passes > number):
                changed = act(images)
                images = images if changed is None else changed
            return images, targets

        return mixed

    monkeypatch.setattr("training.set_up.make_mixing", make)


# ------------------------------------------------------------------------------------------------------------ killed

LINE = (
    "train",
    "--model",
    "lvvit_nano",
    "--image-size",
    32,
    "--save-every",
    1,
    "--log-every",
    1,
    "--workers",
    0,
)


def test_killed_at_any_moment(pictures: Path, tmp_path: Path) -> None:
    """The state is whole or not there, and the run ends as one that nobody killed; see `start` for what is run."""

    def begin(output: Path) -> Child:
        return start(tmp_path / "streams", *line, "-o", output, "--resume", prepare=write_slowly)

    line = (*LINE, "--data", pictures, *words({**RICH, "epochs": 3}))
    whole = begin(tmp_path / "whole")
    draw, output = random.Random(0), tmp_path / "killed"
    partial, inside, reached = output / ".last.pt.partial", 0, set()
    assert whole.wait().status == 0
    for attempt in range(7):
        child = begin(output)
        if attempt % 3:  # right inside a write, or just after it
            for _ in range(draw.randint(1, 2)):
                wait_for_write(child, partial, begun=False)
                wait_for_write(child, partial, begun=True)
            time.sleep(draw.choice((0, 0, 0.01)))
        else:
            time.sleep(draw.uniform(0.1, 0.8))
        child.kill()
        inside += partial.exists()
        if (output / "last.pt").exists():
            state = torch.load(output / "last.pt", weights_only=True)
            reached.add((state["position"]["epoch"], state["position"]["step"]))
    assert inside, "no kill fell into a write"
    assert len(reached) > 2, "the kills fell always on the same place"
    result = begin(output).wait()
    assert result.status == 0, result.err
    assert_same_run(output, tmp_path / "whole")
    assert {p.name for p in output.iterdir()} == {p.name for p in (tmp_path / "whole").iterdir()}


def write_slowly() -> None:
    """Let a state take a good while to write, so that a kill can fall inside."""
    save = torch.save

    def saved(content: dict[str, Any], file: Any) -> None:
        buffer = io.BytesIO()
        save(content, buffer)
        whole = buffer.getvalue()
        for start_ in range(0, len(whole), 100_000):
            file.write(whole[start_ : start_ + 100_000])
            file.flush()
            time.sleep(0.001)

    torch.save = saved


def wait_for_write(child: Child, partial: Path, begun: bool) -> None:
    """Wait until something has been written to a file, or until it is gone, or nobody is there to write it."""
    while child.process.is_alive():
        try:
            size = partial.stat().st_size
        except FileNotFoundError:
            size = 0
        if bool(size) == begun:
            return
        time.sleep(0.0005)


def test_killed_between_the_first_best_weights_and_the_first_state(
    pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The weights that lie there without a state are no reason to refuse the run that made them."""

    class PowerCut(BaseException):
        pass

    def cut(*_: object) -> None:
        raise PowerCut

    def wanted(output: Path) -> TrainRequest:
        return request(pictures, output, {**PLAIN, "epochs": 1}, resume=True)

    with monkeypatch.context() as patched:
        patched.setattr("training.run.save_state", cut)
        patched.setattr("training.run_files.RunFolder.clear_away", lambda _: None)
        with pytest.raises(PowerCut):
            train(wanted(tmp_path / "cut"))
    assert (tmp_path / "cut" / "model.safetensors").exists() and not (tmp_path / "cut" / "last.pt").exists()
    train(wanted(tmp_path / "cut"))
    train(wanted(tmp_path / "whole"))
    assert_same_run(tmp_path / "cut", tmp_path / "whole")


# ----------------------------------------------------------------------------------------------------------- signals


@pytest.mark.parametrize(
    ("number", "workers"),
    [(signal.SIGINT, 0), (signal.SIGINT, 2), (signal.SIGTERM, 2)],
    ids=lambda v: getattr(v, "name", v),
)
def test_signals(number: signal.Signals, workers: int, pictures: Path, tmp_path: Path) -> None:
    """To the whole process group, as from a terminal or from torchrun: the workers must not go before the state is saved."""
    line = (*LINE[:-1], workers, "--data", pictures, *words({**RICH, "epochs": 500}), "-o", tmp_path / "run")
    child = start(tmp_path / "streams", *line)
    child.wait_for("epoch 2/501  ")
    child.signal_group(number)
    result = child.wait()
    *_, last = result.err.splitlines()
    assert (result.status, result.out) == (2, "")
    assert "Traceback" not in result.err and result.err.count("Error: ") == 1
    position = torch.load(tmp_path / "run" / "last.pt", weights_only=True)["position"]
    where = f"step {position['step']} of epoch {position['epoch'] + 1}"
    assert last == (
        f"Error: stopped by {number.name} after {where}; saved {tmp_path / 'run' / 'last.pt'}: go on with --resume"
    )
    assert position["epoch"] >= 1


def test_the_second_ctrl_c_does_not_wait(
    pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It may fall into the step, or into the saving of the state."""
    reached = []

    def twice(_: Tensor) -> None:
        signal.raise_signal(signal.SIGINT)
        reached.append("still running")
        signal.raise_signal(signal.SIGINT)
        reached.append("not stopped")

    at_pass(monkeypatch, 4, twice)
    with pytest.raises(KeyboardInterrupt):
        train(request(pictures, tmp_path, PLAIN, save_every=1))
    assert reached == ["still running"]
    assert torch.load(tmp_path / "last.pt", weights_only=True)["position"]["step"] == 3


def test_the_second_ctrl_c_while_the_state_is_saved(
    pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save = torch.save

    def interrupted(content: dict[str, Any], file: Any) -> None:
        if content["position"]["step"] == 2:
            file.write(b"the beginning of a state")
            signal.raise_signal(signal.SIGINT)
            signal.raise_signal(signal.SIGINT)
        save(content, file)

    monkeypatch.setattr(torch, "save", interrupted)
    with pytest.raises(KeyboardInterrupt):
        train(request(pictures, tmp_path, PLAIN, save_every=1))
    assert torch.load(tmp_path / "last.pt", weights_only=True)["position"]["step"] == 1
    assert {path.name for path in tmp_path.iterdir()} == {"last.pt", "log.jsonl"}


def test_handlers_are_put_back(pictures: Path, tmp_path: Path) -> None:
    before = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
    with pytest.raises(StoppedError):
        train(request(pictures, tmp_path, PLAIN), Stopper("steps", 1))
    assert [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)] == before


# ---------------------------------------------------------------------------------------------------------- diverged


@pytest.mark.parametrize("save_every", [1, 1000])
def test_a_loss_that_is_not_finite(
    save_every: int, pictures: Path, uninterrupted: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    wanted = request(pictures, tmp_path / "run", RICH, accumulate=2, save_every=save_every, resume=True)
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
        train(request(pictures, tmp_path, PLAIN))
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
        train(request(pictures, tmp_path, recipe, save_every=save_every), reporter)
    assert {path.name for path in tmp_path.iterdir()} == {"log.jsonl"}


def test_a_worker_that_is_killed(pictures: Path, tmp_path: Path) -> None:
    """As the kernel does where memory runs out."""
    line = (*LINE[:-1], 1, "--data", pictures, *words({**RICH, "epochs": 500}), "-o", tmp_path / "run")
    child = start(tmp_path / "streams", *line)
    child.wait_for("epoch 2/501  ")
    os.kill(children_of(child.process.pid)[-1], signal.SIGKILL)
    result = child.wait()
    assert (result.status, result.out) == (2, "")
    assert "Traceback" not in result.err
    assert result.err.splitlines()[-1].startswith(
        "Error: a process that reads images has died (DataLoader worker (pid"
    )
    assert torch.load(tmp_path / "run" / "last.pt", weights_only=True)["position"]["epoch"] >= 1


@pytest.mark.parametrize("stopped", [False, True])
def test_no_worker_outlives_its_run(
    stopped: bool, pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not even until garbage is collected, which would wait seconds for each of them."""
    before = set(children_of(os.getpid()))
    started: list[int] = []
    at_pass(monkeypatch, 2, lambda _: started.extend(set(children_of(os.getpid())) - before))
    gc.collect()
    gc.disable()
    try:
        with pytest.raises(StoppedError) if stopped else contextlib.nullcontext():
            wanted = request(pictures, tmp_path, {**PLAIN, "epochs": 1}, workers=1)
            train(wanted, Stopper("steps", 4 if stopped else 10**6))
    finally:
        gc.enable()
    assert len(started) >= 2, "there were no workers"
    assert not set(started) & set(children_of(os.getpid()))


def children_of(pid: int | None) -> list[int]:
    """Return the processes whose parent is `pid`."""
    found = []
    for status in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            if int(status.read_text().rpartition(")")[2].split()[1]) == pid:
                found.append(int(status.parent.name))
    return found

"""Whole runs that are ended from outside: killed, signalled, and of workers that die."""

from __future__ import annotations

import contextlib
import gc
import io
import os
import random
import signal
import time
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
    at_pass,
    small_request,
    start,
    words,
)
from training import TrainRequest, train
from training.loop import StoppedError

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("small_nano", "no_curves")]


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
        return small_request(pictures, output, {**PLAIN, "epochs": 1}, resume=True)

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
        train(small_request(pictures, tmp_path, PLAIN, save_every=1))
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
        train(small_request(pictures, tmp_path, PLAIN, save_every=1))
    assert torch.load(tmp_path / "last.pt", weights_only=True)["position"]["step"] == 1
    assert {path.name for path in tmp_path.iterdir()} == {"last.pt", "log.jsonl"}


def test_handlers_are_put_back(pictures: Path, tmp_path: Path) -> None:
    before = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
    with pytest.raises(StoppedError):
        train(small_request(pictures, tmp_path, PLAIN), Stopper("steps", 1))
    assert [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)] == before


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
            wanted = small_request(pictures, tmp_path, {**PLAIN, "epochs": 1}, workers=1)
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

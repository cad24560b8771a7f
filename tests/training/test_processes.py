"""Two processes against one: the same losses, the same weights, every image counted once."""

from __future__ import annotations

import itertools
import json
import os
import re
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from engines.cpu import cpu_count, quota
from tests.helpers.command_line import Result
from tests.helpers.train import PLAIN, Child, log_rows, read_parts, start, start_world, words

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("small_nano")]

# far below what one step changes, far above what the order of a sum does
RELATIVE = 1e-5


def line(data: Path, output: Path, batch_size: int, *more: object) -> tuple[object, ...]:
    """Return the command line of a run whose steps do not depend on how its images are grouped."""
    recipe = {**PLAIN, "batch_size": batch_size, "lr": 0.02, "clip_grad": 1.0, "ema_decay": 0.9, "repeats": 2}
    options = (
        "--data",
        data,
        "-o",
        output,
        "--image-size",
        48,
        "--log-every",
        1,
        "--device",
        "cpu",
        "--workers",
        0,
    )
    return ("train", *options, "--sync-batchnorm", *words(recipe), *more)


def finish(*children: Child) -> list[Result]:
    results = [child.wait() for child in children]
    assert [r.status for r in results] == [0] * len(results), [r.err for r in results]
    return results


def assert_agree(two: Path, one: Path) -> None:
    """Hold the logs and the final weights of two runs to each other."""
    rows = [log_rows(folder) for folder in (two, one)]
    assert len(rows[0]) == len(rows[1]) >= 9
    for ours, theirs in zip(*rows, strict=True):
        assert ours.pop("kind") == theirs.pop("kind")
        assert ours == pytest.approx(theirs, rel=RELATIVE)
    states = [read_parts(folder) for folder in (two, one)]
    for part in ("model", "ema"):
        for name, ours in states[0][part].items():
            # A weight whose gradient is nothing but rounding may be moved further by it, as Adam divides by the gradient's
            # size (on one kind of CPU 1 of 73728, by 5e-5): a few of a large tensor may, by a hundredth of a step of 0.02.
            theirs = states[1][part][name]
            apart = (ours.double() - theirs.double()).abs()
            far = int((apart > 2e-5 + 1e-3 * theirs.double().abs()).sum())
            assert far <= apart.numel() // 10_000 and (not far or apart.max() < 2e-4), f"{part} {name}"


@pytest.fixture(scope="module", params=["classification", "FRD"])
def kind(request: pytest.FixtureRequest, teacher: Path) -> tuple[object, ...]:
    """The model, and its teacher if it has one."""
    if request.param == "FRD":
        return ("--model", "sit_nano", "--teacher", teacher / "model.safetensors")
    return ("--model", "lvvit_nano")


@pytest.fixture(scope="module")
def alone(kind: tuple[object, ...], wide_pictures: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run of one process, 12 images a step."""
    folder = tmp_path_factory.mktemp("alone")
    finish(start(folder / "streams", *line(wide_pictures, folder / "run", 12, *kind)))
    return folder / "run"


def test_two_processes_and_one(
    kind: tuple[object, ...], alone: Path, wide_pictures: Path, tmp_path: Path
) -> None:
    """And only the first one writes: the other could not, but for what fits into a few bytes."""
    two = line(wide_pictures, tmp_path / "run", 6, *kind)
    first, second = finish(*start_world(tmp_path / "streams", 2, *two, file_limits={1: 4096}))
    assert_agree(tmp_path / "run", alone)
    assert {p.name for p in (tmp_path / "run").iterdir()} == {p.name for p in alone.iterdir()}
    # older PyTorch's gloo says on standard output that it has connected
    said = [text for text in second.out.splitlines() if not text.startswith("[Gloo]")]
    assert (said, second.err) == ([], "")
    assert "On 29 held-out images" in first.out
    assert all(row["images"] == 29 for row in log_rows(tmp_path / "run", "epoch"))


def stop_the_second() -> None:
    """Send SIGTERM to the process of rank 1 in its third step."""
    if os.environ["RANK"] != "1":
        return
    from training import set_up

    make, passes = set_up.make_mixing, itertools.count(1)

    def made(*arguments: Any) -> Any:
        mix = make(*arguments)

        def mixed(*batch: Any) -> Any:
            if next(passes) == 3:
                signal.raise_signal(signal.SIGTERM)
            return mix(*batch)

        return mixed

    set_up.make_mixing = made


def test_stopped_as_two_and_resumed_as_one(
    kind: tuple[object, ...], alone: Path, wide_pictures: Path, tmp_path: Path
) -> None:
    """With a batch twice as large. One process is told to stop, and both do so at the same step."""
    output = tmp_path / "run"
    command = line(wide_pictures, output, 6, *kind)
    children = start_world(tmp_path / "streams", 2, *command, prepare=stop_the_second)
    results = [child.wait() for child in children]
    assert [r.status for r in results] == [2, 2]
    position = torch.load(output / "last.pt", weights_only=True)["position"]
    assert (position["epoch"], position["step"]) == (0, 3)
    where = f"after step 3 of epoch 1; saved {output / 'last.pt'}"
    assert all(r.err.count("Error: ") == 1 and where in r.err.splitlines()[-1] for r in results)
    finish(start(tmp_path / "streams", *line(wide_pictures, output, 12, *kind), "--resume"))
    assert_agree(output, alone)


def test_without_synchronised_batchnorm_they_differ(wide_pictures: Path, tmp_path: Path) -> None:
    """So the agreement above is owed to --sync-batchnorm; losses alone would hardly show a wrong sum of gradients."""
    outputs = {6: tmp_path / "two", 12: tmp_path / "one"}
    lines = {
        batch: [
            w
            for w in line(wide_pictures, output, batch, "--model", "lvvit_nano", "--epochs", 1)
            if w != "--sync-batchnorm"
        ]
        for batch, output in outputs.items()
    }
    finish(*start_world(tmp_path / "streams", 2, *lines[6]))
    finish(start(tmp_path / "streams", *lines[12]))
    two, one = (log_rows(output, "step")[0]["loss"] for output in outputs.values())
    assert two != pytest.approx(one, rel=10 * RELATIVE)


def python(folder: Path, *words: object, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run a Python that takes as many threads as it likes, or as the environment says."""
    clean = {name: value for name, value in os.environ.items() if not name.startswith("OMP_")}
    return subprocess.run(
        [sys.executable, *map(str, words)],
        cwd=folder, env=clean | environment, capture_output=True, text=True, timeout=300, check=True,
    )  # fmt: skip


TORCHRUN = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node", 2)


@pytest.fixture(scope="module")
def launched(pictures: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Result]:
    """A training of two processes that torchrun starts, each told to take a thread a CPU: its folder, and what it said."""
    folder = tmp_path_factory.mktemp("launched")
    options = line(pictures, folder, 9, "--model", "lvvit_nano", "--image-size", 32, "--epochs", 1, "--json")
    own_folder = [word for word in options if word not in ("train", "-o", folder)]
    done = python(folder, *TORCHRUN, "-m", "training", *own_folder, OMP_NUM_THREADS=str(cpu_count()))
    return folder, Result(0, done.stdout, done.stderr)


def test_torchrun(launched: tuple[Path, Result]) -> None:
    """`torchrun -m training` is `sit-deploy train`: JSON is the summary and nothing else; the folder is called after the model."""
    folder, result = launched
    summary: dict[str, Any] = result.json()
    run = folder / "runs" / "lvvit_nano"
    assert summary == json.loads((run / "summary.json").read_text(encoding="utf-8"))
    assert summary["weights"] == "runs/lvvit_nano/model.safetensors"
    assert (summary["images"], summary["epochs"]) == (18, 1)
    assert len(log_rows(run, "step")) == 2
    assert (run / "curves.png").read_bytes().startswith(b"\x89PNG")


THREADS = """
import os, torch
from training.preflight import warn_of_threads
print([os.environ.get("OMP_NUM_THREADS"), *warn_of_threads(torch.device("cpu"))])
"""


def by_torchrun(monkeypatch: pytest.MonkeyPatch) -> str:
    """How many threads torchrun gives each of two processes where nobody says."""
    from torch.distributed import run

    monkeypatch.setenv("OMP_NUM_THREADS", "")  # so that it is put back
    monkeypatch.delenv("OMP_NUM_THREADS")
    run.config_from_args(run.parse_args(["--standalone", "--nproc-per-node", "2", "train.py"]))
    return os.environ["OMP_NUM_THREADS"]


def test_the_setting_that_is_named_mends_it(
    launched: tuple[Path, Result], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A real run warns of too many threads; one of two with what it says, or as torchrun starts it, or alone has no reason to."""
    if cpu_count() > 1:
        warned = r"Warning: \d+ threads of 2 processes compute on .*OMP_NUM_THREADS=(\d+) in"
        [setting] = re.findall(warned, launched[1].err)
        for threads in {setting, by_torchrun(monkeypatch)}:
            one_of_two = {"OMP_NUM_THREADS": threads, "LOCAL_WORLD_SIZE": "2"}
            assert python(tmp_path, "-c", THREADS, **one_of_two).stdout == f"['{threads}']\n"
    if quota() is None:
        assert python(tmp_path, "-c", THREADS).stdout == "[None]\n"


def say_where_it_is_saved() -> None:
    from training import run

    save = run.save_state

    def saying(path: Path, identity: Any, position: Any, parts: Any) -> None:
        print("saved", position.epoch, position.step)
        save(path, identity, position, parts)

    run.save_state = saying


def test_the_state_is_saved_between_the_rows_of_the_log(wide_pictures: Path, tmp_path: Path) -> None:
    """Where several processes look at their losses only now and then, --save-every is kept to all the same."""
    options = ("--model", "lvvit_nano", "--epochs", 1, "--log-every", 4, "--save-every", 3)
    command = line(wide_pictures, tmp_path / "run", 6, *options)
    first, _ = finish(*start_world(tmp_path / "streams", 2, *command, prepare=say_where_it_is_saved))
    saved = [text.removeprefix("saved ") for text in first.out.splitlines() if text.startswith("saved ")]
    assert saved == ["0 3", "1 0"]
    assert len(log_rows(tmp_path / "run", "step")) == 1

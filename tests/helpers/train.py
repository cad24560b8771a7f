"""What the tests of whole training runs share: pictures that can be told apart, small recipes, runs in processes."""

from __future__ import annotations

import atexit
import json
import multiprocessing
import os
import signal
import socket
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, replace
from multiprocessing import forkserver
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from tests.helpers.command_line import Result
from training.reporter import Silent
from training.request import TrainRequest

if TYPE_CHECKING:
    from torch import Tensor

CLASSES = ("ant", "bee", "cat", "dog", "eel", "fox")
# rows of a log that differ from run to run
TIMES = ("images_per_second", "waiting_for_data", "seconds")
# everything that draws random numbers, that averages or that changes from step to step
RICH: dict[str, Any] = {
    "epochs": 2,
    "cooldown_epochs": 1,
    "warmup_epochs": 1,
    "batch_size": 6,
    "lr": 0.2,
    "lr_per_step": True,
    "clip_grad": 1.0,
    "ema_decay": 0.9,
    "drop_path": 0.2,
    "mixup": 0.8,
    "cutmix": 1.0,
    "repeats": 3,
    "erasing": 0.5,
}
# nothing that depends on how images are grouped into batches
PLAIN: dict[str, Any] = {
    "epochs": 2,
    "cooldown_epochs": 0,
    "warmup_epochs": 0,
    "batch_size": 6,
    "lr": 0.1,
    "drop_path": 0.0,
    "mixup": 0.0,
    "cutmix": 0.0,
    "repeats": 1,
    "auto_augment": "",
    "min_scale": 0.5,
}


SMALL: dict[str, Any] = {"embed_dim": 64, "num_heads": 2, "image_size": 48}


@contextmanager
def configured(**models: dict[str, Any]) -> Iterator[None]:
    """Give models of the catalog, by name, other values of their configuration meanwhile, in this process."""
    from sit_deploy.models import registry
    from sit_deploy.models.catalog import CONFIGS

    arguments = registry._arguments
    with pytest.MonkeyPatch.context() as patch:
        for name, values in models.items():
            patch.setitem(CONFIGS, name, replace(CONFIGS[name], **values))
        patch.setattr(registry, "_arguments", lambda config: arguments(CONFIGS[config.name]))
        yield


@contextmanager
def smaller_nano() -> Iterator[None]:
    """Make sit_nano and lvvit_nano of half the width, the blocks and the image meanwhile, here and in processes of `start`.

    For runs of which anything but their model is asked: they take a third of the time. Weights are 0.8 MB, a state 3.
    """
    student, teacher = {"stage_blocks": (1, 1, 1, 1), **SMALL}, {"stage_blocks": (4,), **SMALL}
    with configured(sit_nano=student, lvvit_nano=teacher):
        yield


@contextmanager
def without_curves() -> Iterator[None]:
    """Let runs not draw their curves meanwhile, which takes as long as all their steps."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("training.summary.draw_curves", lambda folder, *_: (folder / "curves.png").touch())
        yield


def write_pictures(root: Path, train: int = 6, val: int = 3, size: int = 32, classes: Any = CLASSES) -> Path:
    """Write `train` and `val` noisy pictures a class, each class of a hue of its own, some of it hard to tell."""
    import colorsys

    import numpy as np
    from PIL import Image

    draw = np.random.default_rng(0)
    for part, count in (("train", train), ("val", val)):
        for label, name in enumerate(classes):
            folder = root / part / name
            folder.mkdir(parents=True)
            for index in range(count):
                hue = (label + draw.normal(0, 0.25)) / len(classes)
                colour = np.array(colorsys.hsv_to_rgb(hue % 1, 0.7, 0.8)) * 255
                pixels = colour + draw.normal(0, 25, (size, size, 3))
                Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(folder / f"{index}.png")
    return root


def write_photographs(root: Path, train: int = 6, val: int = 3, size: int = 64) -> Path:
    """Write `train` and `val` crops a class of the two photographs that come with scikit-learn, as JPEG files."""
    from importlib.util import find_spec

    import numpy as np
    from PIL import Image

    draw = np.random.default_rng(0)
    package = find_spec("sklearn")  # found and not imported, which takes a second
    assert package and package.origin
    for part, count in (("train", train), ("val", val)):
        for name in ("china", "flower"):
            photograph = Image.open(Path(package.origin).parent / "datasets" / "images" / f"{name}.jpg")
            folder = root / part / name
            folder.mkdir(parents=True)
            for index in range(count):
                width, height = (int(draw.integers(size, 3 * size)) for _ in range(2))
                left = int(draw.integers(photograph.width - width))
                top = int(draw.integers(photograph.height - height))
                crop = photograph.crop((left, top, left + width, top + height))
                crop.save(folder / f"{index}.jpg", quality=85)
    return root


def words(recipe: dict[str, Any]) -> list[str]:
    """Return the command line options of a recipe's fields."""
    found = []
    for name, value in recipe.items():
        option = "--" + name.replace("_", "-")
        if isinstance(value, bool):
            found.append(option if value else f"--no-{option[2:]}")
        else:
            found += [option, str(value)]
    return found


def small_request(pictures: Path, output: Path, recipe: dict[str, Any], **options: Any) -> TrainRequest:
    """Return the request of a small run on pictures of 32 pixels, which logs every step."""
    defaults = {"image_size": 32, "log_every": 1, "workers": 0, "overrides": tuple(recipe.items())}
    return TrainRequest("lvvit_nano", str(pictures), output, **{**defaults, **options})


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


class Stopper(Silent):
    """Sends this process a signal at the nth call of one of its methods."""

    def __init__(self, method: str, call: int, number: int = signal.SIGTERM) -> None:
        self.method, self.left, self.number = method, call, number

    def _called(self, method: str) -> None:
        if method == self.method:
            self.left -= 1
            if self.left == 0:
                signal.raise_signal(self.number)

    def steps(self, *_: Any) -> None:
        self._called("steps")

    def evaluating(self, *_: Any) -> None:
        self._called("evaluating")

    def epoch(self, *_: Any) -> None:
        self._called("epoch")


def log_rows(folder: Path, kind: str | None = None) -> list[dict[str, Any]]:
    """Return the rows of a run's log, of one kind or all, without what is measured with a clock."""
    lines = (folder / "log.jsonl").read_text(encoding="utf-8").splitlines()
    rows = [{k: v for k, v in json.loads(line).items() if k not in TIMES} for line in lines]
    return [row for row in rows if kind in (None, row["kind"])]


def read_parts(folder: Path) -> dict[str, Any]:
    """Return the saved parts of a run: name → state dict."""
    import torch

    return torch.load(folder / "last.pt", weights_only=True)["parts"]


def differences(a: Any, b: Any, where: str = "") -> list[str]:
    """Return where two nested structures of tensors and plain values are not equal, to the bit."""
    import torch

    if isinstance(a, dict) and isinstance(b, dict):
        keys = [f"{where}.{k} only on one side" for k in a.keys() ^ b.keys()]
        return keys + [d for k in a.keys() & b.keys() for d in differences(a[k], b[k], f"{where}.{k}")]
    if isinstance(a, (list, tuple)) and isinstance(b, (list, tuple)) and len(a) == len(b):
        pairs = enumerate(zip(a, b, strict=True))
        return [d for i, (x, y) in pairs for d in differences(x, y, f"{where}[{i}]")]
    if isinstance(a, torch.Tensor) and isinstance(b, torch.Tensor):
        return [] if a.dtype == b.dtype and torch.equal(a, b) else [where]
    return [] if type(a) is type(b) and a == b else [f"{where}: {a!r} and {b!r}"]


def assert_same_run(a: Path, b: Path) -> None:
    """Hold two finished runs to the same state, the same log and the same best weights, to the bit."""
    assert differences(read_parts(a), read_parts(b)) == []
    assert log_rows(a) == log_rows(b)
    for name in ("model.safetensors", "model.json"):
        assert (a / name).read_bytes() == (b / name).read_bytes(), name


# ------------------------------------------------------------------------------------------------------- processes

_context = multiprocessing.get_context("forkserver")


@dataclass
class Child:
    """A command line in a process of its own, the leader of its process group."""

    process: BaseProcess
    folder: Path

    def wait(self) -> Result:
        """Wait for its end; its status is negative if it was killed."""
        self.process.join(120)
        assert self.process.exitcode is not None, "it hangs"
        streams = ((self.folder / name).read_text(encoding="utf-8") for name in ("out", "err"))
        return Result(self.process.exitcode, *streams)

    def kill(self) -> None:
        """End it as a power cut would."""
        self.process.kill()
        self.process.join()

    def signal_group(self, number: int) -> None:
        """Signal it and its children, as Ctrl-C in a terminal does."""
        assert self.process.pid
        os.killpg(self.process.pid, number)

    def wait_for(self, text: str, seconds: float = 60) -> None:
        """Wait until it has said `text` on standard error."""
        end = time.monotonic() + seconds
        while text not in (self.folder / "err").read_text(encoding="utf-8"):
            assert time.monotonic() < end and self.process.is_alive(), (self.folder / "err").read_text()
            time.sleep(0.002)


def start_server() -> None:
    """Start what all processes are forked from, unless it runs: PyTorch is imported there once, and never used."""
    _context.set_forkserver_preload(
        [
            *("torch.distributed", "timm.task", "timm.models", "rich.progress"),
            "training.loop",
            "training.cli.train",
        ]
    )
    forkserver.ensure_running()


def start(
    folder: Path,
    *line: object,
    environment: dict[str, str] | None = None,
    file_limit: int | None = None,
    prepare: Callable[[], None] | None = None,
) -> Child:
    """Start `sit-deploy LINE`, forked from a process that has PyTorch imported already; its streams go into `folder`.

    It draws no curves, and its models are those of `smaller_nano` where ours are.
    file_limit: bytes beyond which no file of it can grow. prepare: called in it first, a function of a module.
    """
    from sit_deploy.models.catalog import CONFIGS

    start_server()
    folder.mkdir(parents=True, exist_ok=True)
    for name in ("out", "err"):
        (folder / name).write_text("")
    small = CONFIGS["sit_nano"].embed_dim == SMALL["embed_dim"]
    arguments = ([str(word) for word in line], str(folder), environment or {}, file_limit, prepare, small)
    process = _context.Process(target=_main, args=arguments)
    process.start()
    return Child(process, folder)


def _main(
    line: list[str],
    folder: str,
    environment: dict[str, str],
    file_limit: int | None,
    prepare: Callable[[], None] | None,
    small: bool,
) -> None:
    import resource

    from sit_deploy.cli import main

    os.setpgrp()
    multiprocessing.set_start_method("fork", force=True)  # a fork server hands its own kind on
    for descriptor, name in ((1, "out"), (2, "err")):
        os.dup2(os.open(Path(folder, name), os.O_WRONLY | os.O_APPEND), descriptor)
    sys.stdout, sys.stderr = os.fdopen(1, "w"), os.fdopen(2, "w")
    os.environ.update(environment)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    if file_limit is not None:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (file_limit, file_limit))
    try:
        if prepare:
            prepare()
        with smaller_nano() if small else nullcontext(), without_curves():
            main(line)
    finally:  # as at the end of any other process; multiprocessing leaves this out
        atexit._run_exitfuncs()
        sys.stdout.flush()
        sys.stderr.flush()


def start_world(
    folder: Path,
    size: int,
    *line: object,
    file_limits: dict[int, int] | None = None,
    prepare: Callable[[], None] | None = None,
) -> list[Child]:
    """Start the processes of one training, as torchrun would; streams of process r go into `folder`/r."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    children = []
    for rank in range(size):
        environment = {
            "RANK": rank,
            "LOCAL_RANK": rank,
            "WORLD_SIZE": size,
            "LOCAL_WORLD_SIZE": size,
            "MASTER_ADDR": "127.0.0.1",
            "MASTER_PORT": port,
        }
        plain = {name: str(value) for name, value in environment.items()}
        limit = (file_limits or {}).get(rank)
        streams = folder / str(rank)
        children.append(start(streams, *line, environment=plain, file_limit=limit, prepare=prepare))
    return children

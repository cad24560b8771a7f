"""Pictures and small models for tests of whole training runs, made once."""

from __future__ import annotations

import functools
import signal
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.helpers.shared import shared
from tests.helpers.train import PLAIN, smaller_nano, without_curves, write_pictures


@pytest.fixture(scope="session")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """36 pictures of 32x32 to train on and 18 held out, of six classes. Do not write into it."""
    return shared(tmp_path_factory, "pictures", write_pictures)


@pytest.fixture(scope="session")
def wide_pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """48 pictures of 48x48, which sit_nano can slim, to train on and 29 held out. Do not write into it."""

    def make(root: Path) -> None:
        write_pictures(root, train=8, val=5, size=48)
        (root / "val" / "fox" / "4.png").unlink()  # an odd number, which two processes cannot share evenly

    return shared(tmp_path_factory, "wide-pictures", make)


@pytest.fixture(scope="session")
def teacher(wide_pictures: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run of an lvvit_nano, the small one, on `wide_pictures`. Do not write into it."""
    overrides = tuple({**PLAIN, "epochs": 6, "batch_size": 8, "clip_grad": 1.0}.items())

    def make(output: Path) -> None:
        from training import TrainRequest, train

        data = str(wide_pictures)
        with smaller_nano(), without_curves():
            train(TrainRequest("lvvit_nano", data, output, image_size=48, overrides=overrides, workers=0))

    return shared(tmp_path_factory, "teacher", make)


@pytest.fixture(scope="module")
def small_nano() -> Iterator[None]:
    """sit_nano and lvvit_nano are smaller in this module; see `smaller_nano`."""
    with smaller_nano():
        yield


@pytest.fixture(scope="module")
def no_curves() -> Iterator[None]:
    """Runs of this module do not draw their curves."""
    with without_curves():
        yield


@pytest.fixture(scope="module")
def small_vits() -> Iterator[None]:
    """Some vision transformers of timm are smaller in this module; see `smaller_vits`."""
    from tests.helpers.models import smaller_vits

    with smaller_vits():
        yield


@pytest.fixture
def save(tmp_path: Path) -> Callable[..., Path]:
    """A function that writes weights for a run to start from; see `save_made`."""
    from tests.helpers.made_models import save_made

    return functools.partial(save_made, tmp_path)


@pytest.fixture(autouse=True)
def signals() -> Iterator[None]:
    """Ctrl-C raises KeyboardInterrupt, whatever the tests run in; handlers are put back."""
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)}
    signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    for number, handler in before.items():
        signal.signal(number, handler)

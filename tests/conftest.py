"""Shared fixtures, and what every test run needs to know about the machine."""

from __future__ import annotations

import ctypes
import gc
import multiprocessing.util
import os
import signal
import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import pytest

from tests.helpers.command_line import CommandLine
from tests.helpers.exports import calibrated_once, exported_anew, exported_once, operators_read_once
from tests.helpers.hub import cached, hub

__all__ = ["cached", "calibrated_once", "exported_anew", "exported_once", "hub", "operators_read_once"]

if "PYTEST_XDIST_WORKER" in os.environ:
    # Before anything loads an OpenMP runtime: workers that each take every core slow one another down.
    _share = (os.cpu_count() or 1) // int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "1"))
    os.environ.setdefault("OMP_NUM_THREADS", str(min(2, max(1, _share))))


if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    # A run in the background inherits that, and its children from it; the tests of Ctrl-C send them a real one.
    signal.signal(signal.SIGINT, signal.default_int_handler)


# Made now and remembered by the process: tests have temporary folders of their own, and a socket that a data loader's worker
# cannot make there, since the path is too long (107 characters) or its folder has gone, leaves the loader waiting for ever.
multiprocessing.util.get_temp_dir()


def _why_no_gpu() -> str | None:
    """Why no CUDA device can be used, asked of the driver itself so that no framework need be loaded; None if one can."""
    try:
        driver = ctypes.CDLL("libcuda.so.1")
    except OSError:
        return "needs a GPU: no CUDA driver on this machine"
    devices = ctypes.c_int(0)
    if driver.cuInit(0) or driver.cuDeviceGetCount(ctypes.byref(devices)) or devices.value < 1:
        return "needs a GPU: the CUDA driver finds no device"
    return None


# What takes long to build, to compile or to measure: whatever asks for one of these is slow.
_SLOW = {"checked", "project", "run_server", "measured", "nano_int8", "rtx_fp8", "rtx_int8"}


@pytest.hookimpl(optionalhook=True)  # a GPU machine may lack xdist
def pytest_xdist_auto_num_workers() -> int:
    """One process more than CPUs: tests wait for disks, servers and processes of their own, too."""
    return len(os.sched_getaffinity(0)) + 1 if hasattr(os, "sched_getaffinity") else 2


@pytest.hookimpl(tryfirst=True)  # before -m chooses
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if isinstance(item, pytest.Function) and _SLOW & set(item.fixturenames):
            item.add_marker(pytest.mark.slow)
    marked = [item for item in items if item.get_closest_marker("gpu")]
    if marked and (reason := _why_no_gpu()):
        for item in marked:
            item.add_marker(pytest.mark.skip(reason=reason))


# Collecting imports everything and throws nothing away. What is there then stays to the end: searching it for rubbish takes
# half a second each time with PyTorch loaded, also where a test asks for it.
gc.disable()


def pytest_collection_finish() -> None:
    gc.freeze()
    gc.enable()


def pytest_unconfigure() -> None:
    gc.unfreeze()  # nanobind lists what is never thrown away as leaks


@pytest.fixture(scope="session", autouse=True)
def short_warm_ups() -> Iterator[None]:
    """Let whatever a test times warm up for a moment: no test decides by a time, and a busy machine is steady at none."""
    from engines import timing

    worker = timing.Worker
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(timing, "Worker", lambda name, spec, seconds: worker(name, spec, min(seconds, 0.01)))
        yield


@pytest.fixture
def make_image_folder(tmp_path: Path) -> Callable[..., Path]:
    """A function that writes a labelled image folder and returns its root.

    make_image_folder(classes=("cat", "dog"), per_class=3, size=(48, 40), suffixes=(".jpg", ".png")) writes files
    <root>/<class>/<index><suffix>, the suffixes in turn, each with pixels of its own (seeded); size is (width, height).
    """
    import numpy as np
    from PIL import Image

    made = 0

    def make(
        classes: Sequence[str] = ("cat", "dog"),
        per_class: int = 3,
        size: tuple[int, int] = (48, 40),
        suffixes: Sequence[str] = (".jpg", ".png"),
    ) -> Path:
        nonlocal made
        root = tmp_path / f"images{made}"
        made += 1
        pixels = np.random.default_rng(made)
        for name in classes:
            folder = root / name
            folder.mkdir(parents=True)
            for index in range(per_class):
                array = pixels.integers(0, 256, (size[1], size[0], 3), np.uint8)
                path = folder / f"{index:03d}{suffixes[index % len(suffixes)]}"
                Image.fromarray(array).save(path)
        return root

    return make


@pytest.fixture
def cli(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> Iterator[CommandLine]:
    """The command line in an empty working directory."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "tmp").mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "tmp"))
    handlers = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGHUP)}
    yield CommandLine(tmp_path, capfd)
    for number, handler in handlers.items():
        signal.signal(number, handler)


@pytest.fixture
def ctrl_c() -> Iterator[None]:
    """Ctrl-C raises KeyboardInterrupt, also where the tests run in the background and have it ignored."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)

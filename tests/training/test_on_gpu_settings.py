"""What training does on a GPU, as far as a CPU can do it: half precision with its scaler, compilation, layouts, pinned batches, one launched process.

The same code runs there: device, backend and the GPU's own kernels are what is left.
"""

from __future__ import annotations

import math
import os
import socket
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import nn

from sit_deploy.data.datasets import open_data
from sit_deploy.data.source import DataSource
from sit_deploy.preprocessing import Preprocessing
from sit_deploy.processes import World, join_world
from tests.helpers.train import PLAIN, RICH, assert_same_run, log_rows, read_parts
from training import TrainRequest, loop, set_up, train
from training.loaders import LoaderOptions, make_loaders
from training.recipes import Recipe
from training.request import TrainRequest as Request
from training.task import ClassificationTask

pytestmark = pytest.mark.usefixtures("small_nano", "no_curves")


def request(pictures: Path, output: Path, recipe: dict[str, Any] = PLAIN, **options: Any) -> TrainRequest:
    overrides = tuple({"clip_grad": 1.0, **recipe}.items())
    defaults = {"image_size": 32, "log_every": 1, "workers": 0, "overrides": overrides, "device": "cpu"}
    return Request("lvvit_nano", str(pictures), output, **{**defaults, **options})


def losses(folder: Path) -> list[float]:
    return [row["loss"] for row in log_rows(folder, "step")]


def norms_seen(patch: pytest.MonkeyPatch) -> list[float]:
    """The norm of the gradients that each step is clipped by."""
    clip, norms = loop.clip_grad_norm_, []
    patch.setattr(loop, "clip_grad_norm_", lambda *given: norms.append(float(clip(*given))))
    return norms


@pytest.fixture(scope="module")
def plain_norms() -> list[float]:
    """The norms of the gradients of `plain`."""
    return []


@pytest.fixture(scope="module")
def plain(pictures: Path, plain_norms: list[float], tmp_path_factory: pytest.TempPathFactory) -> list[float]:
    """The losses of a run in float32, as it is."""
    output = tmp_path_factory.mktemp("plain") / "run"
    with pytest.MonkeyPatch.context() as patch:
        norms = norms_seen(patch)
        train(request(pictures, output))
    plain_norms += norms
    return losses(output)


def in_fp16(patch: pytest.MonkeyPatch, **options: Any) -> None:
    """Let a run on the CPU compute in FP16 with its scaler: a user is refused that, as it is slow there."""
    scaler = partial(torch.amp.GradScaler, "cpu", **options)
    precision = lambda *_: (partial(torch.autocast, "cpu", torch.float16), scaler())  # noqa: E731
    patch.setattr(set_up, "_precision", precision)


# ------------------------------------------------------------------------------------------------- half precision


@pytest.mark.slow
def test_bf16_learns_what_float32_does(pictures: Path, plain: list[float], tmp_path: Path):
    train(request(pictures, tmp_path / "run", amp="bf16"))
    assert losses(tmp_path / "run") == pytest.approx(plain, rel=0.03)
    assert losses(tmp_path / "run") != plain


@pytest.mark.slow
def test_fp16_with_its_scaler_learns_what_float32_does(
    pictures: Path,
    plain: list[float],
    plain_norms: list[float],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
):
    """Gradients are clipped at their true size, and not at the scaled one."""
    norms = norms_seen(monkeypatch)
    in_fp16(monkeypatch, init_scale=2.0**10, growth_interval=4)
    train(request(pictures, tmp_path / "run"))
    assert losses(tmp_path / "run") == pytest.approx(plain, rel=0.03)
    assert losses(tmp_path / "run") != plain
    assert norms == pytest.approx(plain_norms, rel=0.2) and len(norms) == len(plain)
    scaler = read_parts(tmp_path / "run")["scaler"]
    assert scaler["scale"] == 2.0 ** (10 + len(plain) // 4) and len(plain) >= 8


@pytest.mark.slow
def test_fp16_whose_scale_is_too_large_leaves_steps_out_and_goes_on(
    pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    in_fp16(monkeypatch, init_scale=2.0**40)
    train(request(pictures, tmp_path / "run", RICH, accumulate=2))
    parts = read_parts(tmp_path / "run")
    assert 0 < parts["scaler"]["scale"] < 2.0**40
    assert all(math.isfinite(loss) for loss in losses(tmp_path / "run"))
    for part in ("model", "ema"):
        assert all(value.isfinite().all() for value in parts[part].values())


@pytest.mark.slow
def test_a_run_in_fp16_is_resumed_with_its_scale(
    pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    from tests.helpers.train import Stopper
    from training.loop import StoppedError

    in_fp16(monkeypatch, init_scale=2.0**14, growth_interval=3)
    train(request(pictures, tmp_path / "whole", RICH))
    with pytest.raises(StoppedError):
        train(request(pictures, tmp_path / "stopped", RICH, resume=True), Stopper("steps", 4))
    train(request(pictures, tmp_path / "stopped", RICH, resume=True))
    assert_same_run(tmp_path / "stopped", tmp_path / "whole")


@pytest.mark.parametrize(("fast", "taken"), [(True, torch.bfloat16), (False, torch.float16)])
def test_bfloat16_that_is_emulated_is_not_chosen(
    fast: bool, taken: torch.dtype, monkeypatch: pytest.MonkeyPatch
):
    """A T4 says that it supports it; what is asked is whether it does so itself."""
    monkeypatch.setattr(
        torch.cuda, "is_bf16_supported", lambda including_emulation=True: including_emulation or fast
    )
    monkeypatch.setattr(torch.amp, "GradScaler", lambda device, enabled: (device, enabled))
    autocast, scaler = set_up._precision("auto", torch.device("cuda"))
    assert autocast.args == ("cuda", taken) and scaler == ("cuda", not fast)


# ------------------------------------------------------------------------------------------------ compiled, layouts


@pytest.mark.slow
def test_compiled_and_channels_last_learn_the_same(
    pictures: Path, plain: list[float], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """Compiled as far as autograd's graphs; code for a CPU would take half a minute and is not what a GPU gets."""
    compiled, asked = torch.compile, []

    def compile_(module: nn.Module, **given: Any) -> Any:
        asked.append(given.pop("backend"))
        return compiled(module, backend="aot_eager", **given)

    monkeypatch.setattr(torch, "compile", compile_)
    torch.compiler.reset()
    train(request(pictures, tmp_path / "run", compile=True, channels_last=True))
    assert asked == ["inductor"]
    assert losses(tmp_path / "run") == pytest.approx(plain, rel=1e-3)
    assert not any("_orig_mod" in name for name in read_parts(tmp_path / "run")["model"])


@pytest.mark.slow
def test_compiled_then_distributed_is_one_model_still(tmp_path: Path):
    """The order that PyTorch asks for: the inner module is compiled, and DDP wraps it (docs/gpu.md has the address)."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Flatten(), nn.Linear(12, 3))
    task = ClassificationTask(model, torch.device("cpu"))
    task.setup_ema(0.5)
    task.compile(backend="aot_eager")
    dist.init_process_group("gloo", init_method=f"file://{tmp_path / 'store'}", rank=0, world_size=1)
    try:
        task.prepare_distributed()
        images, labels = torch.randn(4, 3, 2, 2), torch.tensor([0, 1, 2, 0])
        with task.no_sync():
            task(images, labels)["loss"].backward()
        task(images, labels)["loss"].backward()
        assert all(parameter.grad is not None for parameter in model.parameters())
        before = task.get_eval_model(ema=True)[1].weight.clone()
        with torch.no_grad():
            model[1].weight += 1
        task.update_ema(10**6)
        torch.testing.assert_close(task.get_eval_model(ema=True)[1].weight, before + 0.5)
        assert task.get_eval_model() is model
    finally:
        dist.destroy_process_group()


# --------------------------------------------------------------------------------------------------- pinned batches


@pytest.mark.filterwarnings("ignore:'pin_memory' argument")
def test_batches_for_a_gpu_are_those_of_a_cpu(pictures: Path, monkeypatch: pytest.MonkeyPatch):
    """Pinned uint8 that the device normalises, beside the step before; here a CPU stands in for it."""
    from timm.data import loader

    wanted: list[Any] = []

    class OnCpu(loader.PrefetchLoader):
        def __init__(self, batches: Any, mean: Any, std: Any, device: torch.device) -> None:
            wanted.append((device, batches.pin_memory, next(iter(batches))[0].dtype))
            super().__init__(batches, mean, std, device=torch.device("cpu"))

    monkeypatch.setattr(loader, "PrefetchLoader", OnCpu)
    data = open_data(DataSource(str(pictures)))
    recipe = Recipe(**{**PLAIN, "flip": 0.0, "color_jitter": 0.0, "erasing": 0.0})
    preprocessing, options = Preprocessing((32, 32), 32), LoaderOptions(workers=0)
    here, there = (
        make_loaders(data, recipe, preprocessing, World(0, 1, torch.device(kind)), options)
        for kind in ("cpu", "cuda")
    )
    assert wanted == [(torch.device("cuda"), True, torch.uint8)] and there.val.pin_memory
    for part in (here, there):
        part.order.set_position(0, 0)
    pairs = list(zip(here.train, there.train, strict=True))
    assert len(pairs) == here.steps == there.steps
    for (ours, labels), (theirs, same) in pairs:
        torch.testing.assert_close(theirs, ours, atol=1e-5, rtol=1e-5)
        assert torch.equal(labels, same)
    for (ours, _), (theirs, _) in zip(here.val, there.val, strict=True):
        assert torch.equal(ours, theirs)


# ------------------------------------------------------------------------------------------------- one process alone


def test_one_process_that_was_launched_asks_its_backend(monkeypatch: pytest.MonkeyPatch):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    launched = {
        "RANK": "0",
        "WORLD_SIZE": "1",
        "LOCAL_RANK": "0",
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
    }
    for name in launched:
        monkeypatch.delenv(name, raising=False)
    with join_world("cpu") as alone:
        assert alone.size == 1 and not dist.is_initialized()
    asked: list[torch.Tensor] = []
    monkeypatch.setattr(dist, "all_reduce", lambda value: asked.append(value))
    for name, value in launched.items():
        monkeypatch.setenv(name, value)
    with join_world("cpu") as world:
        assert dist.is_initialized() and dist.get_backend() == "gloo"
        assert (world.size, world.is_main, len(asked)) == (1, True, 1)
    assert not dist.is_initialized()
    with pytest.raises(KeyError), join_world("cpu"):
        raise KeyError
    assert not dist.is_initialized() and os.environ["WORLD_SIZE"] == "1"


@pytest.mark.parametrize("size", ["1", "2"])
def test_a_process_takes_the_gpu_of_its_number_and_nccl(size: str, monkeypatch: pytest.MonkeyPatch):
    asked: dict[str, Any] = {}
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "set_device", lambda device: asked.update(device=device))
    monkeypatch.setattr(
        dist, "init_process_group", lambda backend, device_id: asked.update(backend=backend, joined=device_id)
    )
    monkeypatch.setattr(dist, "destroy_process_group", lambda: asked.update(left=True))
    monkeypatch.setattr(dist, "all_reduce", lambda value: asked.update(asked=True))
    monkeypatch.setattr(torch, "ones", lambda *_, device: asked.update(on=device))
    for name, value in {
        "RANK": str(int(size) - 1),
        "LOCAL_RANK": "1",
        "WORLD_SIZE": size,
        "MASTER_ADDR": "a",
        "MASTER_PORT": "1",
    }.items():
        monkeypatch.setenv(name, value)
    with join_world("auto") as world:
        assert world.device == asked["device"] == asked["joined"] == torch.device("cuda", 1)
    assert asked["backend"] == "nccl" and asked["left"]
    assert ("asked" in asked) == (size == "1")

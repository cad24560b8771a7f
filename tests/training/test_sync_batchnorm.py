"""BatchNorm over two processes against PyTorch's own on the whole batch."""

from __future__ import annotations

import copy

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from tests.helpers.models import tiny_model
from tests.helpers.train import start_server
from training.sync_batchnorm import SyncBatchNorm2d, synchronise

pytestmark = pytest.mark.slow

PROCESSES, STEPS = 2, 2


def make_model() -> nn.Sequential:
    """Convolutions with two BatchNorms between, all with values that show when they are dropped."""
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.GELU(), nn.Conv2d(4, 5, 3), nn.BatchNorm2d(5, momentum=0.3), nn.Flatten(),
        nn.Linear(5 * 16, 3),
    )  # fmt: skip
    for norm in (model[1], model[4]):
        for tensor in (norm.weight, norm.bias, norm.running_mean, norm.running_var):
            nn.init.uniform_(tensor, 0.5, 1.5)
    return model.double()


def make_batch(step: int) -> tuple[Tensor, Tensor]:
    """Images whose halves differ in mean and spread, as shares of a batch do only more so."""
    generator = torch.Generator().manual_seed(step)
    images = torch.randn(6, 3, 8, 8, generator=generator, dtype=torch.float64)
    images[3:] = 3 * images[3:] + 2
    return images, torch.randn(6, 3, generator=generator, dtype=torch.float64)


def train(model: nn.Module, share: slice, results: dict[str, Tensor]) -> None:
    optimiser = torch.optim.SGD(model.parameters(), 0.05)
    for step in range(STEPS):
        images, targets = (part[share] for part in make_batch(step))
        images.requires_grad_()
        output = model(images)
        optimiser.zero_grad()
        (output - targets).square().mean().backward()
        optimiser.step()
        results |= {f"output {step}": output.detach(), f"image gradient {step}": images.grad}
    inner = model.module if isinstance(model, DistributedDataParallel) else model
    results |= {f"gradient {name}": p.grad for name, p in inner.named_parameters()}
    results |= inner.state_dict()
    results["eval"] = inner.eval()(make_batch(9)[0]).detach()


def a_process(rank: int, folder: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=PROCESSES)
    model = make_model()
    synchronise(model)
    results: dict[str, Tensor] = {}
    size = 6 // PROCESSES
    train(DistributedDataParallel(model), slice(rank * size, (rank + 1) * size), results)
    # half precision: 40 squared, 8 x 64 x 64 times, is beyond its range
    norm = SyncBatchNorm2d(1).train()
    half = 40 * torch.randn(8, 1, 64, 64, generator=torch.Generator().manual_seed(rank)).half()
    results["half"] = norm(half)
    results["half variance"] = norm.running_var
    torch.save(results, f"{folder}/{rank}.pt")
    dist.destroy_process_group()


@pytest.fixture(scope="module")
def parts(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Tensor]]:
    """What each of two processes found."""
    folder = tmp_path_factory.mktemp("processes")
    start_server()
    mp.start_processes(a_process, (str(folder),), PROCESSES, start_method="forkserver")
    return [torch.load(folder / f"{rank}.pt", weights_only=True) for rank in range(PROCESSES)]


@pytest.fixture(scope="module")
def whole() -> dict[str, Tensor]:
    """What one process finds with `nn.BatchNorm2d` on the whole batch."""
    results: dict[str, Tensor] = {}
    train(make_model(), slice(None), results)
    return results


def same(a: Tensor, b: Tensor) -> None:
    """Within the rounding of float32, in which BatchNorm computes here whatever it is given."""
    torch.testing.assert_close(a, b, rtol=1e-5, atol=3e-6)


def test_outputs(parts: list[dict[str, Tensor]], whole: dict[str, Tensor]) -> None:
    for step in range(STEPS):  # the second after a step of the optimiser
        same(torch.cat([part[f"output {step}"] for part in parts]), whole[f"output {step}"])


def test_gradients_of_images(parts: list[dict[str, Tensor]], whole: dict[str, Tensor]) -> None:
    """Each process has the mean loss of its own half, which is twice its part in that of the whole."""
    for step in range(STEPS):
        together = torch.cat([part[f"image gradient {step}"] for part in parts]) / PROCESSES
        same(together, whole[f"image gradient {step}"])


def test_gradients_of_weights_are_the_mean_that_ddp_makes(
    parts: list[dict[str, Tensor]], whole: dict[str, Tensor]
) -> None:
    names = [name for name in whole if name.startswith("gradient ")]
    assert "gradient 1.weight" in names and "gradient 0.weight" in names
    for part in parts:
        for name in names:
            same(part[name], whole[name])


def test_running_statistics_and_what_evaluation_makes_of_them(
    parts: list[dict[str, Tensor]], whole: dict[str, Tensor]
) -> None:
    for part in parts:
        for layer in (1, 4):
            for name in ("running_mean", "running_var", "num_batches_tracked"):
                same(part[f"{layer}.{name}"], whole[f"{layer}.{name}"])
        assert part["1.num_batches_tracked"] == STEPS
        same(part["eval"], whole["eval"])  # on one process's images alone, with no talk to the other


def test_half_precision_does_not_overflow(parts: list[dict[str, Tensor]]) -> None:
    images = [
        40 * torch.randn(8, 1, 64, 64, generator=torch.Generator().manual_seed(rank)) for rank in range(2)
    ]
    norm = nn.BatchNorm2d(1).train()
    expected = norm(torch.cat([i.half().float() for i in images])).split(8)
    for part, wanted in zip(parts, expected, strict=True):
        assert part["half"].dtype == torch.float16
        torch.testing.assert_close(part["half"].float(), wanted, rtol=2e-3, atol=2e-3)
        torch.testing.assert_close(part["half variance"], norm.running_var, rtol=1e-4, atol=0)


def test_alone_it_is_the_plain_one() -> None:
    plain, synced = make_model().train(), make_model().train()
    synchronise(synced)
    images = make_batch(0)[0]
    assert torch.equal(plain(images), synced(images))
    assert torch.equal(plain[1].running_var, synced[1].running_var)


def test_a_model_keeps_its_weights_and_their_names() -> None:
    model = tiny_model()
    before = copy.deepcopy(model.state_dict())
    synchronise(model)
    kinds = [type(m) for m in model.modules() if isinstance(m, nn.BatchNorm2d)]
    assert kinds == [SyncBatchNorm2d] * 4
    after = model.state_dict()
    assert list(after) == list(before) and all(torch.equal(before[name], after[name]) for name in before)


def test_the_half_batches_do_differ() -> None:
    """Or all of this would pass with no synchronisation."""
    images: Tensor = make_batch(0)[0]
    model = make_model().train()
    apart = torch.cat([copy.deepcopy(model)(images[:3]), copy.deepcopy(model)(images[3:])])
    assert (apart - model(images)).abs().max() > 0.1

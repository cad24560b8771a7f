"""Thresholds of quantization-aware training: of what the deployed layers see, and the same from any number of processes."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from calibration import thresholds as methods
from sit_deploy.data.datasets import ArrayImages, Data
from sit_deploy.errors import InputError
from sit_deploy.graph.deploy_form import to_deploy_form
from sit_deploy.preprocessing import Preprocessing
from sit_deploy.processes import World
from tests.helpers.models import (
    tiny_model,
)
from tests.helpers.rounding import MODELS, plain_thresholds
from training import qat, qat_calibration
from training.qat_calibration import choose_images
from training.sample_reader import SampleReader

HERE = World(0, 1, torch.device("cpu"))


def noise(count: int = 12, size: int = 64) -> Data:
    """Return pictures of noise, in three classes, to train on; none are held out."""
    draw = np.random.default_rng(0)
    pixels = ArrayImages(draw.integers(0, 256, (count, size, size), np.uint8), np.arange(count) % 3)
    return Data("noise", pixels, ArrayImages(pixels.pixels[:0], pixels.labels[:0]), None, 3)


def observed(
    model: nn.Module, data: Data, images: int, world: World = HERE, **options: Any
) -> dict[str, float]:
    return qat_calibration.calibrate(
        model,
        SampleReader(data.train, 0),
        choose_images(data, images, 0),
        Preprocessing.for_model(64),
        world,
        **options,
    )


@pytest.mark.parametrize("name", ["SiT", "dist token", "plain", "average with registers", "RMS norms"])
def test_it_observes_what_the_deployed_layers_see(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The largest values, image by image and over all of them; of the class token alone where that is all there is."""
    model, data = MODELS[name](), noise(6)
    monkeypatch.setattr(qat_calibration, "METHOD", "minmax")
    ours = observed(model.train(), data, 6)
    assert model.training and not any(m._forward_pre_hooks for m in model.modules())
    prepare = Preprocessing.for_model(64)
    batch = torch.stack([torch.from_numpy(prepare(data.train[i][0])) for i in range(6)])
    wanted = plain_thresholds(to_deploy_form(model, keep_value_bias=True), batch)
    if model.has_dist_token:
        del wanted["head"]
    assert ours.keys() == wanted.keys()
    assert ours == pytest.approx(wanted, rel=1.1e-3)  # scales are float16 numbers, rounded up
    assert all(np.float16(limit / 127) == np.float32(limit / 127) for limit in ours.values())
    few = observed(model, data, 2)
    assert all(few[node] <= ours[node] for node in ours) and few != ours


def test_thresholds_are_those_of_least_error(monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []
    monkeypatch.setattr(
        qat_calibration, "threshold", lambda *args: seen.append(args[1:]) or methods.threshold(*args)
    )
    found = observed(tiny_model(), noise(), 4)
    assert set(seen) == {("mse", "int8")}
    monkeypatch.setattr(qat_calibration, "METHOD", "minmax")
    widest = observed(tiny_model(), noise(), 4)
    assert all(found[node] <= widest[node] for node in widest)
    assert sum(found[node] < 0.995 * widest[node] for node in widest) > 15


@pytest.mark.slow
def test_shares_of_processes_add_up_to_what_one_sees() -> None:
    """Two processes in turn: what one has observed is kept for the other."""

    class Two(World):
        def gather(self, value: Any) -> list[Any]:
            shares[self.rank] = value
            return [shares[rank] for rank in sorted(shares)]

    model, data = tiny_model(), noise(9)
    shares: dict[int, Any] = {}
    first = observed(model, data, 5, Two(0, 2, HERE.device))
    both = observed(model, data, 5, Two(1, 2, HERE.device))
    assert both == observed(model, data, 5) != first
    assert [shares[rank]["head"].images for rank in (0, 1)] == [3, 2]


def test_activations_that_are_dead_or_not_finite_are_named() -> None:
    model = tiny_model()
    nn.init.zeros_(model.blocks[1].mlp.fc1.weight)
    nn.init.zeros_(model.blocks[1].mlp.fc1.bias)
    thresholds = observed(model, noise(), 2)
    with pytest.raises(InputError, match=r"the input of blocks\.1/mlp/fc2 has no range"):
        qat.quantize(model, thresholds)
    nn.init.constant_(model.blocks[3].mlp.fc1.bias, 3e38)
    nn.init.constant_(model.blocks[3].mlp.fc2.weight, 3e38)
    with pytest.raises(InputError, match=r"the input of blocks\.3/mlp/fc2 is not finite"):
        observed(model, noise(), 2)


def test_fewer_images_than_asked_for() -> None:
    with pytest.raises(InputError) as error:
        observed(tiny_model(), noise(12), 13)
    assert str(error.value) == "noise has 12 images to train on, fewer than --qat-images 13; pass fewer"

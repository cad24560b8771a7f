"""Fitting token slimming modules to what the unslimmed model computes: its features, the loss, and what is fitted and what is not."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from sit_deploy.errors import InputError
from tests.helpers.models import OF_EACH_KIND, images, tiny_model
from tests.helpers.train import differences
from training.sample_reader import SampleReader
from training.slim import Pictures
from training.slim_features import Features, FrozenFeatures, part_of, summaries_of, unslimmed
from training.slim_fit import fit_loss, fit_tsms
from training.slim_options import FitOptions


class Noise:
    """Samples that are their own preprocessed images."""

    def __init__(self, count: int, damaged: tuple[int, ...] = ()) -> None:
        self.pixels = torch.randn(count, 3, 64, 64, generator=torch.Generator().manual_seed(3))
        self.damaged, self.reads = damaged, 0

    def __len__(self) -> int:
        return len(self.pixels)

    def __getitem__(self, index: int) -> tuple[Any, int]:
        self.reads += 1
        if index in self.damaged:
            raise OSError("cut short")
        return self.pixels[index].numpy(), 0

    def describe(self, index: int) -> str:
        return f"picture {index}"


def features_of(model: nn.Module, samples: Noise, **options: Any) -> FrozenFeatures:
    return FrozenFeatures(model, SampleReader(samples, 2), lambda image: image, **options)  # type: ignore[arg-type]


# ------------------------------------------------------------------------------------------------------- the features


@torch.no_grad()
@pytest.mark.parametrize("name", OF_EACH_KIND)
def test_the_model_without_its_tsms(name: str) -> None:
    """The twin shares every weight, computes as the teacher of one stage does, and leaves the model as it is."""
    model = OF_EACH_KIND[name]()
    before, x = model(images(model)), images(model)
    twin = unslimmed(model)
    teacher = copy.deepcopy(model)
    teacher.slim_after, teacher.stage_blocks = {}, (model.depth,)
    assert torch.equal(twin(x), teacher(x)) and not torch.equal(twin(x), before)
    assert torch.equal(model(x), before)
    assert all(a is b for a, b in zip(twin.parameters(), model.parameters(), strict=True))


@torch.no_grad()
@pytest.mark.parametrize("name", OF_EACH_KIND)
def test_features_are_what_the_blocks_compute(name: str) -> None:
    model, samples = OF_EACH_KIND[name](), Noise(5)
    with features_of(model, samples) as features:
        found = features.of([4, 1])
    x = samples.pixels[[4, 1]]
    tokens, rotary = model.forward_to(1, x)
    assert features.block == 1 and torch.equal(found.tokens, tokens)
    twin = unslimmed(model)
    torch.testing.assert_close(found.logits, twin(x))
    whole, n = twin.forward_from(1, tokens, rotary), model.num_prefix_tokens
    rows = [whole.tokens[-1][:, :n]]
    if getattr(model, "global_pool", "token") == "avg":
        rows.append(whole.tokens[-1][:, n:].mean(1, keepdim=True))
    torch.testing.assert_close(found.summaries[:, -1], torch.cat(rows, 1))
    assert found.summaries.shape[1] == model.depth - 2


@pytest.mark.parametrize("room", [0, 3, 100])
def test_features_are_the_same_however_much_is_kept(room: int) -> None:
    model, samples = tiny_model(), Noise(8)
    with features_of(model, samples) as features:
        expected = features.of(range(8))
        row = sum(getattr(expected, f)[0].numel() * 4 for f in ("tokens", "logits", "summaries"))
    samples.reads = 0
    with features_of(model, samples, cache_bytes=room * row + row // 2) as features:
        for indices in ([1, 2], [2, 5, 1, 0], [7, 6, 5, 4, 3, 2, 1, 0], [3, 3, 4]):
            found = features.of(indices)
            for field in ("tokens", "logits", "summaries"):
                torch.testing.assert_close(getattr(found, field), getattr(expected, field)[indices])
    assert (samples.reads == 8) == (room == 100)


def test_views_are_parts_of_images(wide_pictures: Path) -> None:
    """Each view has a number of its own, is the same each time, and shows most of the image at its size."""
    image = Image.linear_gradient("L").convert("RGB").resize((60, 40))
    parts = [part_of(image, seed) for seed in (1, 1, 2)]
    assert all(part.size == image.size for part in parts)
    assert parts[0].tobytes() == parts[1].tobytes() != parts[2].tobytes() != image.tobytes()
    low, high = image.getextrema()[0]
    seen = parts[0].getextrema()[0]
    assert 0.8 * (high - low) < seen[1] - seen[0] <= high - low  # the root of three quarters is 0.87

    path = next((wide_pictures / "val" / "ant").iterdir())
    reader = SampleReader(Pictures([(path, 0), (path, 0)]), 0)

    def pixels(image: Image.Image) -> Any:
        return np.asarray(image.resize((64, 64)), np.float32).transpose(2, 0, 1) / 255

    with FrozenFeatures(tiny_model(), reader, pixels, views=3) as features:  # type: ignore[arg-type]
        found = features.of(range(6)).logits
    assert len(features) == 6 and torch.allclose(found[0], found[1])
    assert len({tuple(row.tolist()) for row in found[1:]}) == 5


def test_damaged_images_give_way_and_too_many_are_refused() -> None:
    model = tiny_model()
    with features_of(model, Noise(8, damaged=(2, 3))) as features:
        found = features.of([2, 4])
        assert torch.equal(found.tokens[0], found.tokens[1]) and int(features.reader.damaged.sum()) == 2
    with (
        features_of(model, Noise(8, damaged=(2, 3, 4))) as features,
        pytest.raises(InputError, match=r"3 images cannot be .*picture 4"),
    ):
        features.of([2])


def test_weights_that_are_no_numbers_are_refused() -> None:
    model = tiny_model()
    with torch.no_grad():
        model.blocks[3].mlp.fc1.weight[0, 0] = float("nan")
    with features_of(model, Noise(2)) as features, pytest.raises(InputError, match="no finite numbers"):
        features.of([0])


# --------------------------------------------------------------------------------------------------------- the fitting


@torch.no_grad()
def test_the_loss_is_its_formula() -> None:
    model, samples = tiny_model(), Noise(4)
    with features_of(model, samples) as features:
        batch = features.of(range(4))
    variance = torch.rand(model.depth - 2, 1, 1) + 0.5
    output = model.forward_from(1, batch.tokens)
    p, q = batch.logits.double().softmax(1), model(samples.pixels).double().softmax(1)
    kl = (p * (p / q).log()).sum(1).mean()
    error = torch.stack([x[:, :1] for x in output.tokens[1:]], 1) - batch.summaries
    expected = kl + (error**2 / variance).mean()
    torch.testing.assert_close(
        fit_loss(model, batch, 1, None, variance).double(), expected, rtol=1e-5, atol=1e-7
    )


def test_a_model_that_needs_nothing_has_no_loss() -> None:
    """Fitted to what it gives itself, the loss is 0."""
    model = tiny_model()
    tokens = torch.randn(3, 17, 32)
    output = model.forward_from(1, tokens)
    same = Features(tokens, output.logits, summaries_of(output, model))
    assert fit_loss(model, same, 1, None, torch.ones(4, 1, 1)).abs() < 1e-6


@pytest.mark.parametrize("name", OF_EACH_KIND)
def test_tsms_alone_are_fitted_and_fit(name: str) -> None:
    model = OF_EACH_KIND[name]()
    model.blocks[0].requires_grad_(False)
    before, needed = copy.deepcopy(model.state_dict()), [p.requires_grad for p in model.parameters()]
    with features_of(model, Noise(16)) as features:
        fit = fit_tsms(model, features, FitOptions(None, 30, batch_size=8))
    after = model.state_dict()
    changed = {key for key in after if not torch.equal(before[key], after[key])}
    assert changed and all(key.startswith("tsm.") for key in changed)
    assert {key.split(".")[1] for key in changed} == {"0", "1", "2"}
    assert (fit.steps, fit.last_loss < 0.8 * fit.first_loss) == (30, True)
    assert [p.requires_grad for p in model.parameters()] == needed
    assert all(p.grad is None for p in model.parameters()) and not model.training


def test_the_same_steps_and_seed_give_the_same_weights() -> None:
    def fitted(seed: int) -> dict[str, torch.Tensor]:
        model = tiny_model()
        with features_of(model, Noise(16)) as features:
            fit_tsms(model, features, FitOptions(None, 5, batch_size=8, seed=seed))
        return model.tsm.state_dict()

    assert differences(fitted(0), fitted(0)) == [] and differences(fitted(0), fitted(1)) != []


def test_seconds_end_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """By a clock on which every look takes a second."""
    ticks = iter(range(1000))
    monkeypatch.setattr("training.slim_fit.time.perf_counter", lambda: float(next(ticks)))
    model, shown = tiny_model(), []
    with features_of(model, Noise(16)) as features:
        fit = fit_tsms(model, features, FitOptions(9.0, batch_size=8), lambda *now: shown.append(now))
    assert fit.steps == 4 and shown == [
        (pytest.approx(2 * n / 9), n, loss) for n, (*_, loss) in enumerate(shown, 1)
    ]
    with features_of(model, Noise(16)) as features:
        assert fit_tsms(model, features, FitOptions(1e-9, batch_size=8)).steps == 1


def test_a_learning_rate_that_breaks_it_is_said() -> None:
    model = tiny_model()
    with torch.no_grad():
        model.tsm[0].scale.fill_(float("inf"))
    with (
        features_of(model, Noise(16)) as features,
        pytest.raises(InputError, match=r"after 0 steps.*smaller --lr"),
    ):
        fit_tsms(model, features, FitOptions(None, 5, batch_size=8))


@pytest.mark.parametrize("alike", [False, True])
def test_a_step_of_one_image_is_fitted_to_what_many_differ_by(alike: bool) -> None:
    """One image does not differ from itself: over that variance, the loss would be of nothing else, and in the billions."""
    losses: dict[int, list[float]] = {1: [], 8: []}
    for batch, shown in losses.items():
        model, samples = tiny_model(), Noise(8)
        if alike:
            samples.pixels[:] = samples.pixels[:1].clone()
        with features_of(model, samples) as features:
            fit = fit_tsms(model, features, FitOptions(None, 2, batch, lr=1e-5))
        shown += fit.first_loss, fit.last_loss
    assert max(losses[1]) < 3 * max(losses[8]) < 1e8


def test_fewer_images_than_a_step() -> None:
    model = tiny_model()
    with (
        features_of(model, Noise(3)) as features,
        pytest.raises(InputError, match="3 images are fewer than the 8"),
    ):
        fit_tsms(model, features, FitOptions(None, 5, batch_size=8))

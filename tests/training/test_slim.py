"""Slimming without labels: what is fitted and what is not, what is compared, and what is written."""

from __future__ import annotations

import copy
import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from torch import nn

from sit_deploy.errors import InputError
from sit_deploy.models.card_file import read_card
from sit_deploy.models.load import load_model
from sit_deploy.preprocessing import load_image
from tests.helpers.models import images, tiny_eva, tiny_model, tiny_vit
from tests.helpers.train import differences
from training.reporter import Silent
from training.sample_reader import SampleReader
from training.seeding import FIT, permutation
from training.slim import Pictures, slim
from training.slim_features import Features, FrozenFeatures, part_of, summaries_of, unslimmed
from training.slim_fit import fit_loss, fit_tsms
from training.slim_options import FitOptions
from training.slim_request import SlimRequest

MODELS: dict[str, Callable[[], nn.Module]] = {
    "sit": tiny_model,
    "sit with a dist token": lambda: tiny_model(dist_token=True),
    "vit": tiny_vit,
    "average without class token": lambda: tiny_vit("average without class token"),
    "rotary": lambda: tiny_eva("EVA-02"),
}


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
@pytest.mark.parametrize("name", MODELS)
def test_the_model_without_its_tsms(name: str) -> None:
    """The twin shares every weight, computes as the teacher of one stage does, and leaves the model as it is."""
    model = MODELS[name]()
    before, x = model(images(model)), images(model)
    twin = unslimmed(model)
    teacher = copy.deepcopy(model)
    teacher.slim_after, teacher.stage_blocks = {}, (model.depth,)
    assert torch.equal(twin(x), teacher(x)) and not torch.equal(twin(x), before)
    assert torch.equal(model(x), before)
    assert all(a is b for a, b in zip(twin.parameters(), model.parameters(), strict=True))


@torch.no_grad()
@pytest.mark.parametrize("name", MODELS)
def test_features_are_what_the_blocks_compute(name: str) -> None:
    model, samples = MODELS[name](), Noise(5)
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


@pytest.mark.parametrize("name", MODELS)
def test_tsms_alone_are_fitted_and_fit(name: str) -> None:
    model = MODELS[name]()
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


# -------------------------------------------------------------------------------------------------------- the command


pytest_nano = pytest.mark.usefixtures("small_nano")


def request(teacher: Path, pictures: Path, output: Path, **options: Any) -> SlimRequest:
    values = {
        "checkpoint": teacher / "model.safetensors",
        "batch_size": 8,
        "steps": 40,
        "device": "cpu",
        **options,
    }
    return SlimRequest("sit_nano", pictures / "train", output, **values)


@pytest.mark.slow
@pytest_nano
def test_images_that_cannot_be_read_are_in_no_figure(
    wide_pictures: Path, teacher: Path, tmp_path: Path
) -> None:
    """What stands in for them counts once, as itself."""
    pictures = Path(shutil.copytree(wide_pictures, tmp_path / "pictures"))
    files = sorted((pictures / "train").rglob("*.png"))
    order = [files[i] for i in permutation(len(files), FIT, 0)]
    bad = [order[1], order[10], next((pictures / "val").rglob("*.png"))]
    for file in bad:
        file.write_bytes(b"no picture")
    told: list[str] = []

    class Told(Silent):
        def warn(self, text: str) -> None:
            told.append(text)

    asked = request(teacher, pictures, tmp_path / "student.safetensors", val_data=str(pictures / "val"))
    result = slim(asked, Told())
    assert (result.images, result.held_out, result.damaged_images, result.labelled) == (43, 3, 2, 28)
    assert any(result.end.same == pytest.approx(100 * same / 3) for same in range(4))
    damaged = [text for text in told if "cannot be read" in text]
    assert len(damaged) == 3 and all(any(f.name in text for text in damaged) for f in bad)


@pytest.mark.slow
@pytest_nano
def test_a_student_and_its_card(wide_pictures: Path, teacher: Path, tmp_path: Path) -> None:
    """The backbone is the teacher's to the bit, the student agrees with it better than at its start, and the file says what it is."""
    file = tmp_path / "student.safetensors"
    result = slim(request(teacher, wide_pictures, file, val_data=str(wide_pictures / "val")))
    assert sorted(p.name for p in tmp_path.iterdir()) == ["student.json", "student.safetensors"]
    taught = load_model("lvvit_nano", teacher / "model.safetensors", 48).model.state_dict()
    loaded = load_model("sit_nano", file, 48)
    weights = loaded.model.state_dict()
    assert {k for k in weights if k not in taught} == {k for k in weights if k.startswith("tsm.")}
    assert all(torch.equal(weights[k], taught[k]) for k in taught if not k.startswith("aux_head."))

    assert (result.images, result.held_out, result.labelled, result.fit.steps) == (44, 4, 29, 40)
    assert result.end.kl < result.start.kl and result.fit.last_loss < result.fit.first_loss
    card, theirs = read_card(file), read_card(teacher / "model.safetensors")
    assert card is not None and theirs is not None
    assert (card.name, card.tokens, card.stages) == ("sit_nano", result.tokens, (1, 1, 1, 1))
    assert (card.classes, card.preprocessing) == (theirs.classes, theirs.preprocessing)
    assert card.metrics["top1"] == result.top1 and card.metrics["agreement"] == result.end.same
    assert json.loads((tmp_path / "student.json").read_text()) == card.to_dict()
    # the accuracy that is told is the file's
    samples = [
        (p, label)
        for label, name in enumerate(card.classes or ())
        for p in sorted((wide_pictures / "val" / name).iterdir())
    ]
    pixels = torch.stack([torch.from_numpy(card.preprocessing(load_image(p))) for p, _ in samples])
    with torch.no_grad():
        right = loaded.model(pixels).argmax(1) == torch.tensor([label for _, label in samples])
    assert result.top1 == pytest.approx(100 * right.float().mean().item())


@pytest.mark.slow
@pytest_nano
def test_the_same_request_gives_the_same_file(wide_pictures: Path, teacher: Path, tmp_path: Path) -> None:
    wanted = request(teacher, wide_pictures, tmp_path / "a.safetensors", steps=4)
    slim(wanted)
    first = load_model("sit_nano", tmp_path / "a.safetensors", 48).model.state_dict()
    slim(replace(wanted, force=True))
    again = load_model("sit_nano", tmp_path / "a.safetensors", 48).model.state_dict()
    assert differences(first, again) == []


@pytest.mark.slow
@pytest_nano
def test_agreement_of_a_model_that_always_says_the_same_is_in_doubt(
    wide_pictures: Path, teacher: Path, tmp_path: Path
) -> None:
    """The student agrees with it whatever it does."""
    (tmp_path / "train").mkdir()
    for i in range(100):
        Image.new("RGB", (48, 48), (200, 30, 30)).save(tmp_path / "train" / f"{i}.png")
    result = slim(request(teacher, tmp_path, tmp_path / "a.safetensors", steps=1))
    assert result.end.same == 100.0 and result.start.classes == 1
    assert "agreement says nothing; check the weights, the preprocessing (--mean, --std)" in str(result.doubt)
    assert result.to_dict()["doubt"] == result.doubt
    sound = replace(result, start=replace(result.start, classes=2))
    assert sound.doubt is None


@pytest.mark.slow
@pytest_nano
def test_what_ends_it_leaves_nothing(
    wide_pictures: Path, teacher: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stop(share: float, step: int, loss: float) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("training.reporter.Silent.fitting", staticmethod(stop))
    with pytest.raises(KeyboardInterrupt):
        slim(request(teacher, wide_pictures, tmp_path / "a.safetensors"))
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_cannot_be_written_is_said_before_anything_is_fitted(
    wide_pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    wanted = request(tmp_path, wide_pictures, tmp_path / "a.safetensors", checkpoint=None, pretrained=True)
    monkeypatch.setattr("training.slim_request.os.access", lambda *_: False)
    with pytest.raises(InputError, match="cannot be written to; choose another -o"):
        wanted.destination("sit_nano")


@pytest.mark.slow
@pytest_nano
def test_one_output_is_slimmed_as_two_and_few_images_tell_nothing(
    wide_pictures: Path, teacher: Path, tmp_path: Path
) -> None:
    weights = load_file(teacher / "model.safetensors")
    one = {key: value[:1].clone() if "head." in key else value for key, value in weights.items()}
    save_file(one, tmp_path / "one.safetensors")
    wanted = request(
        teacher,
        wide_pictures,
        tmp_path / "a.safetensors",
        checkpoint=tmp_path / "one.safetensors",
        steps=1,
        image_size=48,
    )
    with pytest.raises(InputError, match="pass --num-classes 2"):
        slim(wanted)
    result = slim(replace(wanted, num_classes=2))
    assert load_model("sit_nano", result.weights, 48).model.num_classes == 2
    assert "agreement is that of 4 images kept apart" in str(result.doubt)


@pytest.mark.slow
@pytest_nano
def test_seconds_that_suffice_for_nothing_are_said(
    wide_pictures: Path, teacher: Path, tmp_path: Path
) -> None:
    class Notes(Silent):
        def note(self, text: str) -> None:
            notes.append(text)

    notes: list[str] = []
    slim(request(teacher, wide_pictures, tmp_path / "a.safetensors", seconds=1e-6, steps=None), Notes())
    assert any("1 step in" in note and "pass more --seconds" in note for note in notes)
    notes.clear()
    slim(request(teacher, wide_pictures, tmp_path / "b.safetensors", steps=1), Notes())
    assert not any("fit next to nothing" in note for note in notes)


def test_pictures_are_decoded_when_they_are_asked_for(wide_pictures: Path) -> None:
    path = next((wide_pictures / "val" / "ant").iterdir())
    made = Pictures([(path, 3)])
    image, label = made[0]
    assert (image.size, label, made.describe(0)) == ((48, 48), 3, str(path))

"""The judge of slimmed models: figures against torch's own, levels within the seconds given, labels that stay with their images."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from sit_deploy.latency.schedule import Schedule
from sit_deploy.preprocessing import Preprocessing
from sit_deploy.search.judge import Judge, closeness, level_counts

PREPROCESSING = Preprocessing((8, 8), 8)
UNSLIMMED, SLIM = Schedule((2,), (4,)), Schedule((1, 1), (4, 2))


def test_divergence_is_torchs():
    chance = np.random.default_rng(0)
    reference, logits = chance.normal(size=(2, 12, 5)).astype(np.float32) * 4
    expected = F.kl_div(
        torch.from_numpy(logits).log_softmax(1), torch.from_numpy(reference).softmax(1), reduction="batchmean"
    )
    score = closeness(reference, logits, [0] * 12)
    assert score.divergence == pytest.approx(float(expected), rel=1e-5)
    assert score.agreement == (reference.argmax(1) == logits.argmax(1)).mean()
    assert score.top1 == 100 * (logits.argmax(1) == 0).mean() and score.images == 12


def test_the_same_logits_diverge_by_nothing():
    logits = np.random.default_rng(1).normal(size=(6, 9)).astype(np.float32) * 30
    same = closeness(logits, logits)
    assert same.divergence == 0 and same.agreement == 1 and same.top1 is None
    assert closeness(logits, logits + 100).divergence < 1e-9


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_what_is_not_finite_is_as_far_off_as_can_be(value):
    logits = np.zeros((3, 4), np.float32)
    broken = logits.copy()
    broken[1, 2] = value
    score = closeness(logits, broken)
    assert score.agreement == 0 and score.divergence > 1e30


class Model(torch.nn.Module):
    """Logits that tell which image it was; `noise` is what a schedule adds."""

    def __init__(self, noise=0.0):
        super().__init__()
        self.noise, self.seen = noise, 0

    def forward(self, images):
        self.seen += len(images)
        mean = images.mean(dim=(1, 2, 3))
        return torch.stack((mean, self.noise - mean, mean * 0), dim=1)


def judge(models, count=40, labels=None, **more):
    pixels = np.arange(count, dtype=np.uint8)[:, None, None, None] * np.ones((1, 8, 8, 3), np.uint8) * 5
    return Judge(models.__getitem__, UNSLIMMED, pixels, PREPROCESSING, labels, **more)


def test_levels_take_what_the_seconds_allow():
    models = {UNSLIMMED: Model(), SLIM: Model(1.0)}
    one = judge(models, counts=(8, 16, 40))
    one.prepare(1.0)
    assert one.own.divergence == 0
    assert models[UNSLIMMED].seen == 40
    scores = [one(SLIM, level) for level in range(3)]
    assert [score.images for score in scores] == [8, 16, 40] and models[SLIM].seen == 64
    assert one(SLIM, 1) is scores[1] and models[SLIM].seen == 64  # known by now


def test_labels_stay_with_their_images():
    labels = [0 if i * 5 > 110 else 1 for i in range(40)]  # what the model tells by brightness, about
    models = {UNSLIMMED: Model(), SLIM: Model(0.5)}
    one = judge(models, labels=labels, counts=(10, 20, 40))
    one.prepare(1.0)
    own = one.own
    logits = Model()(torch.from_numpy(PREPROCESSING.normalise(one.pixels))).argmax(1).numpy()
    assert own.top1 == pytest.approx(100 * (logits == labels).mean()) and own.top1 > 70
    slim = Model(0.5)(torch.from_numpy(PREPROCESSING.normalise(one.pixels))).argmax(1).numpy()
    assert one(SLIM, 2).top1 == pytest.approx(100 * (slim == labels).mean())
    assert one.of_outputs(lambda images: Model(0.5)(torch.from_numpy(images)).numpy()) == one(SLIM, 2)


def test_a_beginning_of_the_images_is_spread_over_all():
    one = judge({UNSLIMMED: Model()}, count=200)
    first = sorted(one._order[:20])
    assert first[0] < 40 and first[-1] > 160


@pytest.mark.parametrize(
    ("images", "pace", "seconds"), [(1000, 0.001, 60), (5, 1.0, 1), (64, 1e-9, 600), (1000, 10, 1)]
)
def test_counts_rise_and_stay_within_the_images(images, pace, seconds):
    counts = level_counts(images, pace, seconds)
    assert list(counts) == sorted(counts) and counts[0] >= min(16, images) and counts[-1] <= images


def test_more_seconds_are_more_images():
    assert level_counts(10_000, 0.01, 600)[0] > level_counts(10_000, 0.01, 100)[0] >= 16

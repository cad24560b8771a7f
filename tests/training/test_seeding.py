"""Random numbers that follow from where they are used alone."""

from __future__ import annotations

import random

import numpy as np
import pytest
import torch

from training.seeding import ORDER, SAMPLE, STEP, permutation, seed_all

DRAWS = {
    "python": lambda: random.random(),
    "numpy": lambda: float(np.random.rand()),
    "torch": lambda: float(torch.rand(())),
}


@pytest.mark.parametrize("draw", DRAWS.values(), ids=DRAWS)
def test_every_generator_follows_from_the_keys_and_not_from_what_was_drawn_before(draw) -> None:
    seed_all(SAMPLE, 0, 1, 2)
    first = [draw() for _ in range(3)]
    for _ in range(5):
        draw()
    seed_all(SAMPLE, 0, 1, 2)
    assert [draw() for _ in range(3)] == first


@pytest.mark.parametrize("draw", DRAWS.values(), ids=DRAWS)
def test_no_two_places_share_a_stream(draw) -> None:
    """Neighbours in every key. Of 960 fair draws of 24 bits two coincide once in forty runs, three pairs never."""
    keys = [
        (kind, seed, epoch, place)
        for kind in (ORDER, SAMPLE, STEP)
        for seed in range(4)
        for epoch in range(4)
        for place in range(20)
    ]
    drawn = set()
    for key in keys:
        seed_all(*key)
        drawn.add(draw())
    assert len(drawn) >= len(keys) - 2


def test_gpus_are_seeded_as_the_cpu_is_where_they_are_in_use(monkeypatch: pytest.MonkeyPatch) -> None:
    seeds: list[int] = []
    monkeypatch.setattr(torch.cuda, "manual_seed_all", seeds.append)
    for in_use in (False, True):
        monkeypatch.setattr(torch.cuda, "is_initialized", lambda in_use=in_use: in_use)
        seed_all(STEP, 0, 1, 2)
        assert seeds == [torch.initial_seed()] * in_use


def test_generators_do_not_run_alike() -> None:
    """The three get words of their own: a torch and a NumPy mask of one sample must not be the same."""
    seed_all(7)
    ours = (int(np.random.get_state()[1][0]), torch.initial_seed())
    assert len({*ours, 7}) == 3


def test_a_permutation_is_one_and_follows_from_its_keys() -> None:
    order = permutation(50, ORDER, 0, 3)
    assert order.dtype == np.int64
    assert sorted(order.tolist()) == list(range(50)) != order.tolist()
    assert (permutation(50, ORDER, 0, 3) == order).all()
    for other in ((ORDER, 0, 4), (ORDER, 1, 3), (SAMPLE, 0, 3)):
        assert (permutation(50, *other) != order).any()


def test_a_permutation_neither_uses_nor_moves_the_global_generators() -> None:
    np.random.seed(5)
    expected = np.random.rand(2)
    np.random.seed(5)
    first = np.random.rand()
    permutation(50, ORDER, 0, 3)
    assert (first, np.random.rand()) == tuple(expected)


def test_places_of_a_permutation_are_fair() -> None:
    """Over 400 epochs each of 5 images comes first about 80 times; 5 standard deviations (8) are 40."""
    first = np.bincount([permutation(5, ORDER, 0, epoch)[0] for epoch in range(400)], minlength=5)
    assert (abs(first - 80) < 40).all()

"""Randomness without history: every random number follows from where it is used, not from what was drawn before.

A sample's augmentation is seeded by (seed, epoch, place in the epoch), a step's mixup and dropped paths by (seed,
epoch, step, rank). So a run that is resumed in the middle of an epoch, with any number of workers, goes on exactly as
if it had never stopped, and two processes see the very images that one would.
"""

from __future__ import annotations

import random

import numpy as np
import torch

# what the first key says the numbers are for, so that no two uses share a stream
ORDER, SAMPLE, STEP, CALIBRATION, FIT = 1, 2, 3, 4, 5


def seed_all(*keys: int) -> None:
    """Seed the generators of Python, NumPy and PyTorch (every device in use) from non-negative integers."""
    words = np.random.SeedSequence(keys).generate_state(4)
    random.seed(int(words[0]))
    np.random.seed(int(words[1]))
    word = int(words[2]) << 16 ^ int(words[3])
    # torch.manual_seed would also queue this for every kind of device that is not in use, each time with the whole call stack.
    torch.default_generator.manual_seed(word)
    if torch.cuda.is_initialized():
        torch.cuda.manual_seed_all(word)


def permutation(count: int, *keys: int) -> np.ndarray:
    """Return a random order of range(count), int64 (count,), that follows from the keys."""
    return np.random.default_rng(np.random.SeedSequence(keys)).permutation(count)

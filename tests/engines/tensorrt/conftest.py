from __future__ import annotations

import gc

import pytest


@pytest.fixture(scope="module", autouse=True)
def only_what_a_test_makes() -> None:
    """Let tests that collect garbage search what they made, and not what has been there since before them: that takes long."""
    gc.collect()
    gc.freeze()

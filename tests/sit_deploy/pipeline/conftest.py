"""Models that are quick to export."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.helpers.train import configured


@pytest.fixture(scope="module")
def half_the_blocks() -> Iterator[None]:
    """sit_nano and lvvit_nano have half of theirs in this module, which takes no bundle that others share."""
    with configured(sit_nano={"stage_blocks": (1, 1, 1, 1)}, lvvit_nano={"stage_blocks": (4,)}):
        yield

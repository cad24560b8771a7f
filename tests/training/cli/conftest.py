"""Pictures and a teacher for commands that train."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.helpers.shared import shared
from tests.helpers.train import write_pictures


@pytest.fixture(scope="session")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """48 pictures of 48x48 to train on and 24 held out, of six classes. Do not write into it."""
    return shared(tmp_path_factory, "pictures-48", lambda root: write_pictures(root, train=8, val=4, size=48))


@pytest.fixture(scope="session")
def teacher(teacher: Path) -> Path:
    """Weights of an lvvit_nano trained on pictures of the same classes. Do not write beside them."""
    return teacher / "model.safetensors"

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from sit_deploy.bundle import load_bundle
from sit_deploy.errors import InputError
from sit_deploy.models.load import load_model
from sit_deploy.validation.reference import reference_model, reference_weights
from tests.sit_deploy.conftest import CLASSES, Trained


def test_random_weights_come_back(nano_fp32: Path) -> None:
    bundle = load_bundle(nano_fp32)
    assert reference_weights(bundle) is None
    ours, again = reference_model(bundle).state_dict(), load_model("sit_nano").model.state_dict()
    assert all(torch.equal(ours[key], again[key]) for key in again)


def test_random_weights_have_no_checkpoint(nano_fp32: Path, trained: Trained) -> None:
    with pytest.raises(InputError, match="was built from random weights; leave --checkpoint out"):
        reference_weights(load_bundle(nano_fp32), trained.checkpoint)


def test_the_checkpoint_it_was_built_from(trained: Trained) -> None:
    bundle = load_bundle(trained.bundle)
    assert reference_weights(bundle) == trained.checkpoint
    model = reference_model(bundle)
    assert (model.num_classes, model.training) == (len(CLASSES), False)
    saved = torch.load(trained.checkpoint, weights_only=True)["model"]
    assert all(torch.equal(value, saved[key]) for key, value in model.state_dict().items())


def test_moved_and_changed_weights(trained: Trained, tmp_path: Path) -> None:
    bundle = load_bundle(trained.bundle)
    moved = Path(shutil.copy(trained.checkpoint, tmp_path / "moved.pth"))
    assert reference_weights(bundle, moved) == moved
    with pytest.raises(InputError, match=r"gone\.pth is not there; pass --checkpoint FILE"):
        reference_weights(bundle, tmp_path / "gone.pth")
    content = bytearray(moved.read_bytes())
    content[len(content) // 2] ^= 1
    moved.write_bytes(content)
    with pytest.raises(InputError, match=r"not the checkpoint that .* was built from \(its hash differs\)"):
        reference_model(bundle, moved)


def test_looking_for_the_weights_is_quick(trained: Trained) -> None:
    """`bench` looks before it starts its workers, and need not wait for torch to say that the file is gone."""
    code = f"""
import sys, json
from sit_deploy.bundle import load_bundle
from sit_deploy.validation.reference import reference_weights
found = reference_weights(load_bundle({str(trained.bundle)!r}))
print(json.dumps([str(found), "torch" in sys.modules]))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == [str(trained.checkpoint), False]

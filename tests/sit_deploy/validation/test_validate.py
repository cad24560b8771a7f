"""Validating from Python; the command line only words it (tests/sit_deploy/cli/test_validate.py)."""

from __future__ import annotations

from pathlib import Path

import pytest

import sit_deploy
from sit_deploy import ValidateRequest, Validation, validate
from tests.sit_deploy.conftest import Trained


def test_golden_outputs(nano_fp32: Path) -> None:
    found = validate(ValidateRequest(nano_fp32))
    assert isinstance(found, Validation)
    assert found.golden.passed and found.engine == "onnxruntime"
    assert (found.checked, found.layers, found.debug, found.to_dict()["accuracy"]) == (None, None, None, None)
    found.require()
    with pytest.raises(sit_deploy.InputError, match="give labelled images"):
        _ = found.accuracy


def test_accuracy_and_its_limits(trained: Trained) -> None:
    steps: list[tuple[str, int, int]] = []
    request = ValidateRequest(trained.bundle, data=trained.images, min_agreement=100, orientation=None)
    found = validate(request, lambda *step: steps.append(step))
    assert found.accuracy.images == steps[-1][1] == steps[-1][2] == 11
    assert found.to_dict()["accuracy"]["reference_top1"] == found.accuracy.reference_top1
    found.require()


def test_another_preprocessing_is_named(trained: Trained) -> None:
    found = validate(ValidateRequest(trained.bundle, data=trained.images, crop_pct=0.5)).to_dict()["accuracy"]
    assert found["preprocessing_overridden"]
    assert found["preprocessing_source"]["crop_pct"] == "the options, against the bundle"
    assert found["preprocessing"]["resize"] == 2 * found["preprocessing"]["size"][0]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"min_agreement": 99.0}, "need images with labels"),
        ({"images": 5}, "--images is for images with labels"),
        ({"mean": (0.5, 0.5, 0.5)}, "--mean is for images with labels"),
        ({"data": "digits/val", "max_accuracy_drop": 1.0, "crop_pct": 0.9}, "for the bundle as it is"),
        ({"engine": "onnxruntim"}, "onnxruntim"),
    ],
)
def test_what_is_refused(options: dict[str, object], message: str, nano_fp32: Path) -> None:
    with pytest.raises(sit_deploy.Error, match=message):
        validate(ValidateRequest(nano_fp32, **options))


def test_an_option_of_another_type_is_named(nano_fp32: Path) -> None:
    with pytest.raises(sit_deploy.InputError, match="threads of ValidateRequest: expected int"):
        ValidateRequest(nano_fp32, threads="two")

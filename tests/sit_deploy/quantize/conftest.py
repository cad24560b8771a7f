"""A quantizer, made once for all tests of a process."""

from __future__ import annotations

import pytest

from calibration.cache import Calibration
from sit_deploy.data.image_files import list_images
from sit_deploy.quantize.calibrate import CalibrationMethod, calibrate
from sit_deploy.quantize.image_stream import ImageStream
from sit_deploy.quantize.quantizer import Quantizer, make_quantizer
from tests.helpers.digits import Digits


@pytest.fixture(scope="session")
def stream(digits: Digits) -> ImageStream:
    return ImageStream(list_images(digits.images)[:8], digits.float_graph.preprocessing, "8 images")


@pytest.fixture(scope="session")
def calibration(digits: Digits, stream: ImageStream) -> Calibration:
    return calibrate(digits.float_graph.graph, stream, CalibrationMethod(name="minmax"))[0]


@pytest.fixture(scope="session")
def quantizer(digits: Digits, calibration: Calibration, stream: ImageStream) -> Quantizer:
    return make_quantizer(digits.float_graph.graph, calibration, stream)

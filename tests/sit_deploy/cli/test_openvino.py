"""The commands on an OpenVINO bundle."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from sit_deploy.bundle import load_bundle
from sit_deploy.data.image_files import list_images
from sit_deploy.inference import load
from tests.helpers.command_line import CommandLine
from tests.helpers.idle_call import IdleCall
from tests.sit_deploy.conftest import Trained

pytestmark = pytest.mark.slow

pytest.importorskip("openvino", reason="needs OpenVINO: pip install '.[openvino]'")


@pytest.fixture
def bundle(trained_openvino: Path) -> Path:
    return trained_openvino


def test_every_command(
    bundle: Path, trained: Trained, cli: CommandLine, monkeypatch: pytest.MonkeyPatch
) -> None:
    manifest = load_bundle(bundle).manifest
    assert (manifest.engine.kind, manifest.engine.file) == ("openvino", "engine.xml")
    assert "engine.bin" in manifest.files and "--engine openvino" in manifest.command
    checked = cli("validate", bundle, "--data", trained.images, "--json").json()
    assert checked["golden"]["passed"] and checked["accuracy"]["agreement"] == 100
    monkeypatch.setattr("sit_deploy.validation.bench.TorchCall", IdleCall)
    timed = cli("bench", bundle, "--rounds", 1, "--seconds", 0.01, "--json").json()
    assert set(timed["results"]) == {"PyTorch", "openvino"}
    assert timed["pytorch"] == {"device": "cpu", "dtype": "float32"}
    image = list_images(trained.images)[0]
    assert (
        cli("predict", bundle, image, "--json").json()[0]["classes"][0]["index"]
        == cli("predict", trained.bundle, image, "--json").json()[0]["classes"][0]["index"]
    )


def test_it_gives_what_onnxruntime_gives(bundle: Path, trained: Trained) -> None:
    files = list_images(trained.images)
    with load(bundle) as ours, load(trained.bundle) as theirs:
        logits = theirs(files)
        assert np.abs(ours(files) - logits).max() < 1e-4 * logits.std()


def test_its_graph_on_onnxruntime(bundle: Path, cli: CommandLine) -> None:
    assert cli("validate", bundle, "--engine", "onnxruntime", "--json").json()["engine"] == "onnxruntime"


def test_what_it_has_no_use_for(bundle: Path, cli: CommandLine) -> None:
    build = ("build", "--model", "sit_nano", "--engine", "openvino", "-o", "out")
    assert "OpenVINO has no fp8 kernels for a CPU" in cli.refuses(*build, "--precision", "fp8")
    assert "OpenVINO has no use for compute capabilities" in cli.refuses(*build, "--target", "sm89")


def test_its_layers(bundle: Path, cli: CommandLine) -> None:
    """Real ones, from OpenVINO's profiler: where the time goes is in products, whatever the machine."""
    found = cli("validate", bundle, "--layers", "--json").json()["layers"]["layers"]
    assert sum(row["share"] for row in found) == pytest.approx(1)
    assert [row["ms"] for row in found] == sorted((row["ms"] for row in found), reverse=True)
    kinds = {row["types"][0] for row in found}
    assert "Convolution" in kinds and kinds & {"FullyConnected", "MatMul"}, kinds


def test_a_file_of_the_engine_that_was_changed(bundle: Path, cli: CommandLine, copy_of) -> None:
    folder = copy_of(bundle)
    (folder / "engine.bin").write_bytes((folder / "engine.bin").read_bytes()[:-1])
    assert "engine.bin does not match its hash" in cli.refuses("validate", folder)

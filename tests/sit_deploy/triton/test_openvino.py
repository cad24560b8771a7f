"""Bundles of OpenVINO in Triton's Python backend: their own engine runs, on an OpenVINO that is beside the server."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from msgspec import structs

from sit_deploy.bundle import Bundle, load_bundle
from sit_deploy.errors import InputError
from sit_deploy.inference import load
from sit_deploy.triton import install, openvino, server
from sit_deploy.triton.install import install_server
from sit_deploy.triton.repository import write_repository
from tests.helpers.command_line import snapshot
from tests.sit_deploy.conftest import Trained
from tests.sit_deploy.triton.conftest import Running, serving


def of_openvino(path: Path, version: str = "2026.4.1") -> Bundle:
    """A bundle that says that its engine is OpenVINO's."""
    bundle = load_bundle(path)
    engine = structs.replace(bundle.manifest.engine, kind="openvino", version=version)
    return replace(bundle, manifest=structs.replace(bundle.manifest, engine=engine))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A server from before OpenVINO was beside it."""
    place = tmp_path / "triton"
    (place / "venv/lib/python3.11/site-packages/numpy").mkdir(parents=True)
    (place / "backends").mkdir()
    return place


def holding(folder: Path, version: str) -> Path:
    packages = server.packages_of(folder)
    (packages / f"openvino-{version}.dist-info").mkdir()
    (packages / "openvino").mkdir()
    (packages / "openvino/__init__.py").write_text(version)
    return packages


def test_which_release_a_server_needs(nano_fp32: Path, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ours, theirs = of_openvino(nano_fp32), load_bundle(nano_fp32)
    installation = server.Installation(folder / "tritonserver", folder / "backends", {})
    assert openvino.requirement(theirs) is None
    openvino.require(installation, theirs)
    with pytest.raises(
        InputError, match=r"has no OpenVINO, and .* needs 2026\.4\.1 or newer; run `sit-deploy"
    ):
        openvino.require(installation, ours)
    openvino.require(replace(installation, backends=None), ours)  # a container's, into which we do not look
    holding(folder, "2026.3.0")
    with pytest.raises(InputError, match=r"has OpenVINO 2026\.3\.0, and .* needs") as caught:
        openvino.require(installation, ours)
    assert f"serve --install --server-folder {folder} {nano_fp32}`" in str(caught.value)
    openvino.require(installation, of_openvino(nano_fp32, "2026.3.0"))
    monkeypatch.setattr(openvino.metadata, "version", lambda _: "2026.10.0")
    assert openvino.requirement(None) == "openvino>=2026.10.0" and not openvino.fits(
        folder, "openvino>=2026.10.0"
    )


@pytest.mark.parametrize("before", [None, "2025.1.0"])
def test_a_server_from_before_gets_it_whole_or_not_at_all(
    before: str | None, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    packages = holding(folder, before) if before else server.packages_of(folder)
    asked: list[Sequence[str]] = []

    def pip(_: Path, arguments: Sequence[str], wanted: Sequence[str] | None = None) -> None:
        asked.append(arguments)
        target = Path(arguments[arguments.index("--target") + 1])
        (target / "openvino").mkdir()
        (target / "openvino/__init__.py").write_text("new")
        if len(asked) == 1:
            raise InputError("openvino>=2026.4.1 cannot be installed (no room)")
        (target / "openvino-2026.4.1.dist-info").mkdir()
        (target / "bin").mkdir()

    monkeypatch.setattr(install, "_pip", pip)
    whole = snapshot(folder)
    with pytest.raises(InputError, match="no room"):
        install_server(folder, lambda *_: None, "openvino>=2026.4.1")
    assert snapshot(folder) == whole
    for _ in range(2):  # the second finds it there
        install_server(folder, lambda *_: None, "openvino>=2026.4.1")
    assert len(asked) == 2 and asked[1][-1] == "openvino>=2026.4.1"
    assert sorted(path.name for path in packages.iterdir()) == [
        "numpy",
        "openvino",
        "openvino-2026.4.1.dist-info",
    ]
    assert (packages / "openvino/__init__.py").read_text() == "new"
    assert sorted(path.name for path in folder.iterdir()) == ["backends", "venv"]


_PROGRAM = """
import json, sys, types
for name in ("sit_deploy", "engines", "calibration", "training", "onnx", "onnxruntime", *sys.argv[1:2]):
    sys.modules[name] = None
stub = types.ModuleType("triton_python_backend_utils")
stub.TritonModelException = type("TritonModelException", (Exception,), {})
sys.modules["triton_python_backend_utils"] = stub
if len(sys.argv) > 2:
    import sit_deploy_parts.openvino.runner as runner
    runner.has_bfloat16 = lambda _: False
import model
config = {"input": [{"name": "images"}], "output": [{"name": "logits"}], "instance_group": []}
config["parameters"] = {name: {"string_value": "1"} for name in ("batch_min", "batch_max", "threads")}
args = {"model_config": json.dumps(config), "model_repository": "..", "model_version": "1"}
try:
    model.TritonPythonModel().initialize(args)
except stub.TritonModelException as error:
    print(error)
"""


def said(model: Path, *words: str) -> str:
    """Load a model of a repository in a Python that has neither our packages nor ONNX; returns what it says."""
    done = subprocess.run(
        [sys.executable, "-c", _PROGRAM, *words], cwd=model / "1", capture_output=True, text=True, env={}
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.slow
def test_what_is_missing_is_one_line(trained_openvino: Path, tmp_path: Path) -> None:
    write_repository([(load_bundle(trained_openvino), serving())], tmp_path / "repo")
    net = tmp_path / "repo/net"
    assert said(net, "openvino") == (
        "OpenVINO is not installed in the server's Python, and this model is an engine of it; run `pip install openvino` there, or "
        "`sit-deploy serve BUNDLE --install`\n"
    )
    assert said(net) == ""
    (net / "1/engine.bin").unlink()
    assert said(net) == "../1/engine.bin: no such engine file\n"


@pytest.mark.slow
def test_a_cpu_without_bf16_is_one_line(trained_bf16: Path, tmp_path: Path) -> None:
    write_repository([(load_bundle(trained_bf16), serving())], tmp_path / "repo")
    line = said(tmp_path / "repo/net", "onnx", "no bf16")
    assert line.startswith("../1/engine.xml computes in bf16, which this CPU has no kernels for (it has ")
    assert (
        line.endswith("build it for this machine with --precision fp32 or int8\n") and line.count("\n") == 1
    )


@pytest.fixture(scope="module")
def triton(
    trained_openvino: Path,
    trained_bf16: Path,
    trained: Trained,
    installation: server.Installation,
    run_server: Callable[..., Any],
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[Running]:
    if installation.backends is None or openvino.installed(installation.backends.parent) is None:
        pytest.skip("needs OpenVINO beside the Triton server: sit-deploy serve --install")
    repository = tmp_path_factory.mktemp("triton") / "models"
    write_repository(
        [
            (load_bundle(trained_openvino), serving("net", ensemble=True)),
            (load_bundle(trained_bf16), serving("low", instances=2)),
            (load_bundle(trained.bundle), serving("graph")),
        ],
        repository,
    )
    with run_server(repository) as started:
        yield started


def written(running: Running, name: str) -> list[str]:
    version = running.log.with_suffix("") / name / "1"
    return sorted(
        str(path.relative_to(version)) for path in version.rglob("*") if path.suffix not in ("", ".py")
    )


@pytest.mark.slow
def test_the_bundles_own_engine_runs(triton: Running, trained_openvino: Path, trained_bf16: Path) -> None:
    """BF16's logits are far from FP32's, and the server's are those of the engine, to the bit where a batch is the same."""
    images, _ = load_bundle(trained_bf16).golden()
    found = {}
    with triton.client("grpc") as client:
        for name, path in (("net", trained_openvino), ("low", trained_bf16)):
            assert written(triton, name) == ["engine.bin", "engine.xml"]
            with load(path, threads=1) as classify:
                for size in (1, 2, len(images)):  # of an engine that takes 2 to 4
                    found[name] = triton.infer(client, name, images[:size])
                    assert np.array_equal(found[name], classify.logits(images[:size])), (name, size)
        assert written(triton, "graph") == ["engine.onnx"]
        graph = triton.infer(client, "graph", images)
    assert np.allclose(found["net"], graph, atol=1e-4)
    assert np.abs(found["low"] - graph).max() > 1e-3


@pytest.mark.slow
def test_two_copies_answer_requests_that_come_together(triton: Running, trained_bf16: Path) -> None:
    images, _ = load_bundle(trained_bf16).golden()
    with load(trained_bf16, threads=1) as classify, triton.client("grpc") as client:
        expected = classify.logits(images)

        def ask(number: int) -> np.ndarray:
            return triton.infer(client, "low", images[number % len(images)][None])

        with ThreadPoolExecutor(8) as pool:
            answers = list(pool.map(ask, range(64)))
    for number, answer in enumerate(answers):
        assert np.allclose(answer[0], expected[number % len(images)], atol=1e-4), number


@pytest.mark.slow
def test_pictures_too(triton: Running, trained_openvino: Path, trained: Trained) -> None:
    files = sorted(trained.images.rglob("*.png"))[:3]
    with load(trained_openvino, threads=1) as classify, triton.client("http") as client:
        data = np.array([file.read_bytes() for file in files], dtype=object)[:, None]
        assert np.allclose(triton.infer(client, "net_images", data, "image"), classify(files), atol=1e-5)

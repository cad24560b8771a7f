"""The real server and its repository: replaced, of a new version, edited by hand, damaged, for backends that it lacks."""

from __future__ import annotations

import contextlib
import hashlib
import json
import subprocess
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from tritonclient.utils import InferenceServerException

from sit_deploy.bundle import Bundle, load_bundle
from sit_deploy.data.image_files import list_images
from sit_deploy.inference import load
from sit_deploy.manifest import digest
from sit_deploy.triton import server
from sit_deploy.triton.config import parse
from sit_deploy.triton.config import text as pbtxt
from sit_deploy.triton.repository import write_repository
from tests.sit_deploy.conftest import CLASSES, Trained
from tests.sit_deploy.triton.conftest import Running, as_tensorrt, changed, encoded, free_ports, serving


@pytest.mark.parametrize(("name", "value"), [("batch_max", "0"), ("threads", "many")])
def test_a_configuration_edited_by_hand_is_refused_by_name(
    name: str, value: str, trained: Trained, installation: server.Installation, tmp_path: Path
) -> None:
    repository = tmp_path / "models"
    write_repository([(load_bundle(trained.bundle), serving())], repository)
    path = repository / "net/config.pbtxt"
    config = parse(path.read_text())
    config.parameters[name].string_value = value
    path.write_text(pbtxt(config))
    with (
        pytest.raises(
            server.ServerError, match=rf"parameter {name} of config\.pbtxt must be a number from"
        ) as caught,
        server.running(installation, repository, tmp_path / "log", free_ports()),
    ):
        pass
    assert str(caught.value).endswith("mend it, or run sit-deploy package triton again")


def test_a_server_that_watches_changes_over_and_loads_nothing_twice(
    trained: Trained, run_server: Callable[..., Any], copy_of: Callable[..., Path], tmp_path: Path
) -> None:
    """Replaced in place by --force: by a bundle that prepares images otherwise and has other class names.

    Python would write its caches into a repository, which a server takes for a change.
    """
    repository, first = tmp_path / "models", load_bundle(trained.bundle)
    second = changed(copy_of(trained.bundle, "second"))
    photo = list_images(trained.images)[0]

    def best_of(bundle: Bundle) -> tuple[str, float]:
        with load(bundle.path) as classify:
            scores = classify([photo])[0]
        return bundle.classes[int(scores.argmax())], pytest.approx(float(scores.max()), abs=1e-4)

    def answer(client: Any) -> tuple[str, float]:
        row = running.infer(client, "net_images", encoded(photo.read_bytes()), "image", classes=1)
        score, _, name = row.item().decode().split(":", 2)
        return name, float(score)

    def changed_over(client: Any) -> bool:
        with contextlib.suppress(InferenceServerException):  # away for a moment
            return answer(client) == best_of(second)
        return False

    write_repository([(first, serving(ensemble=True))], repository)
    arguments = ("--model-control-mode=poll", "--repository-poll-secs=1")
    with run_server(repository, *arguments) as running, running.client("grpc") as client:
        time.sleep(1.5)  # a poll that has nothing to find
        assert answer(client) == best_of(first)
        write_repository([(second, serving(ensemble=True))], repository, force=True)
        wait_for(lambda: changed_over(client))
        time.sleep(1.5)
        assert answer(client) == best_of(second)
        log = running.log.read_text()
    for name in ("net", "net_decode", "net_images"):
        assert log.count(f"successfully loaded '{name}'") == 2, name
    assert sorted(path.name for path in (repository / "net/1").iterdir() if path.is_dir()) == [
        "sit_deploy_parts"
    ]


def with_other_logits(folder: Path) -> Bundle:
    """Add 1 to the bias of the head in a copy of a bundle; of what its manifest says, the engine's hash is made right."""
    model = onnx.load(folder / "engine.onnx")
    (bias,) = (tensor for tensor in model.graph.initializer if list(tensor.dims) == [len(CLASSES)])
    bias.CopyFrom(onnx.numpy_helper.from_array(onnx.numpy_helper.to_array(bias) + np.float32(1), bias.name))
    onnx.save(model, folder / "engine.onnx")
    fields = json.loads((folder / "manifest.json").read_text())
    content = (folder / "engine.onnx").read_bytes()
    fields["files"]["engine.onnx"] = {"sha256": hashlib.sha256(content).hexdigest(), "bytes": len(content)}
    fields["digest"] = digest(fields)
    (folder / "manifest.json").write_text(json.dumps(fields))
    return load_bundle(folder)


def test_a_new_version_takes_over_without_a_failed_request(
    trained: Trained, run_server: Callable[..., Any], copy_of: Callable[..., Path], tmp_path: Path
) -> None:
    repository, first = tmp_path / "models", load_bundle(trained.bundle)
    second = with_other_logits(copy_of(trained.bundle, "second"))
    write_repository([(first, serving())], repository)
    images, old = first.golden()
    with load(second) as classify:
        new = classify.logits(images)
    answers: list[np.ndarray] = []
    done = threading.Event()

    def ask(running: Running) -> None:
        with running.client("grpc") as client:
            while not done.is_set():
                answers.append(running.infer(client, "net", images[:1])[0])

    with (
        run_server(repository, "--model-control-mode=explicit", "--load-model=net") as running,
        ThreadPoolExecutor(3) as pool,
    ):
        asking = [pool.submit(ask, running) for _ in range(3)]
        try:
            wait_for(lambda: len(answers) > 30)
            write_repository([(second, serving(version=2))], repository)
            with running.client("http") as client:
                client.load_model("net")
            seen = len(answers)
            wait_for(lambda: len(answers) > seen + 30)
        finally:
            done.set()
        for each in asking:
            each.result()  # a failed request raises here
    is_old, is_new = ([np.allclose(a, logits[0], atol=1e-4) for a in answers] for logits in (old, new))
    assert all(a or b for a, b in zip(is_old, is_new, strict=True))
    assert is_old[0] and is_new[-1] and not is_old[-1]


def wait_for(condition: Callable[[], bool], seconds: float = 60) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "the server does not answer"
        time.sleep(0.02)


@pytest.mark.parametrize("backend", ["tensorrt", "onnxruntime"])
def test_the_server_accepts_the_configuration_of_backends_it_lacks(
    backend: str, nano_rtx: Path, run_server: Callable[..., Any], copy_of: Callable[..., Path], tmp_path: Path
) -> None:
    """It reads a configuration whole before it looks for the backend, so what it then misses is the backend alone."""
    repository = tmp_path / "models"
    bundle = as_tensorrt(copy_of(nano_rtx), min=1, opt=4, max=8)
    write_repository([(bundle, serving("net", backend=backend))], repository)
    with run_server(repository, "--model-control-mode=explicit") as running, running.client("http") as client:
        with pytest.raises(
            InferenceServerException, match=f"unable to find backend library for backend '{backend}'"
        ):
            client.load_model("net")
        config = repository / "net/config.pbtxt"
        config.write_text(config.read_text().replace("max_batch_size: 8", "max_batch_size: -8"))
        with pytest.raises(InferenceServerException, match="failed to poll"):
            client.load_model("net")
        assert "'max_batch_size' must be non-negative value for net" in running.log.read_text()


def test_a_damaged_graph_says_so_at_the_start(
    trained: Trained, installation: server.Installation, tmp_path: Path
) -> None:
    repository = tmp_path / "models"
    write_repository([(load_bundle(trained.bundle), serving())], repository)
    (repository / "net/1/engine.onnx").write_bytes(b"no graph")
    with (
        pytest.raises(server.ServerError, match=r"failed to load 'net' version 1: .*engine\.onnx") as caught,
        server.running(installation, repository, tmp_path / "log", free_ports()),
    ):
        pass
    assert "\n" not in str(caught.value)
    assert not subprocess.run(["pgrep", "-f", str(repository)], capture_output=True).stdout

"""A real Triton server, where one is installed: `make test` installs it beside the tests' own environment."""

from __future__ import annotations

import contextlib
import json
import socket
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from msgspec import structs

from sit_deploy.bundle import Bundle, load_bundle
from sit_deploy.errors import InputError
from sit_deploy.manifest import digest
from sit_deploy.triton import server
from sit_deploy.triton.config import Serving
from sit_deploy.triton.repository import write_repository
from tests.helpers.command_line import snapshot
from tests.sit_deploy.conftest import Trained

pytest.importorskip("tritonclient.grpc", reason="needs Triton's client: pip install '.[triton]'")


def free_ports() -> server.Ports:
    """Three ports that nobody listens on."""
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(3)]
        for each in sockets:
            each.bind(("", 0))
        return server.Ports(*(each.getsockname()[1] for each in sockets))


@pytest.fixture(scope="session")
def installation() -> server.Installation:
    """The server in this environment's folder `triton` or in the user's cache."""
    beside = Path(sys.prefix) / "triton"
    try:
        return server.find_server(beside if beside.is_dir() else None)
    except InputError as error:
        pytest.skip(f"needs a Triton server: {error}")


@dataclass(frozen=True)
class Running:
    """A running server and clients of it."""

    ports: server.Ports
    process: Any
    log: Path

    @contextlib.contextmanager
    def client(self, protocol: str) -> Iterator[Any]:
        """A client of tritonclient.http or tritonclient.grpc."""
        if protocol == "http":
            import tritonclient.http as module

            made = module.InferenceServerClient(f"localhost:{self.ports.http}", concurrency=4)
        else:
            import tritonclient.grpc as module

            made = module.InferenceServerClient(f"localhost:{self.ports.grpc}")
        try:
            yield made
        finally:
            made.close()

    def infer(
        self,
        client: Any,
        model: str,
        array: np.ndarray,
        name: str = "images",
        classes: int = 0,
        version: str = "",
        output: str = "logits",
    ) -> np.ndarray:
        """Send one tensor to a model; returns its `logits` or another output, or with `classes` the strings of the best ones."""
        module = sys.modules[type(client).__module__.removesuffix("._client")]
        from tritonclient.utils import np_to_triton_dtype

        given = module.InferInput(name, list(array.shape), np_to_triton_dtype(array.dtype))
        given.set_data_from_numpy(array)
        wanted = module.InferRequestedOutput(output, class_count=classes)
        return client.infer(model, [given], outputs=[wanted], model_version=version).as_numpy(output)


@pytest.fixture(scope="session")
def run_server(installation: server.Installation) -> Callable[..., Any]:
    """A function that runs a server on a repository: `with run_server(repository) as running`."""

    @contextlib.contextmanager
    def run(repository: Path, *arguments: str) -> Iterator[Running]:
        ports, log = free_ports(), repository.with_name(f"{repository.name}.log")
        with server.running(installation, repository, log, ports, arguments) as process:
            yield Running(ports, process, log)

    return run


def as_tensorrt(folder: Path, version: str = "10.9.0.34", **batch: int) -> Bundle:
    """Rewrite a bundle's manifest as if full TensorRT had built its engine: its configuration can be checked without one."""
    path = folder / "manifest.json"
    manifest = json.loads(path.read_text())
    manifest["engine"] |= {"kind": "tensorrt", "version": version, "target": "sm89 (NVIDIA L4)"}
    if batch:
        manifest["batch"] = batch
    manifest["digest"] = digest(manifest)
    path.write_text(json.dumps(manifest))
    return load_bundle(folder)


def serving(name: str = "net", **fields: Any) -> Serving:
    return Serving(name, **{"threads": 1, **fields})


def encoded(*contents: bytes) -> np.ndarray:
    """Return the files of images as what is sent to `image`."""
    return np.array(contents, dtype=object).reshape(-1, 1)


@pytest.fixture
def bundle(trained: Trained) -> Bundle:
    """`trained`, loaded."""
    return load_bundle(trained.bundle)


def changed(folder: Path) -> Bundle:
    """Let a copied bundle say other preprocessing and class names: what takes over must take over whole."""
    path = folder / "manifest.json"
    fields = json.loads(path.read_text())
    fields["preprocessing"] |= {"mean": [0.0] * 3, "std": [1.0] * 3}
    fields["classes"] = [name.upper() for name in fields["classes"]]
    fields["digest"] = digest(fields)
    path.write_text(json.dumps(fields))
    return load_bundle(folder)


def saying(bundle: Bundle, **fields: Any) -> Bundle:
    """Return the bundle with other fields in its manifest."""
    return replace(bundle, manifest=structs.replace(bundle.manifest, **fields))


def refused(packages: Any, repository: Path, match: str, force: bool = False) -> None:
    """Expect a refusal that leaves everything as it was."""
    before = snapshot(repository.parent)
    with pytest.raises(InputError, match=match) as caught:
        write_repository(packages, repository, force)
    assert "\n" not in str(caught.value)
    assert snapshot(repository.parent) == before

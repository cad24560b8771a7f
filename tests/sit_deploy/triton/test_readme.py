"""The README of a model: how the repository is served."""

from __future__ import annotations

import shlex
from collections.abc import Callable
from pathlib import Path

from sit_deploy.bundle import load_bundle
from sit_deploy.triton.readme import container_for, readme
from tests.sit_deploy.triton.conftest import as_tensorrt, serving

Copy = Callable[..., Path]
ROOT = Path(__file__).parents[3]


def docker_lines(text: str) -> list[str]:
    return [line for line in text.splitlines() if line.startswith("docker run")]


def test_the_readme_has_the_line_that_serves_the_repository(
    nano_rtx: Path, nano_fp32: Path, copy_of: Copy
) -> None:
    """It is that of docs/serving.md, but for the release and the place: the lowest container that reads the model."""
    (documented,) = docker_lines((ROOT / "docs/serving.md").read_text())
    documented = documented.replace("$PWD/models", "$PWD")
    bundle = as_tensorrt(copy_of(nano_rtx), min=1, opt=8, max=32)
    (line,) = docker_lines(readme(bundle, serving(backend="tensorrt")))
    assert line == documented.replace(":25.06-", ":25.04-")
    graph = load_bundle(nano_fp32)
    image = container_for(graph, "onnxruntime")
    (line,) = docker_lines(readme(graph, serving(backend="onnxruntime")))
    assert image in shlex.split(line) and "--gpus" not in line
    (line,) = docker_lines(readme(graph, serving(backend="onnxruntime", gpus=(0,))))
    assert "--gpus all" in line
    assert docker_lines(readme(graph, serving(backend="python"))) == []  # the image lacks its packages
    assert (
        docker_lines(
            readme(
                as_tensorrt(copy_of(nano_rtx, "new"), version="11.4.0", size=1), serving(backend="tensorrt")
            )
        )
        == []
    )


def test_the_line_for_an_ensemble_puts_in_what_its_decoder_needs(nano_fp32: Path) -> None:
    bundle = load_bundle(nano_fp32)
    (line,) = docker_lines(readme(bundle, serving(backend="onnxruntime", ensemble=True)))
    *_, image, shell, option, program = shlex.split(line)
    assert (image, shell, option) == (container_for(bundle, "onnxruntime"), "sh", "-c")
    install, server = program.split(" && exec ")
    assert install == "python3 -m pip install numpy pillow"
    assert shlex.split(server)[0] == "tritonserver" and "--load-model=*" in shlex.split(server)

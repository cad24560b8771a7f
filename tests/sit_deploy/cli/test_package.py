from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from tests.helpers.command_line import CommandLine
from tests.sit_deploy.conftest import Trained

pytest.importorskip("tritonclient.grpc", reason="needs Triton's client: pip install '.[triton]'")


def test_a_repository_of_several_bundles(nano_fp32: Path, nano_rtx: Path, cli: CommandLine) -> None:
    out = cli(
        "package", "triton", nano_fp32, nano_rtx, "-o", "models", "--backend", "python", "--ensemble"
    ).out
    for name in ("sit_nano_fp32", "sit_nano_fp16"):
        assert f"{name}, {name}_decode, {name}_images" in out
        assert (cli.folder / "models" / name / "1/engine.onnx").is_file()
    found = cli("package", "triton", nano_fp32, "-o", "models", "--name", "again", "--json").json()
    oldest = "nvcr.io/nvidia/tritonserver:24.03-py3"  # whose ONNX Runtime reads operator set 20
    written = {"repository": str(cli.folder / "models"), "models": ["again"], "version": 1}
    assert found == {**written, "containers": {"again": oldest}, "notes": {"again": []}}
    assert f"of `{oldest}` or a newer one: its graph is of operator set 20" in (
        cli.folder / "models/again/README.md"
    ).read_text(encoding="utf-8")
    said = cli("package", "triton", nano_fp32, "-o", "models", "--name", "third").out
    assert f"Container of third: {oldest} or newer" in said
    config = (cli.folder / "models/again/config.pbtxt").read_text()
    assert 'backend: "onnxruntime"' in config and "max_batch_size" not in config


def test_settings_reach_the_configuration(trained: Trained, cli: CommandLine) -> None:
    cli(
        *("package", "triton", trained.bundle, "-o", "models", "--name", "net", "--version", 7, "--backend", "python"),
        *("--max-queue-delay", 900, "--instances", 3, "--threads", 2),
    )  # fmt: skip
    config = (cli.folder / "models/net/config.pbtxt").read_text()
    assert "max_queue_delay_microseconds: 900" in config and "count: 3" in config
    assert (cli.folder / "models/net/7/model.py").is_file()


@pytest.mark.parametrize(
    ("words", "copies", "threads"),
    [
        ((), 1, "0"),
        (("--instances", 2), 2, "0"),  # the model shares the CPUs out
        (("--performance", "throughput"), 4, "1"),
        (("--performance", "throughput", "--instances", 2), 2, "2"),
        (("--performance", "throughput", "--threads", 3), 1, "3"),
        (("--performance", "throughput", "--instances", 2, "--threads", 1), 2, "1"),
    ],
)
def test_copies_and_their_threads(
    words: tuple[object, ...],
    copies: int,
    threads: str,
    nano_fp32: Path,
    cli: CommandLine,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from sit_deploy.triton.config import parse

    monkeypatch.setattr("sit_deploy.triton.copies.cpu_count", lambda: 4)
    cli("package", "triton", nano_fp32, "-o", "models", "--name", "net", "--backend", "python", *words)
    config = parse((cli.folder / "models/net/config.pbtxt").read_text())
    (group,) = config.instance_group
    assert (group.count, config.parameters["threads"].string_value) == (copies, threads)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--instances", "3", "--threads", "2"), "3 copies on 2 threads each are more than the 4 CPUs here"),
        (("--instances", "5"), "5 copies on 1 threads each are more than the 4 CPUs here"),
        (("--threads", "5"), "1 copies on 5 threads each"),
        (
            ("--backend", "onnxruntime"),
            "--backend onnxruntime is served by Triton's own; leave it out and give",
        ),
    ],
)
def test_copies_that_would_wait_for_one_another(
    words: tuple[str, ...], message: str, nano_fp32: Path, cli: CommandLine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sit_deploy.triton.copies.cpu_count", lambda: 4)
    told = (
        "package",
        "triton",
        nano_fp32,
        "-o",
        "models",
        "--backend",
        "python",
        "--performance",
        "throughput",
    )
    assert message in cli.refuses(*told, *words)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--name", "a/b"], "model name 'a/b' is not allowed: use letters, digits"),
        (
            ["--backend", "tensorrt"],
            "holds an engine of onnxruntime, not of tensorrt; build one with --engine tensorrt",
        ),
        (["--backend", "torch"], "--backend torch is not offered; choose tensorrt, onnxruntime, python"),
        (["--version", "0"], "version is 1 or more, got 0; pass --version 1"),
        (["--ensemble"], "takes a fixed batch, which an ensemble cannot feed"),
    ],
)
def test_bad_usage(options: list[str], message: str, nano_fp32: Path, cli: CommandLine) -> None:
    assert message in cli.refuses("package", "triton", nano_fp32, "-o", "models", *options)


def test_bad_places(nano_fp32: Path, nano_rtx: Path, cli: CommandLine, copy_of: Callable[..., Path]) -> None:
    assert "is not a bundle: no such folder" in cli.refuses("package", "triton", "gone", "-o", "models")
    assert "--name is for one bundle" in cli.refuses(
        "package", "triton", nano_fp32, nano_fp32, "-o", "models", "--name", "x"
    )
    assert "which is served by no backend here" in cli.refuses("package", "triton", nano_rtx, "-o", "models")
    cli("package", "triton", nano_fp32, "-o", "models")
    assert "has a version 1 already; pass --version 2" in cli.refuses(
        "package", "triton", nano_fp32, "-o", "models"
    )
    broken = copy_of(nano_fp32, "broken")
    (broken / "engine.onnx").write_bytes(b"cut off")
    assert "was changed: engine.onnx does not match its hash" in cli.refuses(
        "package", "triton", broken, "-o", "models"
    )


def test_without_the_client_library(
    nano_fp32: Path, cli: CommandLine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(__import__("sys").modules, "tritonclient.grpc", None)
    assert "pip install 'tritonclient[grpc,http]>=" in cli.refuses(
        "package", "triton", nano_fp32, "-o", "models"
    )


def test_a_cpp_project(nano_fp32: Path, cli: CommandLine) -> None:
    """What is in it; tests/engines/cpp builds one."""
    assert cli("package", "cpp", nano_fp32, "-o", "deep/project", "--json").json() == {
        "project": str(cli.folder / "deep/project")
    }
    project = cli.folder / "deep/project"
    assert {p.name for p in project.iterdir()} == {
        *("build.sh", "main.cpp", "CMakeLists.txt", "README.md", "bundle", "sit_deploy")
    }
    assert {p.name: p.read_bytes() for p in (project / "bundle").iterdir()} == {
        p.name: p.read_bytes() for p in nano_fp32.iterdir()
    }
    assert not (project / "sit_deploy/tests").exists()
    assert "deep/project has files in it; choose a new or empty folder" in cli.refuses(
        "package", "cpp", nano_fp32, "-o", "deep/project"
    )
    assert "is not a bundle" in cli.refuses("package", "cpp", "gone", "-o", "other")

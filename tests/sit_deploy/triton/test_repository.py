from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from sit_deploy.bundle import Bundle, load_bundle
from sit_deploy.errors import InputError
from sit_deploy.triton.config import parse
from sit_deploy.triton.repository import choose_backend, default_name, write_repository
from tests.helpers.command_line import snapshot
from tests.sit_deploy.conftest import CLASSES, Trained
from tests.sit_deploy.triton.conftest import as_tensorrt, serving

Copy = Callable[..., Path]


@pytest.fixture
def bundle(trained: Trained) -> Bundle:
    return load_bundle(trained.bundle)


def files(folder: Path) -> list[str]:
    return sorted(str(p.relative_to(folder)) for p in folder.rglob("*") if p.is_file())


def refused(packages: Any, repository: Path, match: str, force: bool = False) -> None:
    """Expect a refusal that leaves everything as it was."""
    before = snapshot(repository.parent)
    with pytest.raises(InputError, match=match) as caught:
        write_repository(packages, repository, force)
    assert "\n" not in str(caught.value)
    assert snapshot(repository.parent) == before


def test_the_python_backend_needs_nothing_but_the_repository(bundle: Bundle, tmp_path: Path) -> None:
    made = write_repository([(bundle, serving(ensemble=True))], tmp_path / "deep/repo")
    assert made == ["net", "net_decode", "net_images"]
    assert files(tmp_path / "deep/repo") == [
        "net/1/engine.onnx",
        "net/1/model.py",
        "net/1/sit_deploy_parts/__init__.py",
        "net/1/sit_deploy_parts/cpu.py",
        "net/README.md",
        "net/config.pbtxt",
        "net/labels.txt",
        "net_decode/1/model.py",
        "net_decode/1/sit_deploy_parts/__init__.py",
        "net_decode/1/sit_deploy_parts/errors.py",
        "net_decode/1/sit_deploy_parts/preprocessing.py",
        "net_decode/1/sit_deploy_parts/resampling.py",
        "net_decode/config.pbtxt",
        "net_images/1/.keep",
        "net_images/config.pbtxt",
        "net_images/labels.txt",
    ]
    assert [p.name for p in tmp_path.iterdir()] == ["deep"]
    assert [p.name for p in (tmp_path / "deep").iterdir()] == ["repo"]
    for path in (tmp_path / "deep/repo").rglob("*.py"):
        imported = [line for line in path.read_text().splitlines() if line.startswith(("import", "from"))]
        assert not [line for line in imported if "sit_deploy" in line and "sit_deploy_parts" not in line]


def test_labels_are_the_classes_a_line_each(
    bundle: Bundle, tmp_path: Path, copy_of: Copy, monkeypatch: Any
) -> None:
    write_repository([(bundle, serving())], tmp_path / "repo")
    assert (tmp_path / "repo/net/labels.txt").read_text().splitlines() == list(CLASSES)
    monkeypatch.setitem(bundle.manifest, "classes", ["two\nlines", *CLASSES[1:]])
    write_repository([(bundle, serving("other"))], tmp_path / "repo")
    assert (tmp_path / "repo/other/labels.txt").read_text().splitlines() == ["two lines", *CLASSES[1:]]


def test_a_tensorrt_engine_with_the_container_that_fits(
    nano_rtx: Path, copy_of: Copy, tmp_path: Path
) -> None:
    bundle = as_tensorrt(copy_of(nano_rtx), min=1, opt=8, max=32)
    write_repository([(bundle, serving(backend="tensorrt"))], tmp_path / "repo")
    assert files(tmp_path / "repo/net/1") == ["model.plan"]
    assert (tmp_path / "repo/net/1/model.plan").read_bytes() == bundle.engine_path.read_bytes()
    readme = (tmp_path / "repo/net/README.md").read_text()
    assert "nvcr.io/nvidia/tritonserver:25.04-py3" in readme and "sm89 (NVIDIA L4)" in readme


def test_an_unknown_release_names_no_container(nano_rtx: Path, copy_of: Copy, tmp_path: Path) -> None:
    bundle = as_tensorrt(copy_of(nano_rtx), version="11.4.0", size=1)
    write_repository([(bundle, serving(backend="tensorrt"))], tmp_path / "repo")
    readme = (tmp_path / "repo/net/README.md").read_text()
    assert "nvcr.io" not in readme and "support-matrix" in readme


def test_several_bundles_and_versions_in_one_repository(
    bundle: Bundle, nano_fp32: Path, tmp_path: Path
) -> None:
    repository = tmp_path / "repo"
    other = load_bundle(nano_fp32)
    write_repository([(bundle, serving("one")), (other, serving("two"))], repository)
    assert write_repository([(other, serving("three"))], repository) == ["three"]
    write_repository([(bundle, serving("one", version=2))], repository)
    assert sorted(p.name for p in repository.iterdir()) == ["one", "three", "two"]
    assert sorted(p.name for p in (repository / "one").iterdir() if p.is_dir()) == ["1", "2"]
    refused([(bundle, serving("one", version=2))], repository, "has a version 2 already; pass --version 3")
    refused(
        [(other, serving("one", version=3))],
        repository,
        r"takes or gives something else .* pass another --name",
    )
    refused(
        [(bundle, serving("new")), (bundle, serving("new"))],
        repository,
        "two bundles would be version 1 of model new",
    )


def test_force_replaces_one_version_and_keeps_the_others(bundle: Bundle, tmp_path: Path) -> None:
    repository = tmp_path / "repo"
    for version in (1, 2):
        write_repository([(bundle, serving(version=version))], repository)
    (repository / "net/1/engine.onnx").write_bytes(b"old")
    (repository / "net/2/engine.onnx").write_bytes(b"kept")
    write_repository([(bundle, serving(threads=2))], repository, force=True)
    assert (repository / "net/1/engine.onnx").read_bytes() == bundle.engine_path.read_bytes()
    assert (repository / "net/2/engine.onnx").read_bytes() == b"kept"
    config = parse((repository / "net/config.pbtxt").read_text())
    assert config.parameters["threads"].string_value == "2"


@pytest.mark.parametrize("name", ["", "a/b", "../up", ".hidden", "with space", "naïve", "-option"])
def test_names_that_make_trouble(name: str, bundle: Bundle, tmp_path: Path) -> None:
    refused([(bundle, serving(name))], tmp_path / "repo", "is not allowed: use letters, digits")


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"version": 0}, "version is 1 or more, got 0"),
        ({"instances": 0}, "1 instance or more, got 0"),
        ({"max_queue_delay": -1}, "must be 0 or more microseconds, got -1"),
        ({"gpus": (0,)}, "leave --gpus out"),
        ({"backend": "vllm"}, "--backend vllm is not offered; choose tensorrt, onnxruntime, python"),
        (
            {"backend": "tensorrt"},
            "holds an engine of onnxruntime, not of tensorrt; build one with --engine tensorrt",
        ),
        ({"backend": "onnxruntime"}, "batches of 2 to 4, and Triton makes smaller ones"),
    ],
)
def test_what_cannot_be_served(fields: dict[str, Any], message: str, bundle: Bundle, tmp_path: Path) -> None:
    refused([(bundle, serving(**fields))], tmp_path / "repo", message)


def test_folders_that_are_no_repository(bundle: Bundle, tmp_path: Path) -> None:
    place = tmp_path / "repo"
    place.write_text("a file")
    refused([(bundle, serving())], place, "is not a folder; choose another with -o")
    place.unlink()
    (place / "thesis").mkdir(parents=True)
    (place / "letter.txt").touch()
    refused([(bundle, serving())], place, r"is no model repository: it has letter\.txt, thesis")


def test_a_failure_leaves_the_repository_as_it_was(
    bundle: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    repository = tmp_path / "repo"
    write_repository([(bundle, serving("one"))], repository)
    before = snapshot(tmp_path)

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(shutil, "copyfile", full)
    with pytest.raises(OSError, match="No space"):
        write_repository([(bundle, serving("two")), (bundle, serving("three"))], repository)
    assert snapshot(tmp_path) == before


def test_which_backend_serves_a_bundle(nano_rtx: Path, copy_of: Copy, bundle: Bundle) -> None:
    assert choose_backend(bundle, None) == "onnxruntime"
    rtx = load_bundle(nano_rtx)
    with pytest.raises(
        InputError, match="an engine of tensorrt-rtx, which is served by no backend here; pass --backend"
    ):
        choose_backend(rtx, None)
    assert choose_backend(rtx, "python") == "python"
    rtx.manifest["engine"]["kind"] = "openvino"
    with pytest.raises(InputError, match="an engine of openvino, which is served by no backend here"):
        choose_backend(rtx, None)
    full = as_tensorrt(copy_of(nano_rtx))
    assert choose_backend(full, None) == "tensorrt"
    full.manifest["engine"]["details"]["strip_weights"] = True
    with pytest.raises(InputError, match="holds no weights, and Triton cannot give it any"):
        choose_backend(full, None)
    rtx.manifest["precision"] = "bf16"
    with pytest.raises(InputError, match="in bf16, which ONNX Runtime has no CPU kernels for"):
        choose_backend(rtx, "python")


def test_a_manifest_edited_by_hand(nano_fp32: Path, copy_of: Copy) -> None:
    folder = copy_of(nano_fp32)
    manifest = json.loads((folder / "manifest.json").read_text())
    manifest["batch"] = {"size": 64}
    (folder / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(InputError, match="was changed: it does not match its digest"):
        load_bundle(folder)


def test_names_follow_model_and_precision(nano_fp32: Path, nano_rtx: Path) -> None:
    assert default_name(load_bundle(nano_fp32)) == "sit_nano_fp32"
    assert default_name(load_bundle(nano_rtx)) == "sit_nano_fp16"

"""A repository of models: what is written into it, that it is whole at any moment, and what is refused."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from sit_deploy.bundle import Bundle, load_bundle
from sit_deploy.errors import InputError
from sit_deploy.triton import repository as repositories
from sit_deploy.triton.config import parse
from sit_deploy.triton.repository import write_repository
from tests.helpers.command_line import snapshot
from tests.sit_deploy.conftest import CLASSES, Trained
from tests.sit_deploy.triton.conftest import as_tensorrt, changed, refused, saying, serving

Copy = Callable[..., Path]


def files(folder: Path) -> list[str]:
    return sorted(str(p.relative_to(folder)) for p in folder.rglob("*") if p.is_file())


def test_the_python_backend_needs_nothing_but_the_repository(bundle: Bundle, tmp_path: Path) -> None:
    made = write_repository([(bundle, serving(ensemble=True))], tmp_path / "deep/repo")
    assert made == ["net", "net_decode", "net_images"]
    assert files(tmp_path / "deep/repo") == [
        "net/1/__pycache__",
        "net/1/engine.onnx",
        "net/1/model.py",
        "net/1/sit_deploy_parts/__init__.py",
        "net/1/sit_deploy_parts/__pycache__",
        "net/1/sit_deploy_parts/cpu.py",
        "net/1/sit_deploy_parts/session.py",
        "net/README.md",
        "net/config.pbtxt",
        "net/labels.txt",
        "net_decode/1/__pycache__",
        "net_decode/1/model.py",
        "net_decode/1/sit_deploy_parts/__init__.py",
        "net_decode/1/sit_deploy_parts/__pycache__",
        "net_decode/1/sit_deploy_parts/cpu.py",
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
        text = path.read_text()
        assert not re.findall(
            r"^\s*(?:import|from) +(?:sit_deploy|engines|calibration|training)\b(?!_)", text, re.MULTILINE
        )


def test_the_decoder_runs_without_our_packages(bundle: Bundle, tmp_path: Path) -> None:
    """In a Python that has none of them, as a server's has not."""
    write_repository([(bundle, serving(ensemble=True))], tmp_path / "repo")
    program = """
import sys, types
for name in ("sit_deploy", "engines", "calibration", "training"):
    sys.modules[name] = None
sys.modules["triton_python_backend_utils"] = types.ModuleType("triton_python_backend_utils")
import model
from sit_deploy_parts.preprocessing import decode_image
try:
    decode_image(b"no image")
except model.InputError as error:
    print(error)
"""
    folder = tmp_path / "repo/net_decode/1"
    done = subprocess.run([sys.executable, "-c", program], cwd=folder, capture_output=True, text=True)
    assert "cannot be read" in done.stdout or "image" in done.stdout, done.stderr


def test_labels_are_the_classes_a_line_each(bundle: Bundle, tmp_path: Path, copy_of: Copy) -> None:
    write_repository([(bundle, serving())], tmp_path / "repo")
    assert (tmp_path / "repo/net/labels.txt").read_text().splitlines() == list(CLASSES)
    renamed = saying(bundle, classes=["two\nlines", *CLASSES[1:]])
    write_repository([(renamed, serving("other"))], tmp_path / "repo")
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


@pytest.fixture
def other(copy_of: Copy, trained: Trained) -> Bundle:
    """As `bundle`, with other preprocessing and class names: what takes over must take over whole."""
    return changed(copy_of(trained.bundle, "other"))


def belongs_together(repository: Path, bundles: list[Bundle]) -> str:
    """Check that what is in a repository now serves one of `bundles` and no mixture; returns what there is."""
    network = parse((repository / "net/config.pbtxt").read_text())
    digests = {bundle.manifest.digest: bundle for bundle in bundles}
    now = digests[network.parameters["bundle_digest"].string_value]
    parts = ["old" if now is bundles[0] else "new"]
    for name in ("net", "net_images"):
        if (repository / name).exists():
            assert (repository / name / "labels.txt").read_text().split("\n")[:-1] == now.classes, name
    if (repository / "net_decode").exists():
        decoder = parse((repository / "net_decode/config.pbtxt").read_text())
        fields = json.loads(decoder.parameters["preprocessing"].string_value)
        assert fields == now.preprocessing().to_dict()
        parts.append("decoder")
    if (repository / "net_images").exists():
        assert (repository / "net_decode").exists()
        parts.append("ensemble")
    return " ".join(parts)


@pytest.mark.parametrize("version", [1, 2])
def test_whoever_looks_at_any_moment_sees_models_that_belong_together(
    version: int, bundle: Bundle, other: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A server that watches the repository, or one that starts on what a killed run has left."""
    repository, seen = tmp_path / "repo", []
    write_repository([(bundle, serving(ensemble=True))], repository)
    (repository / "net/notes.txt").write_text("mine")

    def look(work: Callable[..., Any]) -> Callable[..., Any]:
        def looking(*args: Any) -> Any:
            seen.append(belongs_together(repository, [bundle, other]))
            done = work(*args)
            seen.append(belongs_together(repository, [bundle, other]))
            return done

        return looking

    monkeypatch.setattr(repositories, "exchange", look(repositories.exchange))
    monkeypatch.setattr(Path, "rename", look(Path.rename))
    write_repository([(other, serving(ensemble=True, version=version))], repository, force=version == 1)
    assert seen[0] == "old decoder ensemble" and seen[-1] == "new decoder ensemble" and len(seen) >= 10
    monkeypatch.undo()
    assert (repository / "net/notes.txt").read_text() == "mine"
    versions = sorted(path.name for path in (repository / "net").iterdir() if path.is_dir())
    assert versions == [str(n) for n in range(1, version + 1)]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["other", "repo"]


def test_models_are_never_away_when_they_say_the_same(
    bundle: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    repository, seen = tmp_path / "repo", []
    write_repository([(bundle, serving(ensemble=True))], repository)
    work = repositories.exchange

    def looking(*args: Any) -> bool:
        seen.append(belongs_together(repository, [bundle]))
        return work(*args)

    monkeypatch.setattr(repositories, "exchange", looking)
    write_repository([(bundle, serving(ensemble=True, threads=2))], repository, force=True)
    assert seen == ["old decoder ensemble"] * 3


def test_a_file_system_that_cannot_exchange(
    bundle: Bundle, other: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    repository = tmp_path / "repo"
    monkeypatch.setattr(repositories, "exchange", lambda *_: False)
    write_repository([(bundle, serving(ensemble=True))], repository)
    write_repository([(bundle, serving(ensemble=True, version=2))], repository)
    write_repository([(other, serving(ensemble=True, version=2))], repository, force=True)
    assert belongs_together(repository, [bundle, other]) == "new decoder ensemble"
    assert sorted(p.name for p in (repository / "net").iterdir() if p.is_dir()) == ["1", "2"]


def test_a_network_is_not_put_behind_a_decoder_of_another(
    bundle: Bundle, other: Bundle, tmp_path: Path
) -> None:
    """Left out, --ensemble must not leave the old one there; an older version must not bring its labels to a newer one."""
    repository = tmp_path / "repo"
    write_repository([(bundle, serving(ensemble=True))], repository)
    wrong = "for another network than this; pass --ensemble to replace it too, or another --name"
    refused([(other, serving())], repository, wrong, force=True)
    refused([(other, serving(version=2))], repository, wrong)
    write_repository([(bundle, serving(threads=3))], repository, force=True)
    write_repository([(other, serving(ensemble=True, version=2))], repository)
    newer = "it would be served with this bundle's labels and preprocessing; pass --version 3"
    refused([(bundle, serving(ensemble=True))], repository, newer, force=True)


def test_runs_at_the_same_time_each_add_what_is_theirs(bundle: Bundle, tmp_path: Path) -> None:
    """Of two that add the same, one wins, and the other says so in one line."""
    repository = tmp_path / "repo"

    def add(name: str) -> str:
        try:
            return write_repository([(bundle, serving(name))], repository)[0]
        except InputError as error:
            return str(error)

    with ThreadPoolExecutor(4) as pool:
        said = list(pool.map(add, ["one", "two", "same", "same"]))
    assert said[:2] == ["one", "two"]
    assert sorted("has a version 1 already" in line for line in said[2:]) == [False, True]
    assert sorted(path.name for path in repository.iterdir()) == ["one", "same", "two"]


@pytest.mark.parametrize(
    "name", ["", "a/b", "../up", ".hidden", "with space", "naïve", "-option", "\x1b[31mred", "a\nb", "a\0"]
)
def test_names_that_make_trouble(name: str, bundle: Bundle, tmp_path: Path) -> None:
    refused([(bundle, serving(name))], tmp_path / "repo", r"is not allowed: use letters, digits")
    with pytest.raises(InputError) as caught:
        write_repository([(bundle, serving(name))], tmp_path / "repo")
    assert str(caught.value).isprintable()


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"version": 0}, "version is 1 or more, got 0"),
        ({"instances": 0}, "1 instance or more, got 0"),
        ({"max_queue_delay": -1}, "must be 0 or more microseconds, got -1"),
        ({"version": 2**63}, "at most 2147483647, got 9223372036854775808; pass --version 1"),
        ({"instances": 10**21}, "at most 1024, got"),
        ({"max_queue_delay": 2**64}, "at most 3600000000, got"),
        ({"threads": 10**6}, "at most 4096, got 1000000"),
        ({"gpus": (2**40,)}, "at most 1023, got"),
        ({"name": "n" * 201}, "at most 200 letters, got 201"),
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


def test_a_manifest_edited_by_hand(nano_fp32: Path, copy_of: Copy) -> None:
    folder = copy_of(nano_fp32)
    manifest = json.loads((folder / "manifest.json").read_text())
    manifest["batch"] = {"size": 64}
    (folder / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(InputError, match="was changed: it does not match its digest"):
        load_bundle(folder)

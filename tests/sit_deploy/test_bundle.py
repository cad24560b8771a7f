"""Bundles: what their manifest says of their files, and what is refused to be loaded."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from sit_deploy.bundle import load_bundle, sha256
from sit_deploy.errors import InputError
from sit_deploy.manifest import digest, write_manifest
from tests.helpers.bundles import FIELDS, FILES, make_bundle


def edit_manifest(path: Path, change: Callable[[dict[str, Any]], object]) -> None:
    manifest = json.loads((path / "manifest.json").read_text(encoding="utf-8"))
    change(manifest)
    (path / "manifest.json").write_text(json.dumps(manifest, indent=2, ensure_ascii=False), encoding="utf-8")


# ------------------------------------------------------------------------------------------------------ writing


def test_manifest_lists_hash_and_size_of_every_file_and_its_own_digest(tmp_path: Path) -> None:
    path = make_bundle(tmp_path / "b", classes=["crème", "brûlée", "€"])
    manifest = json.loads((path / "manifest.json").read_text(encoding="utf-8"))
    assert manifest["schema"] == 1
    assert set(manifest["files"]) == set(FILES)
    for name, facts in manifest["files"].items():
        content = (path / name).read_bytes()
        assert facts == {"sha256": hashlib.sha256(content).hexdigest(), "bytes": len(content)}
    # the rule as the module states it, for whoever checks it in another language
    stated = manifest.pop("digest")
    text = json.dumps(manifest, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    assert stated == hashlib.sha256(text.encode("utf-8")).hexdigest()


def test_digest_is_of_the_fields_and_not_of_how_they_are_written(tmp_path: Path) -> None:
    path = make_bundle(tmp_path / "b")
    manifest = json.loads((path / "manifest.json").read_text())
    backwards = dict(reversed(manifest.items()))
    (path / "manifest.json").write_text(json.dumps(backwards))
    assert load_bundle(path).manifest.to_dict() == manifest
    assert digest({**manifest, "precision": "fp16"}) != manifest["digest"]


def test_a_manifest_with_nan_is_never_written(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="JSON compliant"):
        make_bundle(tmp_path / "b", precision=float("nan"))


def test_sha256_is_of_the_whole_file(tmp_path: Path) -> None:
    content = bytes(range(256)) * 9000  # over two of the megabytes that are read at a time
    (tmp_path / "file").write_bytes(content)
    assert sha256(tmp_path / "file") == hashlib.sha256(content).hexdigest()


# ------------------------------------------------------------------------------------------------------ loading


def test_properties(tmp_path: Path) -> None:
    fixed = load_bundle(make_bundle(tmp_path / "fixed"))
    assert (fixed.batch_size, fixed.batch_range) == (2, (2, 2))
    assert fixed.classes == ["0", "1", "2"]
    assert fixed.engine_path == tmp_path / "fixed" / "engine.onnx"
    assert fixed.model_path.read_text() == "this is model.onnx"
    batch = {"min": 1, "opt": 4, "max": 8}
    dynamic = load_bundle(make_bundle(tmp_path / "dynamic", batch=batch, classes=["a", "b", "c"]))
    assert (dynamic.batch_size, dynamic.batch_range) == (4, (1, 8))
    assert dynamic.classes == ["a", "b", "c"]


@pytest.mark.parametrize("name", FILES)
def test_one_byte_flipped(name: str, nano_fp32: Path, copy_of: Callable[[Path], Path]) -> None:
    path = copy_of(nano_fp32)
    content = bytearray((path / name).read_bytes())
    content[len(content) // 2] ^= 1
    (path / name).write_bytes(content)
    with pytest.raises(InputError, match=rf"was changed: {name} does not match its hash; .*rebuild"):
        load_bundle(path)


@pytest.mark.parametrize("name", FILES)
def test_file_removed(name: str, tmp_path: Path) -> None:
    path = make_bundle(tmp_path / "b")
    (path / name).unlink()
    with pytest.raises(InputError, match=rf"lacks its file {name}"):
        load_bundle(path)


def swap_hash(manifest: dict[str, Any]) -> None:
    manifest["files"]["model.onnx"]["sha256"] = "0" * 64


EDITS: dict[str, Callable[[dict[str, Any]], object]] = {
    "a value": lambda m: m.update(precision="fp16"),
    "a value deep inside": lambda m: m["engine"].update(kind="tensorrt"),
    "a field more": lambda m: m.update(comment="tested by hand"),
    "a field less": lambda m: m["model"].pop("num_classes"),
    "a hash": swap_hash,
    "a file less": lambda m: m["files"].pop("report.html"),
    "the digest": lambda m: m.update(digest="0" * 64),
    "a type": lambda m: m.update(files=[]),
}


@pytest.mark.parametrize("edit", EDITS)
def test_manifest_edited_by_hand(edit: str, tmp_path: Path) -> None:
    path = make_bundle(tmp_path / "b")
    edit_manifest(path, EDITS[edit])
    with pytest.raises(InputError, match=r"manifest\.json was changed: it does not match its digest"):
        load_bundle(path)


@pytest.mark.parametrize("field", [*FIELDS, "files", "digest"])
def test_manifest_without_a_field(field: str, tmp_path: Path) -> None:
    path = make_bundle(tmp_path / "b")

    def lose(manifest: dict[str, Any]) -> None:
        del manifest[field]
        if field != "digest":
            manifest["digest"] = digest(manifest)

    edit_manifest(path, lose)
    with pytest.raises(InputError, match=rf"manifest\.json: it lacks {field}; build the bundle again"):
        load_bundle(path)


def test_newer_schema_says_upgrade_and_nothing_else(tmp_path: Path) -> None:
    """A newer schema may have other fields and another digest: neither may be what the user is told of."""
    path = make_bundle(tmp_path / "b")
    (path / "manifest.json").write_text('{"schema": 3}')
    with pytest.raises(InputError, match=r"schema 3, newer than the 2 known here; upgrade sit-deploy"):
        load_bundle(path)


@pytest.mark.parametrize(
    "content", [b"", b"{", b"\xff\xfe", b"[1]", b'{"schema": "1"}', b'{"name": "a web app"}']
)
def test_a_manifest_that_is_none(content: bytes, tmp_path: Path) -> None:
    path = make_bundle(tmp_path / "b")
    (path / "manifest.json").write_bytes(content)
    with pytest.raises(
        InputError, match=r"manifest\.json (cannot be read|is not a manifest).*; build the bundle again"
    ):
        load_bundle(path)


def test_not_a_bundle(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"no such folder; make one with `sit-deploy build"):
        load_bundle(tmp_path / "nowhere")
    with pytest.raises(InputError, match=r"it has no manifest\.json"):
        load_bundle(tmp_path)


@pytest.mark.parametrize("name", ["../outside", "..", "sub/file", "/etc/hostname"])
def test_a_manifest_cannot_point_outside(name: str, tmp_path: Path) -> None:
    path = make_bundle(tmp_path / "b")
    (tmp_path / "outside").write_text("x")

    def point(manifest: dict[str, Any]) -> None:
        manifest["files"][name] = {"sha256": hashlib.sha256(b"x").hexdigest(), "bytes": 1}
        manifest["digest"] = digest(manifest)

    edit_manifest(path, point)
    with pytest.raises(InputError, match="which is no plain file name"):
        load_bundle(path)


def test_a_bundle_of_one_output_says_what_to_do(tmp_path: Path) -> None:
    """Whatever such a bundle is asked, its answer would be 100 %."""
    path = make_bundle(tmp_path / "b", model={**FIELDS["model"], "num_classes": 1})
    with pytest.raises(
        InputError, match=r"has one output: softmax .* build it again .* with --num-classes 2"
    ):
        load_bundle(path)


@pytest.mark.parametrize("name", ["model.onnx", "golden.npz", "engine.onnx"])
def test_what_is_deserialised_must_have_a_hash(name: str, tmp_path: Path) -> None:
    path = make_bundle(tmp_path / "b")

    def forget(manifest: dict[str, Any]) -> None:
        del manifest["files"][name]
        manifest["digest"] = digest(manifest)

    edit_manifest(path, forget)
    with pytest.raises(InputError, match=f"lists no hash for '?{name}"):
        load_bundle(path)


def test_golden_never_unpickles(tmp_path: Path) -> None:
    path = make_bundle(tmp_path / "b")
    np.savez(path / "golden.npz", images=np.array([{"an": "object"}], object), logits=np.zeros(1))
    write_manifest(path, FIELDS)
    with pytest.raises(InputError, match=r"golden\.npz: does not fit the manifest \(its images are \|O"):
        load_bundle(path)


def test_what_seals_a_bundle_again_is_reached_from_here(nano_fp32: Path) -> None:
    """Programs that change a bundle on purpose import these from `sit_deploy.bundle`."""
    from sit_deploy import bundle as module
    from sit_deploy import manifest

    assert (module.digest, module.write_manifest) == (manifest.digest, manifest.write_manifest)
    fields = json.loads((nano_fp32 / module.MANIFEST).read_text())
    assert module.digest(fields) == fields["digest"]

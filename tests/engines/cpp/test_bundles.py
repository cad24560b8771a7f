"""The C++ library opens a bundle or says what is wrong with it, as the Python side does."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from sit_deploy.manifest import digest
from tests.engines.cpp.conftest import Programs
from tests.engines.cpp.manifests import rewrite


def test_a_manifest_of_any_text(checked: Programs, light: Path, copy_of: Callable[..., Path]) -> None:
    """The digest is over Python's spelling of it: escapes, other scripts, numbers, nesting, keys in another order."""
    odd = ["naïve", "東京 🗼", 'quote " and \\', "tab\tbell\x07", "\u2028", "</script>", ""]

    def change(manifest: dict[str, Any]) -> None:
        manifest["classes"] = odd + [str(i) for i in range(1000 - len(odd))]
        manifest |= {
            "żółw": {"b": [1e-05, -0.0, 1.5e300, 12345678901234567890], "a": [[], {}, None, True]},
            "Z": 1,
            "a\n": 2,
        }

    folder = rewrite(copy_of(light), change)
    lines = checked.output("sit_probe", "open", folder).decode()
    assert lines.startswith("\n".join(odd) + "\n")
    assert lines.splitlines()[-1] == "1 1 1 4"
    escaped = json.loads((folder / "manifest.json").read_text(encoding="utf-8"))
    (folder / "manifest.json").write_text(
        json.dumps(escaped), encoding="utf-8"
    )  # the same in ASCII and on one line
    assert checked.output("sit_probe", "open", folder).decode() == lines


def test_bundles_that_were_changed(checked: Programs, light: Path, copy_of: Callable[..., Path]) -> None:
    def refusal(name: str, change: Callable[[Path], object]) -> str:
        folder = copy_of(light, name)
        change(folder)
        return checked.refusal("sit_probe", "open", folder)

    def edit(folder: Path) -> None:
        path = folder / "manifest.json"
        path.write_text(path.read_text().replace('"resize": 128', '"resize": 129'))

    assert "no such" in checked.refusal(
        "sit_probe", "open", light / "gone"
    ) or "is not a bundle" in checked.refusal("sit_probe", "open", light / "gone")
    assert "was changed: it does not match its digest" in refusal("edited", edit)
    assert "model.onnx does not match its hash" in refusal(
        "cut", lambda f: (f / "model.onnx").write_bytes((f / "model.onnx").read_bytes()[:-1])
    )
    assert "lacks its file engine.onnx" in refusal("less", lambda f: (f / "engine.onnx").unlink())
    assert "is not a bundle: it has no manifest.json" in refusal(
        "none", lambda f: (f / "manifest.json").unlink()
    )
    assert "not JSON at byte" in refusal("empty", lambda f: (f / "manifest.json").write_text(""))
    assert "is of a newer schema; upgrade" in refusal(
        "newer", lambda f: rewrite(f, lambda m: m.update(schema=3))
    )
    assert "lacks its file ../x" in refusal(
        "outside", lambda f: rewrite(f, lambda m: m["files"].update({"../x": {"sha256": "0", "bytes": 0}}))
    )
    assert "lists no hash for model.onnx" in refusal(
        "unlisted", lambda f: rewrite(f, lambda m: m["files"].pop("model.onnx"))
    )
    for key in ("model", "preprocessing", "batch", "engine", "files", "digest"):
        message = refusal(f"no-{key}", lambda f, key=key: _without(f, key))
        assert "lacks" in message and "build the bundle again" in message, message
    assert "contradicts itself" in refusal(
        "classes", lambda f: rewrite(f, lambda m: m.update(classes=["only one"]))
    )
    assert "lacks an entry" in refusal(
        "mean", lambda f: rewrite(f, lambda m: m["preprocessing"].update(mean=[0.5]))
    )


def _without(folder: Path, key: str) -> None:
    path = folder / "manifest.json"
    manifest = json.loads(path.read_text())
    del manifest[key]
    if key != "digest":
        manifest["digest"] = digest(manifest)
    path.write_text(json.dumps(manifest))


def test_cut_off_manifests_and_archives_never_crash(
    checked: Programs, light: Path, copy_of: Callable[..., Path]
) -> None:
    folder = copy_of(light)
    whole = (folder / "manifest.json").read_bytes()
    for cut in range(0, len(whole), len(whole) // 25):
        (folder / "manifest.json").write_bytes(whole[:cut])
        checked.refusal("sit_probe", "open", folder)
    (folder / "manifest.json").write_bytes(b"[" * 100_000)
    assert "not JSON" in checked.refusal("sit_probe", "open", folder)
    (folder / "manifest.json").write_bytes(whole)
    golden = (folder / "golden.npz").read_bytes()
    for cut in (0, 10, 100, len(golden) // 2, len(golden) - 1):
        (folder / "golden.npz").write_bytes(golden[:cut])
        rewrite(folder)
        assert "golden.npz: " in checked.refusal("sit_probe", "open", folder)


def test_golden_arrays_of_another_kind(checked: Programs, light: Path, copy_of: Callable[..., Path]) -> None:
    folder = copy_of(light)
    with np.load(folder / "golden.npz") as arrays:
        images, logits = arrays["images"], arrays["logits"]
    for save, given in (
        (np.savez_compressed, {"images": images, "logits": logits}),
        (np.savez, {"images": images.astype(np.float64), "logits": logits}),
        (np.savez, {"images": images[:2], "logits": logits}),
        (np.savez, {"images": images}),
    ):
        save(folder / "golden.npz", **given)
        rewrite(folder)
        assert "golden.npz: " in checked.refusal("sit_probe", "open", folder)


def test_a_backend_that_is_not_compiled_in(checked: Programs, nano_rtx: Path, nano_fp32: Path) -> None:
    assert "built without TensorRT; configure again with -DTENSORRT_ROOT" in checked.refusal(
        "sit_probe", "tensorrt", nano_rtx
    )
    assert (
        "holds an engine of onnxruntime, not of TensorRT; build one with --engine tensorrt"
        in checked.refusal("sit_probe", "tensorrt", nano_fp32)
    )


def test_a_graph_openvino_cannot_read(
    checked: Programs, nano_fp32: Path, copy_of: Callable[..., Path]
) -> None:
    folder = copy_of(nano_fp32)
    (folder / "model.onnx").write_bytes(b"no graph")
    rewrite(folder)
    done = checked.run("sit_check", folder)  # what OpenVINO's own readers print comes before
    assert done.returncode == 2
    assert done.stderr.decode().splitlines()[-1].startswith("Error: OpenVINO cannot load ")

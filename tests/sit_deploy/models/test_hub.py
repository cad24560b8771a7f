"""Models by repository, folder and timm's own name: through the hub's real client, offline, on a cache of its layout."""

from __future__ import annotations

import http.server
import json
import os
import threading
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from sit_deploy.errors import InputError
from sit_deploy.models.hub import origin, timm_weights
from sit_deploy.pipeline.request import BuildRequest

constants = pytest.importorskip("huggingface_hub.constants")
COMMIT = "0123456789abcdef0123456789abcdef01234567"
CONFIG = {
    "architecture": "vit_tiny_patch16_224",
    "num_classes": 3,
    "pretrained_cfg": {"mean": [0.5, 0.5, 0.5], "std": [0.5, 0.5, 0.5], "input_size": [3, 64, 64]},
}


def folder(path: Path, config: dict | None, *weights: str) -> Path:
    path.mkdir(parents=True)
    if config is not None:
        (path / "config.json").write_text(json.dumps(config))
    for name in weights:
        save_file({"head.weight": torch.zeros(3, 192)}, path / name)
    return path


@pytest.fixture
def cached(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Lay out a repository as the client keeps it: refs, snapshots, blobs."""
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)

    def make(name: str, config: dict | None, *weights: str) -> Path:
        root = tmp_path / "hub" / f"models--{name.replace('/', '--')}"
        blobs = folder(root / "blobs", config, *weights)
        (root / "refs").mkdir()
        (root / "refs" / "main").write_text(COMMIT)
        snapshot = root / "snapshots" / COMMIT
        snapshot.mkdir(parents=True)
        for blob in blobs.iterdir():
            (snapshot / blob.name).symlink_to(os.path.relpath(blob, snapshot))
        return snapshot

    return make


def completed(**fields) -> BuildRequest:
    return BuildRequest(**({"model": None, "output": Path("out")} | fields)).completed()


@pytest.mark.parametrize("prefix", ("hf-hub:me/vit", f"hf_hub:me/vit@{COMMIT}", "hf-hub:me/vit@main"))
def test_a_repository_is_its_model_and_its_safetensors(cached, prefix: str) -> None:
    snapshot = cached("me/vit", CONFIG, "model.safetensors", "pytorch_model.bin")
    request = completed(model=prefix)
    assert (request.model, request.checkpoint) == ("vit_tiny_patch16_224", snapshot / "model.safetensors")
    assert request.image_size == 64
    assert origin(request.checkpoint) == ("me/vit", COMMIT)
    assert request.completed() == request


def test_a_pickle_is_taken_where_there_is_nothing_else(cached) -> None:
    snapshot = cached("me/old", CONFIG, "pytorch_model.bin")
    assert completed(model="hf-hub:me/old").checkpoint == snapshot / "pytorch_model.bin"


def test_pretrained_is_the_weights_of_the_tag(cached) -> None:
    name = "vit_tiny_patch16_224.augreg_in21k"
    snapshot = cached(f"timm/{name}", CONFIG, "model.safetensors")
    request = completed(model=name, pretrained=True)
    assert (request.model, request.checkpoint) == (name, snapshot / "model.safetensors")
    assert timm_weights("vit_tiny_patch16_224").startswith("hf-hub:timm/vit_tiny_patch16_224.")


def test_a_folder_is_its_model(tmp_path: Path) -> None:
    path = folder(tmp_path / "a", CONFIG, "model.safetensors", "other.safetensors")
    request = completed(model=f"local-dir:{path}")
    assert (request.model, request.checkpoint) == ("vit_tiny_patch16_224", path / "model.safetensors")
    assert origin(request.checkpoint) is None


@pytest.mark.parametrize(
    ("fields", "words"),
    (
        ({"model": "hf-hub:me/none"}, "is not in the cache .*HF_HUB_OFFLINE is set.*hf download me/none"),
        ({"model": "hf-hub:a/b/c"}, "is no name of a repository"),
        ({"model": "hf-hub:me/bert"}, r"is a model of transformers \(model_type bert\)"),
        ({"model": "hf-hub:me/own"}, r"arguments of its own \(reg_tokens\)"),
        ({"model": "hf-hub:me/empty"}, "model.safetensors of hf-hub:me/empty is not in the cache"),
        ({"model": "sit_s", "pretrained": True}, "sit_s.*; pass --checkpoint FILE"),
        ({"model": "vit_tiny_patch16_224.nobody", "pretrained": True}, "leave out what follows the dot"),
        ({"model": "vit_huge_patch14_gap_224.in1k_ijepa", "pretrained": True}, "not on the hub; download http"),
        ({"pretrained": True}, "pass its name with --model"),
        ({"model": "sit_s", "pretrained": True, "checkpoint": "a.pth"}, "pass one of them"),
        ({"model": "local-dir:nowhere"}, "no config.json in nowhere"),
    ),
)  # fmt: skip
def test_what_is_refused(cached, fields: dict, words: str) -> None:
    cached("me/bert", {"model_type": "bert"}, "model.safetensors")
    cached("me/own", {**CONFIG, "model_args": {"reg_tokens": 4}}, "model.safetensors")
    cached("me/empty", CONFIG)
    with pytest.raises(InputError, match=words) as error:
        completed(**fields)
    assert "\n" not in str(error.value)


def test_two_files_that_may_be_meant(tmp_path: Path) -> None:
    path = folder(tmp_path / "two", CONFIG, "a.safetensors", "b.safetensors")
    with pytest.raises(InputError, match="2 files of weights"):
        completed(model=f"local-dir:{path}")


@pytest.mark.slow
def test_a_model_that_timm_saved_is_exported_with_its_preprocessing_and_origin(cached, cli) -> None:
    import timm
    from timm.models._hub import save_config_for_hf

    from sit_deploy.models.hub import label_names

    model = timm.create_model("vit_tiny_patch16_224", num_classes=3, img_size=32)
    snapshot = cached("me/three", None)
    save_config_for_hf(model, str(snapshot / "config.json"), {"label_names": ["a", "b", "c"]})
    save_file(model.state_dict(), snapshot / "model.safetensors")
    result = cli("export", "--model", "hf-hub:me/three", "-o", "m.onnx", "--json").json()
    assert (result["weights"]["repository"], result["weights"]["revision"]) == ("me/three", COMMIT)
    assert result["preprocessing"]["size"] == [32, 32]
    assert result["preprocessing"]["mean"] == [0.5, 0.5, 0.5]
    assert label_names(snapshot / "model.safetensors", 3) == ["a", "b", "c"]
    assert label_names(snapshot / "model.safetensors", 4) is None


@pytest.mark.parametrize(
    ("status", "code", "words"),
    (
        (404, "RepoNotFound", "has no model me/x, or a private one"),
        (401, "GatedRepo", "hf-hub:me/x is gated; ask for access"),
        (403, "GatedRepo", "hf-hub:me/x is gated; ask for access"),
        (404, "RevisionNotFound", "has no revision v9; leave out @v9"),
        (404, "EntryNotFound", "has no config.json and no model.safetensors"),
    ),
)
def test_what_the_hub_refuses(
    cached, monkeypatch: pytest.MonkeyPatch, status: int, code: str, words: str
) -> None:
    class Hub(http.server.BaseHTTPRequestHandler):
        def do_HEAD(self) -> None:
            self.send_response(status)
            self.send_header("X-Error-Code", code)
            self.send_header("X-Repo-Commit", COMMIT)
            self.send_header("Content-Length", "0")
            self.end_headers()

        do_GET = do_HEAD  # noqa: N815

        def log_message(self, *_: object) -> None:
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Hub) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
        monkeypatch.setattr(constants, "ENDPOINT", f"http://127.0.0.1:{server.server_port}")
        monkeypatch.setattr(
            constants,
            "HUGGINGFACE_CO_URL_TEMPLATE",
            constants.ENDPOINT + "/{repo_id}/resolve/{revision}/{filename}",
        )
        with pytest.raises(InputError, match=words):
            completed(model="hf-hub:me/x@v9")
        server.shutdown()


def test_a_pickle_with_code_is_never_run(cached, cli, tmp_path: Path) -> None:
    class Code:
        def __reduce__(self) -> tuple:
            return os.mkdir, (str(tmp_path / "ran"),)

    snapshot = cached("me/code", CONFIG, "pytorch_model.bin")
    (snapshot / "pytorch_model.bin").unlink()
    torch.save({"state_dict": Code()}, snapshot / "pytorch_model.bin")
    message = cli.refuses("export", "--model", "hf-hub:me/code", "-o", "m.onnx")
    assert "never loaded" in message
    assert not (tmp_path / "ran").exists()
    assert not (tmp_path / "m.onnx").exists()

"""Repositories of the Hugging Face Hub without a network: laid out in the client's cache, or served from this machine."""

from __future__ import annotations

import hashlib
import http.server
import json
import os
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest

COMMIT = "0123456789abcdef0123456789abcdef01234567"
CONFIG = {
    "architecture": "vit_tiny_patch16_224",
    "num_classes": 3,
    "pretrained_cfg": {"mean": [0.5, 0.5, 0.5], "std": [0.5, 0.5, 0.5], "input_size": [3, 64, 64]},
}


def head_alone() -> bytes:
    """Return a safetensors file with a head and nothing else, which is enough to be found."""
    import torch
    from safetensors.torch import save

    return save({"head.weight": torch.zeros(3, 192)})


def fill(folder: Path, config: dict | None, *files: str) -> Path:
    """Write a config.json and files of weights, all of `head_alone`, into a new folder."""
    folder.mkdir(parents=True)
    if config is not None:
        (folder / "config.json").write_text(json.dumps(config))
    for name in files:
        (folder / name).write_bytes(head_alone())
    return folder


@pytest.fixture
def cached(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Path]:
    """Give the function that lays a repository out as the client keeps it (refs, snapshots, blobs); the client is offline."""
    constants = pytest.importorskip("huggingface_hub.constants")
    cache = tmp_path_factory.mktemp("hub")
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(cache))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)

    def make(name: str, config: dict | None, *files: str) -> Path:
        root = cache / f"models--{name.replace('/', '--')}"
        blobs = fill(root / "blobs", config, *files)
        (root / "refs").mkdir()
        (root / "refs" / "main").write_text(COMMIT)
        snapshot = root / "snapshots" / COMMIT
        snapshot.mkdir(parents=True)
        for blob in blobs.iterdir():
            (snapshot / blob.name).symlink_to(os.path.relpath(blob, snapshot))
        return snapshot

    return make


@dataclass
class Hub:
    """A server that answers as the hub does.

    Attributes:
        models: files of each repository.
        others: repositories of other types, as in datasets/OWNER/NAME.
        refusal: status and code of every answer, in place of files.
        cut: send half of each file, and close.
        fetched: names of the files whose content was asked for.
    """

    models: dict[str, dict[str, bytes]] = field(default_factory=dict)
    others: set[str] = field(default_factory=set)
    refusal: tuple[int, str] | None = None
    cut: bool = False
    fetched: list[str] = field(default_factory=list)

    def answer(self, path: str) -> tuple[int, str, bytes]:
        """Return status, code and content of what is asked for."""
        parts = path.partition("?")[0].strip("/").split("/")
        if parts[0] == "api":
            kind, name = parts[1], "/".join(parts[2:4])
            if kind == "models" and name in self.models and "tree" in parts:
                rows = [{"type": "file", "path": f, "size": 1, "oid": COMMIT} for f in self.models[name]]
                return 200, "", json.dumps(rows).encode()
            known = f"{kind}/{name}" in self.others or (kind == "models" and name in self.models)
            return (
                (200, "", json.dumps({"id": name, "sha": COMMIT}).encode())
                if known
                else (404, "RepoNotFound", b"")
            )
        if self.refusal:
            return *self.refusal, b""
        name, (revision, file) = "/".join(parts[:2]), parts[3:5]
        if name not in self.models:
            return 404, "RepoNotFound", b""
        if revision not in ("main", COMMIT):
            return 404, "RevisionNotFound", b""
        content = self.models[name].get(file)
        return (404, "EntryNotFound", b"") if content is None else (200, "", content)


@pytest.fixture
def hub(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    """Give a server in the hub's place, and an empty cache."""
    constants = pytest.importorskip("huggingface_hub.constants")
    state = Hub()

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            status, code, content = state.answer(self.path)
            self.send_response(status)
            for key, value in {
                "X-Error-Code": code,
                "X-Repo-Commit": COMMIT,
                "ETag": f'"{hashlib.sha256(content).hexdigest()}"',
                "Content-Length": str(len(content)),
            }.items():
                self.send_header(key, value)
            self.end_headers()
            if self.command == "GET":
                if "/resolve/" in self.path:
                    state.fetched.append(self.path.rpartition("/")[2])
                if state.cut:
                    self.wfile.write(content[: len(content) // 2])
                    self.close_connection = True
                else:
                    self.wfile.write(content)

        do_HEAD = do_GET  # noqa: N815

        def log_message(self, *_: object) -> None:
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        endpoint = f"http://127.0.0.1:{server.server_port}"
        monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path_factory.mktemp("hub")))
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
        monkeypatch.setattr(constants, "ENDPOINT", endpoint)
        monkeypatch.setattr(
            constants, "HUGGINGFACE_CO_URL_TEMPLATE", endpoint + "/{repo_id}/resolve/{revision}/{filename}"
        )
        monkeypatch.setattr("huggingface_hub.utils._http.time.sleep", lambda _: None)  # between tries
        yield state
        server.shutdown()

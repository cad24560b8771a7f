"""Files given as checkpoints, known by what is in them: read whatever their ending, or called what they are."""

from __future__ import annotations

import gzip
import io
import json
import lzma
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from sit_deploy.errors import InputError
from sit_deploy.models import read_checkpoint
from sit_deploy.models.card import ModelCard
from sit_deploy.models.card_file import read_card, save_weights
from sit_deploy.preprocessing import Preprocessing
from tests.helpers.models import named_model

STATE = {"norm.weight": torch.arange(4.0), "blocks.0.norm1.weight": torch.ones(2)}


@pytest.mark.parametrize("ending", [".bin", ".pth", ".ckpt", ".safetensors", ".pt.download", ""])
@pytest.mark.parametrize("writer", ["safetensors", "archive", "stream"])
def test_endings_say_nothing(writer: str, ending: str, tmp_path: Path) -> None:
    path = tmp_path / f"weights{ending}"
    if writer == "safetensors":
        save_file(STATE, path)
    else:
        torch.save(STATE, path, _use_new_zipfile_serialization=writer == "archive")
    assert torch.equal(read_checkpoint(path).state["norm.weight"], STATE["norm.weight"])


def test_a_card_is_found_whatever_the_ending(tmp_path: Path) -> None:
    card = ModelCard("sit_nano", (2, 2, 2, 2), 0.5, (49, 24, 12, 6), 112, 10, Preprocessing.for_model(112))
    save_weights(tmp_path / "a.safetensors", named_model("sit_nano", num_classes=10).state_dict(), card)
    (tmp_path / "a.safetensors").rename(tmp_path / "a.bin")
    assert read_card(tmp_path / "a.bin") == card


def packed(write: Callable[[io.BytesIO], None]) -> bytes:
    buffer = io.BytesIO()
    write(buffer)
    return buffer.getvalue()


def torch_bytes() -> bytes:
    return packed(lambda file: torch.save(STATE, file))


def zipped(**entries: bytes) -> bytes:
    def write(file: io.BytesIO) -> None:
        with zipfile.ZipFile(file, "w") as archive:
            for name, data in entries.items():
                archive.writestr(name.replace("__", "/").replace("_dot_", "."), data)

    return packed(write)


def tarred() -> bytes:
    def write(file: io.BytesIO) -> None:
        with tarfile.open(fileobj=file, mode="w") as archive:
            archive.addfile(tarfile.TarInfo("weights.pth"), io.BytesIO())

    return packed(write)


def onnx_bytes() -> bytes:
    from onnx import TensorProto, helper

    value = helper.make_tensor_value_info("x", TensorProto.FLOAT, [1])
    other = helper.make_tensor_value_info("y", TensorProto.FLOAT, [1])
    graph = helper.make_graph([helper.make_node("Relu", ["x"], ["y"])], "g", [value], [other])
    return helper.make_model(graph, producer_name="pytorch").SerializeToString()


def index(*shards: str) -> bytes:
    weight_map = {f"blocks.{i}.norm1.weight": name for i, name in enumerate(shards)}
    return json.dumps({"metadata": {}, "weight_map": weight_map}).encode()


LFS = b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 12345\n"
WHAT: dict[str, tuple[Callable[[], bytes], str]] = {
    "web page": (lambda: b"<!DOCTYPE html>\n<html><body>Sign in</body></html>", "is a web page; the download"),
    "web page with a space": (lambda: b"\n\n <html lang=en>", "is a web page"),
    "Git LFS": (lambda: LFS, "is a Git LFS pointer, not the file itself; fetch it: git lfs pull"),
    "git-annex": (lambda: b"/annex/objects/SHA256E-s1--ab.pth\n", "is a git-annex pointer"),
    "XML": (lambda: b"<?xml version='1.0'?><Error><Code>AccessDenied</Code></Error>", "is XML"),
    "JSON": (lambda: b'{"error": "Repository not found"}', "is JSON, not weights"),
    "index": (lambda: index("a.safetensors", "b.safetensors"), "is the index of a model in 2 shards; save it in one"),
    "index of one": (lambda: index("a.safetensors"), "its file, a.safetensors"),
    "gzip": (lambda: gzip.compress(torch_bytes()), "is compressed by gzip; unpack"),
    "xz": (lambda: lzma.compress(torch_bytes()), "is compressed by xz; unpack"),
    "tar": (tarred, "is a tar archive; unpack"),
    "zip": (lambda: zipped(weights_dot_pth=torch_bytes()), "is a zip archive of 'weights.pth'; unpack it"),
    "npz": (lambda: packed(lambda file: np.savez(file, a=np.ones(2))), "is NumPy's arrays"),
    "Keras": (lambda: zipped(model_dot_weights_dot_h5=b"", config_dot_json=b"{}"), "is a Keras model"),
    "HDF5": (lambda: b"\x89HDF\r\n\x1a\n" + bytes(64), "is an HDF5 file"),
    "ONNX": (onnx_bytes, "is an ONNX graph"),
    "picture": (lambda: b"\x89PNG\r\n\x1a\n" + bytes(64), "is a picture"),
    "GGUF": (lambda: b"GGUF" + bytes(64), "is a GGUF file"),
    "another pickle": (lambda: __import__("pickle").dumps({"w": [1.0]}), "not a PyTorch checkpoint but another pickle"),
    "text": (lambda: b"404: Not Found", "is text, not a PyTorch checkpoint; copy it again"),
    "nothing known": (lambda: bytes(range(255, 0, -1)), "is not a "),
}  # fmt: skip


@pytest.mark.parametrize("ending", [".pth", ".safetensors"])
@pytest.mark.parametrize("kind", WHAT)
def test_what_is_no_checkpoint_is_called_what_it_is(kind: str, ending: str, tmp_path: Path) -> None:
    write, words = WHAT[kind]
    path = tmp_path / f"weights{ending}"
    path.write_bytes(write())
    with pytest.raises(InputError) as caught:
        read_checkpoint(path)
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)
    assert "corrupt" not in str(caught.value)


def test_folders(tmp_path: Path) -> None:
    folder = tmp_path / "model"
    folder.mkdir()
    with pytest.raises(InputError, match="is a folder without weights"):
        read_checkpoint(folder)
    (folder / "config.json").write_text("{}")
    save_file(STATE, folder / "model.safetensors")
    assert read_checkpoint(folder).path == folder / "model.safetensors"
    torch.save(STATE, folder / "pytorch_model.bin")
    torch.save({}, folder / "training_args.bin")
    assert read_checkpoint(folder).path == folder / "model.safetensors"
    for name in ("optimizer.bin", "scheduler.bin", "scaler.pt"):  # as accelerate leaves them
        torch.save({}, folder / name)
    assert read_checkpoint(folder).path == folder / "model.safetensors"
    torch.save(STATE, folder / "epoch=3.ckpt")
    with pytest.raises(InputError, match=r"with 3 files of weights, not a file; give one of epoch=3\.ckpt"):
        read_checkpoint(folder)
    sharded = tmp_path / "sharded"
    sharded.mkdir()
    for name in ("model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"):
        save_file(STATE, sharded / name)
    (sharded / "model.safetensors.index.json").write_bytes(index("a.safetensors", "b.safetensors"))
    with pytest.raises(InputError, match="is the index of a model in 2 shards; save it in one file"):
        read_checkpoint(sharded)
    for name, words in (("__0_0.distcp", "dcp_to_torch"), ("zero_to_fp32.py", "zero_to_fp32.py")):
        shards = tmp_path / name.partition(".")[0]
        shards.mkdir()
        (shards / name).touch()
        with pytest.raises(InputError, match=words):
            read_checkpoint(shards)

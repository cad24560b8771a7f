"""What kind of file a checkpoint is, by its first bytes, and what to do with one that is no checkpoint.

Imports nothing heavy.
"""

from __future__ import annotations

import json
import re
import struct
import zipfile
from collections.abc import Iterable
from pathlib import Path

from sit_deploy.errors import InputError

MAX_SAFETENSORS_HEADER = 100_000_000  # bytes; the limit of the safetensors format's own reader
_TRANSFORMERS = ("model.safetensors", "pytorch_model.bin")
ADAPTER = "adapter_config.json"  # of PEFT
# what transformers, PEFT and accelerate write beside a model's weights
_COMPANION = re.compile(
    r"(adapter_model|training_args|optimizer|scheduler|scaler|sampler|rng_state|random_states|dl_state_dict)\b"
)
_ADDRESS = re.compile(r"(https?|s3|gs|ftp):/")
_ENDINGS = (".safetensors", ".pth", ".pt", ".ckpt", ".bin", ".tar")

# first bytes of what is known, what it is, and what to do
_FOREIGN = (
    (b"version https://git-lfs", "a Git LFS pointer, not the file itself", "fetch it: git lfs pull"),
    (b"/annex/objects/", "a git-annex pointer, not the file itself", "fetch it: git annex get"),
    (b"\x1f\x8b", "compressed by gzip", "unpack it first: gunzip, or tar -xzf"),
    (b"\xfd7zXZ\x00", "compressed by xz", "unpack it first: unxz, or tar -xJf"),
    (b"BZh", "compressed by bzip2", "unpack it first: bunzip2, or tar -xjf"),
    (b"\x28\xb5\x2f\xfd", "compressed by zstd", "unpack it first: unzstd"),
    (b"7z\xbc\xaf\x27\x1c", "a 7z archive", "unpack it first"),
    (b"Rar!", "a RAR archive", "unpack it first"),
    (b"\x89HDF\r\n\x1a\n", "an HDF5 file (Keras)", "convert its weights to PyTorch"),
    (b"GGUF", "a GGUF file", "give the PyTorch or safetensors file that it was made of"),
    (b"%PDF", "a PDF document", "give a .pth or .safetensors of a model's weights"),
    (b"\x89PNG", "a picture", "give a .pth or .safetensors of a model's weights"),
    (b"\xff\xd8\xff", "a picture", "give a .pth or .safetensors of a model's weights"),
)  # fmt: skip
FLAX_MARK = "embedding/kernel"  # in the names of every vision transformer of Google's
_ONNX_VERSIONS = [bytes([version]) for version in range(3, 32)]  # of its representation, the first field


def find_file(path: str | Path) -> Path:
    """Return the one weights file that a checkpoint's path means: itself, or the one in a folder.

    Raises:
        InputError: nothing there, no file of weights in it, or several.
    """
    path = Path(path)
    if _ADDRESS.match(str(path)) and not path.exists():
        raise InputError(
            f"checkpoint {path} is an address, and nothing is fetched from one; download it, or name a repository of the Hugging Face Hub: "
            "hf-hub:OWNER/NAME"
        )
    try:
        if not path.is_dir():
            return path
        files = sorted(f for f in path.iterdir() if f.is_file())
    except OSError as error:
        raise InputError(
            f"checkpoint {path} cannot be read ({error.strerror}); check its path and its permissions"
        ) from None
    weights = [f for f in files if f.suffix.lower() in _ENDINGS]
    if len(weights) == 1:
        return weights[0]
    models = [f for f in weights if weights_among([f.name])]
    if models and all(f.name in _TRANSFORMERS for f in models):  # the same twice
        return min(models, key=lambda f: _TRANSFORMERS.index(f.name))
    if len(models) == 1:
        return models[0]
    if index := [f for f in files if f.name.endswith((".safetensors.index.json", ".bin.index.json"))]:
        return index[0]  # whose reader says what to do with shards
    if any(f.name.endswith(".distcp") for f in files):
        raise InputError(
            f"checkpoint {path} is a folder of shards (torch.distributed.checkpoint), not a file; join them first: python -m "
            "torch.distributed.checkpoint.format_utils dcp_to_torch FOLDER weights.pth"
        )
    if (path / "zero_to_fp32.py").is_file():
        raise InputError(
            f"checkpoint {path} is a folder of DeepSpeed, not a file; join its shards first: python {path}/zero_to_fp32.py "
            "FOLDER weights.pth"
        )
    if models:
        some = ", ".join(f.name for f in models[:5])
        raise InputError(
            f"checkpoint {path} is a folder with {len(models)} files of weights, not a file; give one of {some}"
        )
    raise InputError(
        f"checkpoint {path} is a folder without weights, not a file; give the path of a .pth or .safetensors"
    )


def weights_among(names: Iterable[str]) -> list[str]:
    """Return the names of files that may be a model's weights: by their endings, and not what trainers write beside them."""
    return [n for n in names if Path(n).suffix.lower() in _ENDINGS and not _COMPANION.match(n)]


def is_safetensors(path: Path) -> bool:
    """Say whether a file begins as safetensors do: the length of a header, little-endian, and a JSON object."""
    try:
        with path.open("rb") as file:
            start = file.read(9)
    except OSError:
        return False
    return (
        len(start) == 9 and start[8:] == b"{" and struct.unpack("<Q", start[:8])[0] <= MAX_SAFETENSORS_HEADER
    )


def file_kind(path: Path) -> str:
    """Return "safetensors", "archive" (of torch.save), "stream" (its old format) or "npz" (of Google's).

    Raises:
        InputError: anything else, called what it is.
        OSError: it cannot be read.
    """
    with path.open("rb") as file:
        start = file.read(4096)
    if is_safetensors(path):
        return "safetensors"
    if start.startswith(b"PK\x03\x04"):
        return _archive_kind(path)
    for magic, what, remedy in _FOREIGN:
        if start.startswith(magic):
            raise InputError(f"checkpoint {path} is {what}; {remedy}")
    if start[257:262] == b"ustar":
        raise InputError(f"checkpoint {path} is a tar archive; unpack it first: tar -xf")
    if start[:1] == b"\x08" and start[1:2] in _ONNX_VERSIONS and start[2:3] in (b"\x12", b"\x3a"):
        raise InputError(
            f"checkpoint {path} is an ONNX graph; give the PyTorch or safetensors file that it was exported from"
        )
    if start[:1] == b"\x80" and start[1:2] <= b"\x05":
        return "stream"
    _refuse_text(path, start)
    if path.suffix.lower() == ".safetensors":
        raise InputError(f"checkpoint {path} is not a readable safetensors file; copy it again")
    raise InputError(
        f"checkpoint {path} is not a PyTorch checkpoint; give a .pth or .safetensors of a model's weights"
    )


def _archive_kind(path: Path) -> str:
    try:
        with zipfile.ZipFile(path) as archive:
            names = archive.namelist()
    except (zipfile.BadZipFile, ValueError, NotImplementedError) as error:
        raise InputError(
            f"checkpoint {path} is a damaged archive ({str(error)[:80]}); copy it again"
        ) from None
    tails = {name.partition("/")[2] for name in names}
    if "constants.pkl" in tails or "code" in {tail.split("/")[0] for tail in tails}:
        raise InputError(
            f"checkpoint {path} is a TorchScript program; save the weights of its model: torch.save(model.state_dict(), "
            "'weights.pth')"
        )
    if "data.pkl" in tails:
        return "archive"
    if names and all(name.endswith(".npy") for name in names):
        if any(name.endswith(f"{FLAX_MARK}.npy") for name in names):
            return "npz"
        what = (
            "NumPy's arrays (.npz), and none of Google's vision transformers; save them as a state dict: torch.save({name: tensor, ...}, "
            "'weights.pth')"
        )
    elif "model.weights.h5" in names:
        what = "a Keras model; convert its weights to PyTorch"
    elif any(tail.startswith(("models/", "data/weights")) or tail == "archive_format" for tail in tails):
        what = "a program of torch.export; save the weights of its model: torch.save(model.state_dict(), 'weights.pth')"
    else:
        what = f"a zip archive of {', '.join(map(repr, names[:3])) or 'nothing'}; unpack it, and give the weights in it"
    raise InputError(f"checkpoint {path} is {what}")


def _refuse_text(path: Path, start: bytes) -> None:
    """Refuse what is text, called what it is."""
    try:
        text = start.decode("utf-8", "strict" if len(start) < 4096 else "ignore").lstrip("\ufeff \t\r\n")
    except UnicodeDecodeError:
        return
    lower = text[:200].lower()
    if lower.startswith(("<!doctype html", "<html", "<head")) or "<html" in lower:
        raise InputError(
            f"checkpoint {path} is a web page; the download gave its page instead of the file: take the link of the file itself"
        )
    if lower.startswith("<"):
        raise InputError(
            f"checkpoint {path} is XML, often a server's refusal of a download; look into it, and download the file again"
        )
    if lower.startswith(("{", "[")):
        raise InputError(f"checkpoint {path} {_json_kind(path)}")
    if text.isprintable() or all(c.isprintable() or c in "\r\n\t" for c in text):
        raise InputError(
            f"checkpoint {path} is text, not a PyTorch checkpoint; copy it again, or give a .pth or .safetensors of a model's weights"
        )


def _json_kind(path: Path) -> str:
    try:
        fields = json.loads(path.read_bytes()[:50_000_000])
    except (ValueError, RecursionError, OSError):
        fields = None
    shards = fields.get("weight_map") if isinstance(fields, dict) else None
    if isinstance(shards, dict):
        files = sorted({str(name) for name in shards.values()})
        if len(files) == 1:
            return f"is the index of a model in shards; give its file, {files[0]}"
        return (
            f"is the index of a model in {len(files)} shards; save it in one file: "
            "model.save_pretrained(folder, max_shard_size='100GB')"
        )
    return "is JSON, not weights; give a .pth or .safetensors of a model's weights"

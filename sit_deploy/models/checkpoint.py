"""Reading checkpoint files safely: whatever trainer wrote them, and without running anything that is in them.

Pickles are read by `sit_deploy.models.unpickle`, which looks no name up; safetensors files are read as they are.
"""

from __future__ import annotations

import re
import zipfile
import zlib
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from sit_deploy.errors import InputError
from sit_deploy.files import sha256
from sit_deploy.models import flax_names, hugging_face_names
from sit_deploy.models.file_kind import ADAPTER, file_kind, find_file
from sit_deploy.models.find_weights import Fits, find_weights, left_out_words, split_riders
from sit_deploy.models.float8 import check_float8
from sit_deploy.models.torch_file import DamagedFileError, OtherPickleError, Stored, read_archive, read_stream
from sit_deploy.models.unpickle import HostilePickle, full_name
from sit_deploy.text import WarningText, shown

StateDict = dict[str, Tensor]
_AVERAGES = re.compile(r"(^|[._])(ema|shadow|averaged?)([._]|$)")
_SHARD = re.compile(r"-\d{5}-of-(?!00001)(\d{5})\.(safetensors|bin)$")  # as transformers calls them


@dataclass(frozen=True)
class Checkpoint:
    """Weights as read from a file.

    Attributes:
        path: of the file.
        state: the weights, by the names of the model.
        source: which entry of the file they are.
        sha256: of the file's bytes.
        prefix: of their names there.
        notes: what was renamed and what was left out, a sentence each.
        heads: of its attention, where the shapes in the file show them and those of the weights do not.
    """

    path: Path
    state: StateDict
    source: str
    sha256: str
    prefix: str = ""
    notes: tuple[str, ...] = ()
    heads: int | None = None

    @property
    def antialias(self) -> bool:
        """Whether positions are resampled with it, as timm does; transformers does so of DINOv2 with registers alone."""
        registers = {"reg_token", "blocks.0.ls1.gamma"} <= self.state.keys()
        return registers or hugging_face_names.NOTE not in self.notes


def read_checkpoint(
    path: str | Path,
    ema: bool = True,
    key: str | None = None,
    key_is_shared: bool = False,
    names: Collection[str] = (),
    fits: Fits | None = None,
) -> Checkpoint:
    """Read the weights in a PyTorch or safetensors checkpoint, or in the one such file of a folder.

    Args:
        path: of the file, or of its folder.
        ema: take the averaged weights where the file has them beside the plain ones.
        key: entry of the file, prefix of names, or both (dotted), under which the weights stand, where there are several.
        key_is_shared: the key may be of another file, if this one has nothing there.
        names: see `sit_deploy.models.find_weights.find_weights`.
        fits: likewise.

    Raises:
        InputError: missing, unreadable, damaged, of another kind, without weights, with several to choose from, or with
            weights that are no finite numbers.
    """
    path = Path(path)
    try:
        path = find_file(path)
        if not path.is_file():
            raise InputError(
                f"checkpoint {path} does not exist or is not a file; give the path of a .pth or .safetensors"
            )
        if not path.stat().st_size:
            raise InputError(f"checkpoint {path} is empty; copy it again")
        kind = file_kind(path)
        digest = sha256(path)
    except OSError as error:
        raise InputError(
            f"checkpoint {path} cannot be read ({error.strerror}); check its path and its permissions"
        ) from None
    where = f"checkpoint {path}"
    _refuse_adapters(path, where)
    if shard := _SHARD.search(path.name):
        raise InputError(
            f"{where} is one of {int(shard[1])} shards of a model; save it in one file: model.save_pretrained(folder, max_shard_size='100GB')"
        )
    readers = {"safetensors": _read_safetensors, "npz": _read_npz}
    content = readers[kind](path) if kind in readers else _read_torch(path, kind)
    if objects := _objects(content):
        raise InputError(f"{where} {_object_words(objects[0])}")
    weights = find_weights(content, where, ema, key, key_is_shared, names, fits)
    stored, riders = split_riders(weights, where, chosen=key in (weights.address, weights.prefix.rstrip(".")))
    values = _read_values(stored, path)
    low = check_float8(values, [*weights.names, *weights.beside], where)
    averages = _nameless_averages(content) if ema and not weights.averaged else None
    notes = tuple(filter(None, (*weights.notes, left_out_words(riders), low, averages)))
    source = weights.entry or "state_dict"
    heads = flax_names.head_count(content) if kind == "npz" else None
    return Checkpoint(path, values, source, digest, weights.prefix, notes, heads)


def _nameless_averages(content: Any, at: tuple[str, ...] = ()) -> WarningText | None:
    """Warn of averaged weights that are a list without names, as torch_ema's `shadow_params`: whose each is cannot be told."""
    for key, value in content.items() if isinstance(content, dict) else ():
        place = (*at, str(key))
        if isinstance(value, list) and len(value) > 1 and all(isinstance(one, Stored) for one in value):
            if _AVERAGES.search(".".join(place).lower()):
                return WarningText(
                    f"the averaged weights in it ({shown('.'.join(place))}) have no names and were not taken: the plain ones were; if the averages "
                    "are the model, copy them into it and save that: ema.copy_to(model.parameters()), torch.save(model.state_dict(), ...)"
                )
        elif found := _nameless_averages(value, place):
            return found
    return None


def _refuse_adapters(path: Path, where: str) -> None:
    """Refuse weights whose folder has an adapter, which transformers adds to them wherever it loads the folder."""
    try:
        if not path.with_name(ADAPTER).is_file():
            return
    except OSError:  # a folder that cannot be looked into
        return
    merge = "merge it and save the whole: model.merge_and_unload().save_pretrained(folder)"
    if path.name.startswith("adapter_model"):
        raise InputError(f"{where} is an adapter (PEFT), not a model; {merge}")
    raise InputError(
        f"{where} has an adapter (PEFT) beside it ({ADAPTER}), which transformers adds to its weights and which is not read here; {merge}, "
        "or move the adapter elsewhere to do without"
    )


def _objects(content: Any) -> list[str]:
    """Return the classes of pickled models, where a file has those in place of weights."""
    values = list(content.values()) if isinstance(content, dict) else [content]
    if any(isinstance(v, Stored | dict) and v for v in values):
        return []
    return [name for v in values if (name := full_name(v)) and not name.startswith(_DATA)]


# modules whose objects are mere data, of which no model is made
_DATA = (
    "torch.Size",
    "torch.device",
    "collections.",
    "_codecs.",
    "numpy.",
    "pathlib.",
    "argparse.",
    "datetime.",
)


def _read_values(tensors: dict[str, Stored], path: Path) -> StateDict:
    """Read the tensors of a state dict."""
    state = {}
    for key, stored in tensors.items():
        try:
            state[key] = stored.read()
        except (
            DamagedFileError,
            zipfile.BadZipFile,
            OSError,
            RuntimeError,
            ValueError,
            KeyError,
            MemoryError,
        ) as error:
            raise InputError(f"checkpoint {path} {_damaged_words(error)}") from None
        _check_values(key, state[key], path)
    return state


def _check_values(key: str, value: Tensor, path: Path) -> None:
    if value.is_meta or value.is_quantized or value.is_complex() or value.layout != torch.strided:
        raise InputError(
            f"checkpoint {path} holds no plain numbers in '{key}' (a quantized, sparse, complex or empty tensor); save the float model"
        )
    if not value.is_floating_point() or key.endswith("num_batches_tracked"):
        return  # the counter of BatchNorm, which nothing reads, overflows where a whole state dict was made half
    once = value[tuple(slice(None) if step else 0 for step in value.stride())] if value.numel() else value
    if once.numel() > 4 * value.untyped_storage().nbytes():
        raise InputError(
            f"checkpoint {path} {_damaged_words(DamagedFileError(f'{key} is larger than its values'))}"
        )
    finite = torch.isfinite(once.float())  # in float32, as it will be used
    if not finite.all():
        raise InputError(
            f"checkpoint {path} has {int((~finite).sum())} NaN or infinite values in '{key}', which no model runs with; take another checkpoint, or an earlier one"
        )


def _read_safetensors(path: Path) -> Any:
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        state = load_file(path)
    except (SafetensorError, OSError, ValueError, AttributeError, KeyError) as error:
        raise InputError(
            f"checkpoint {path} is not a readable safetensors file ({_line(error)}); copy it again"
        ) from None
    return {key: Stored(tuple(value.shape), lambda value=value: value) for key, value in state.items()}


def _read_npz(path: Path) -> dict[str, Stored]:
    """Read NumPy's arrays; objects among them, which could run code, are refused."""
    import numpy as np

    try:
        with np.load(path, allow_pickle=False) as file:
            arrays = {name: file[name] for name in file.files}
    except ValueError as error:
        if "allow_pickle" in str(error):
            raise InputError(f"checkpoint {path} {_object_words('an array of objects')}") from None
        raise InputError(f"checkpoint {path} {_damaged_words(error)}") from None
    except (OSError, EOFError, KeyError, zipfile.BadZipFile, zlib.error, MemoryError) as error:
        raise InputError(f"checkpoint {path} {_damaged_words(error)}") from None
    stored = {}
    for name, array in arrays.items():
        if array.dtype == np.dtype("V2"):  # bfloat16, which NumPy has no type for
            value = torch.from_numpy(array.view(np.int16).copy()).view(torch.bfloat16).float()
        elif array.dtype.kind in "fiub":
            value = torch.from_numpy(
                np.ascontiguousarray(array.astype(array.dtype.newbyteorder("="))).reshape(array.shape)
            )
        else:
            continue  # words, which are no weights
        stored[name] = Stored(tuple(value.shape), lambda value=value: value)
    return stored


def _read_torch(path: Path, kind: str) -> Any:
    try:
        return (read_archive if kind == "archive" else read_stream)(path)
    except HostilePickle as error:
        raise InputError(f"checkpoint {path} {_object_words(error.name)}") from None
    except OtherPickleError:
        raise InputError(
            f"checkpoint {path} is not a PyTorch checkpoint but another pickle, which is never loaded; save the weights by "
            "torch.save(model.state_dict(), 'weights.pth')"
        ) from None
    except Exception as error:  # of corrupt bytes an unpickler may make any of them
        raise InputError(f"checkpoint {path} {_damaged_words(error)}") from None


def _object_words(name: str) -> str:
    shown = name if name.isprintable() and len(name) < 200 else repr(name[:40])
    return (
        f"holds a pickled Python object, {shown}, which could run code and is never loaded; "
        "save its weights alone: torch.save(model.state_dict(), 'weights.pth')"
    )


def _damaged_words(error: Exception) -> str:
    return f"is corrupt ({type(error).__name__}: {_line(error)}); copy it again"


def _line(error: Exception) -> str:
    return next(iter(str(error).strip().splitlines()), "")[:120]

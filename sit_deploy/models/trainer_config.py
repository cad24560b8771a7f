"""What a checkpoint's own trainer wrote down of how images are prepared: in the file, or in one beside it.

It is believed where it cannot mean anything else: three numbers called mean, three called std. It stands in the checkpoint
(timm's `args`, Lightning's `hyper_parameters`, ...) or in a file beside it (preprocessor_config.json or processor_config.json of
Hugging Face's transformers, config.json of timm, open_clip_config.json).
"""

from __future__ import annotations

import contextlib
import math
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sit_deploy.errors import InputError
from sit_deploy.models.catalog import get_config
from sit_deploy.models.config import ModelConfig
from sit_deploy.models.config_json import (
    CONFIG,
    OPEN_CLIP,
    PREPROCESSOR,
    PROCESSOR,
    ConfigJson,
    fields_beside,
)
from sit_deploy.models.data_config import FIELDS, DataConfig, Source, from_name
from sit_deploy.models.file_kind import file_kind, find_file, is_safetensors

if TYPE_CHECKING:  # with torch
    from sit_deploy.models.torch_file import Stored

# of images, and not of what a model foretells (y_mean)
_BUFFER = re.compile(r"((?:.*\.)?(?:(?:new|pixel|image|img|input|rgb)_)?)(mean|std)$")
Channels = tuple[float, float, float]

# where trainers keep what they were started with
_ENTRIES = ("args", "hyper_parameters", "hparams", "data_config", "pretrained_cfg", "config", "cfg")
_NAMES = ("model", "model_name", "arch", "architecture")  # what they call the name of a model
_CROP_MODES = ("center", "squash", "border")  # timm's
_RESIZE_MODES = {"shortest": "center", "squash": "squash", "longest": "border"}  # open_clip's
_PILLOW_FILTERS = {1: "lanczos", 2: "bilinear", 3: "bicubic"}  # by number, as transformers writes them


def from_checkpoint(path: Path) -> list[DataConfig]:
    """Return what a checkpoint's own trainer says, within the file first. Nothing of the file is run, no weight is read."""
    path = find_file(path)
    configs: list[DataConfig | None] = []
    content = _content(path)
    if isinstance(content, Mapping):
        configs += [_of_arguments(content.get(entry), f"{entry} in {path.name}") for entry in _ENTRIES]
    configs.append(_of_buffers(path, content))
    open_clip = _of_open_clip(fields_beside(path, OPEN_CLIP).get("preprocess_cfg"), path)
    # its own file, which may stand beside timm's and transformers' of the same model
    if path.name.startswith("open_clip"):
        configs.append(open_clip)
        open_clip = None
    transformers, file = _image_processor(path)
    configs.append(
        _of_transformers(transformers, file)
        or _of_arguments(transformers.get("pretrained_cfg"), f"{file} beside {path.name}")
    )
    configs.append(_of_arguments(ConfigJson.beside(path).pretrained_cfg, f"{CONFIG} beside {path.name}"))
    configs.append(open_clip)
    return [config for config in configs if config]


def _of_buffers(path: Path, content: Any) -> DataConfig | None:
    """Return the mean and std that stand among the weights of a module that normalises by itself, where they are the only ones."""
    found: dict[tuple[str, str], Any] = {}
    for key, value in _tensors(path, content):
        named = _BUFFER.match(key)
        if named and math.prod(value.shape) == 3 and len(value.shape) <= 4:
            found[named[1], named[2]] = value
    stems = [stem for stem, kind in found if kind == "mean" and (stem, "std") in found]
    if len(stems) != 1:
        return None
    try:
        rows = [found[stems[0], kind].read().flatten().tolist() for kind in ("mean", "std")]
    except Exception:  # of any type, of damaged bytes: reading the weights says why
        return None
    top = 255 if max(rows[0]) > 1 else 1
    mean, std = (_three([value / top for value in row]) for row in rows)
    title = f"{stems[0]}mean and std among the weights of {path.name}"
    return DataConfig(Source.TRAINER, mean, std, title=title) if mean and std and min(std) > 0 else None


def _tensors(path: Path, content: Any) -> Iterator[tuple[str, Stored]]:
    """Give a file's weights by name, those of entries within entries too, without their values."""
    if isinstance(content, Mapping):
        for key, value in content.items():
            if isinstance(value, Mapping):
                yield from _tensors(path, value)
            elif isinstance(key, str) and hasattr(value, "read") and hasattr(value, "shape"):
                yield key, value
    elif content is None and is_safetensors(path):
        from safetensors import safe_open

        from sit_deploy.models.torch_file import Stored

        with contextlib.suppress(Exception), safe_open(path, framework="pt") as file:  # damaged: as above
            for name in filter(_BUFFER.match, file.keys()):
                shape = tuple(file.get_slice(name).get_shape())
                if math.prod(shape) == 3:
                    value = file.get_tensor(name)
                    yield name, Stored(shape, lambda value=value: value)


def _image_processor(path: Path) -> tuple[Mapping[str, Any], str]:
    """Return what the image processor of transformers beside a file says and which file says it: within another's, if there, as transformers reads it."""
    within = fields_beside(path, PROCESSOR).get("image_processor")
    if isinstance(within, Mapping):
        return within, PROCESSOR
    return fields_beside(path, PREPROCESSOR), PREPROCESSOR


def _of_open_clip(fields: Any, path: Path) -> DataConfig | None:
    """Return what open_clip says, which resizes to the model's own size whatever it does of the sides (open_clip/transform.py)."""
    said = _of_arguments(fields, f"{OPEN_CLIP} beside {path.name}")
    if not said:
        return said
    crop_mode = _RESIZE_MODES.get(str(fields.get("resize_mode", "shortest")))
    return replace(said, crop_pct=1.0, crop_mode=crop_mode)


def _content(path: Path) -> Any:
    """Return what a file holds beside its weights, nothing where it cannot be read: reading the weights says why."""
    from sit_deploy.models.torch_file import read_archive, read_stream  # with torch

    try:
        reader = {"archive": read_archive, "stream": read_stream}.get(file_kind(path))
        return reader(path) if reader else None
    except Exception:  # of any type, of damaged bytes
        return None


def _of_arguments(entry: Any, title: str) -> DataConfig | None:
    """Return what a trainer's arguments say; those that name another model than values, what goes with that name."""
    fields = entry if isinstance(entry, Mapping) else getattr(entry, "state", None)  # of a pickled Namespace
    if not isinstance(fields, Mapping):
        return None
    from sit_deploy.preprocessing import INTERPOLATIONS

    mean, std, crop = _three(fields.get("mean")), _three(fields.get("std")), fields.get("crop_pct")
    interpolation, crop_mode = fields.get("interpolation"), fields.get("crop_mode")
    plain = DataConfig(
        Source.TRAINER,
        mean,
        std,
        crop_mode if crop_mode in _CROP_MODES else None,
        float(crop) if _is_number(crop) and 0 < crop <= 1 else None,
        interpolation if interpolation in INTERPOLATIONS else None,
        title=title,
    )
    name = next((fields[key] for key in _NAMES if isinstance(fields.get(key), str)), None)
    trained = _config_of(name)
    if trained is None:
        return plain
    parts = {key: value for key in FIELDS if (value := getattr(plain, key)) is not None}
    return replace(from_name(trained), source=Source.TRAINER, title=f"{title}, trained as {name}", **parts)


def _config_of(name: str | None) -> ModelConfig | None:
    try:
        return get_config(name) if name else None
    except InputError:  # no name of ours or timm's, or none that can be deployed: it tells us nothing
        return None


def _of_transformers(fields: Mapping[str, Any], file: str) -> DataConfig | None:
    """Return what the image processor of Hugging Face's transformers says."""
    mean, std = _values_of_transformers(fields)
    share, crop_mode = _crop_of_transformers(fields)
    config = DataConfig(
        Source.TRAINER,
        mean,
        std,
        crop_mode,
        share,
        _PILLOW_FILTERS.get(fields.get("resample")) if isinstance(fields.get("resample"), int) else None,
        crop_offset="floor" if crop_mode else None,
        side=_side_of_transformers(fields),
        title=f"{file} beside the checkpoint",
    )
    return config if config else None


def _values_of_transformers(fields: Mapping[str, Any]) -> tuple[Channels | None, Channels | None]:
    """Return mean and std of values from 0 to 1, whatever range the image processor itself brings pixels to."""
    normalises, scale = fields.get("do_normalize", True), fields.get("rescale_factor", 1 / 255)
    means, stds = fields.get("image_mean"), fields.get("image_std")
    if normalises is False:
        means, stds = (0.0, 0.0, 0.0), (1.0, 1.0, 1.0)
    if fields.get("do_rescale", True) is False:
        # of pixels as they are, or of values from 0 to 1 that somebody made before: nothing tells, unless the mean does
        rescaled = normalises is not False and _is_row(means) and max(means) > 1
        scale, offset = (1.0 if rescaled else None), 0.0
    else:
        offset = 1.0 if fields.get("rescale_offset") is True else 0.0
    if not _is_number(scale) or not 0 < scale <= 1:
        return None, None
    top = 255 * scale  # what white becomes
    top = 1.0 if abs(top - 1) < 1e-3 else top  # 0.00392 for 1 / 255

    def of_one(row: Any, shift: float) -> Channels | None:
        return _three([(value + shift) / top for value in row]) if _is_row(row) else None

    return of_one(means, offset), of_one(stds, 0.0)


def _crop_of_transformers(fields: Mapping[str, Any]) -> tuple[float | None, str | None]:
    """Return the share that the centre crop keeps, and how images come to be squares (`DataConfig.crop_mode`)."""
    size, crop, share = (fields.get(key) for key in ("size", "crop_size", "crop_pct"))
    if _is_number(share) and 0 < share <= 1:  # of ConvNeXt's
        return float(share), "center"
    if fields.get("do_resize", True) is False:
        return None, None
    shorter = size.get("shortest_edge") if isinstance(size, Mapping) else None
    # both sides, or one number in files of old releases, which is both sides but of CLIP's
    side = size.get("height") if isinstance(size, Mapping) else size
    if isinstance(size, Mapping) and size.get("width") != side:
        side = None
    kind = str(fields.get("image_processor_type") or fields.get("feature_extractor_type") or "")
    if not isinstance(size, Mapping) and kind.startswith(("CLIP", "ChineseCLIP")):
        shorter, side = size, None
    mode = "center" if _is_number(shorter) else "squash" if _is_number(side) else None
    resized = shorter if mode == "center" else side
    if not mode or not resized > 0:
        return None, None
    if fields.get("do_center_crop") is not True:
        return (1.0, mode) if mode == "squash" else (None, None)
    cropped = crop.get("height") if isinstance(crop, Mapping) else crop
    share = cropped / resized if _is_number(cropped) else 0.0
    return (float(share), mode) if 0 < share <= 1 else (None, mode)


def _side_of_transformers(fields: Mapping[str, Any]) -> int | None:
    """Return the pixels of the squares that images become, None where the image processor does not say, or makes none."""
    key = "crop_size" if fields.get("do_center_crop") is True else "size"
    value = fields.get(key)
    sides = (value.get("height"), value.get("width")) if isinstance(value, Mapping) else (value, value)
    known = sides[0] == sides[1] and type(sides[0]) is int and sides[0] > 0
    return sides[0] if known and fields.get("do_resize", True) is not False else None


def _three(value: Any) -> Channels | None:
    """Return a mean or std in [0, 1] of three channels, None where it is anything else."""
    if isinstance(value, Iterable) and not isinstance(value, str | bytes | Mapping):
        values = list(value)
        if len(values) == 3 and all(_is_number(v) and 0 <= v <= 1 for v in values):
            return tuple(map(float, values))
    return None


def _is_row(value: Any) -> bool:
    return isinstance(value, list | tuple) and len(value) == 3 and all(map(_is_number, value))


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)

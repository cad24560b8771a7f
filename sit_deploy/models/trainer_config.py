"""What a checkpoint's own trainer wrote down of how images are prepared: in the file, or in one beside it.

It is believed where it cannot mean anything else: three numbers called mean, three called std. It stands in the checkpoint
(timm's `args`, Lightning's `hyper_parameters`, ...) or in a file beside it (preprocessor_config.json of Hugging Face's
transformers, config.json of timm, open_clip_config.json).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from sit_deploy.errors import InputError
from sit_deploy.models.catalog import get_config
from sit_deploy.models.config import ModelConfig
from sit_deploy.models.config_json import CONFIG, OPEN_CLIP, PREPROCESSOR, ConfigJson, fields_beside
from sit_deploy.models.data_config import FIELDS, DataConfig, Source, from_name
from sit_deploy.models.file_kind import file_kind, find_file

# where trainers keep what they were started with
_ENTRIES = ("args", "hyper_parameters", "hparams", "data_config", "pretrained_cfg", "config", "cfg")
_NAMES = ("model", "model_name", "arch", "architecture")  # what they call the name of a model
_PILLOW_FILTERS = {1: "lanczos", 2: "bilinear", 3: "bicubic"}  # by number, as transformers writes them


def from_checkpoint(path: Path) -> list[DataConfig]:
    """Return what a checkpoint's own trainer says, within the file first. Nothing of the file is run, no weight is read."""
    path = find_file(path)
    configs: list[DataConfig | None] = []
    content = _content(path)
    if isinstance(content, Mapping):
        configs += [_of_arguments(content.get(entry), f"{entry} in {path.name}") for entry in _ENTRIES]
    transformers = fields_beside(path, PREPROCESSOR)
    configs.append(
        _of_transformers(transformers)
        or _of_arguments(transformers.get("pretrained_cfg"), f"{PREPROCESSOR} beside {path.name}")
    )
    configs.append(_of_arguments(ConfigJson.beside(path).pretrained_cfg, f"{CONFIG} beside {path.name}"))
    open_clip = fields_beside(path, OPEN_CLIP).get("preprocess_cfg")
    configs.append(_of_arguments(open_clip, f"{OPEN_CLIP} beside {path.name}"))
    return [config for config in configs if config]


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
    interpolation = fields.get("interpolation")
    plain = DataConfig(
        Source.TRAINER,
        mean,
        std,
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


def _of_transformers(fields: Mapping[str, Any]) -> DataConfig | None:
    """Return what the image processor of Hugging Face's transformers says."""
    normalises, scale = fields.get("do_normalize", True), fields.get("rescale_factor", 1 / 255)
    mean, std = _three(fields.get("image_mean")), _three(fields.get("image_std"))
    if normalises is False:
        mean, std = (0.0, 0.0, 0.0), (1.0, 1.0, 1.0)
    if not _is_number(scale) or abs(scale * 255 - 1) > 1e-3 or fields.get("do_rescale", True) is False:
        mean = std = None  # of values in another range than ours
    size, crop = (fields.get(key) for key in ("size", "crop_size"))
    share = fields.get("crop_pct")
    shorter = size.get("shortest_edge") if isinstance(size, Mapping) else None
    cropped = crop.get("height") if isinstance(crop, Mapping) else crop
    if fields.get("do_center_crop") is True and _is_number(shorter) and _is_number(cropped) and shorter:
        share = cropped / shorter
    config = DataConfig(
        Source.TRAINER,
        mean,
        std,
        float(share) if _is_number(share) and 0 < share <= 1 else None,
        _PILLOW_FILTERS.get(fields.get("resample")) if isinstance(fields.get("resample"), int) else None,
        title=f"{PREPROCESSOR} beside the checkpoint",
    )
    return config if config else None


def _three(value: Any) -> tuple[float, float, float] | None:
    """Return a mean or std in [0, 1] of three channels, None where it is anything else."""
    if isinstance(value, Iterable) and not isinstance(value, str | bytes | Mapping):
        values = list(value)
        if len(values) == 3 and all(_is_number(v) and 0 <= v <= 1 for v in values):
            return tuple(map(float, values))
    return None


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)

"""Weights that a file holds in FP8: raw numbers, or numbers that mean nothing without the scales that belong to them.

Who quantizes to FP8 divides a weight by a scale that takes its largest value to the largest of the format, and keeps the scale
beside it: `weight_scale_inv` of transformers' fine-grained FP8 (by which it is multiplied, whatever the name says), `weight_scale` and
`input_scale` of compressed-tensors and vLLM, `scale_weight` and `scaled_fp8` of ComfyUI. Who merely casts, keeps none.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping

import torch
from torch import Tensor

from sit_deploy.errors import InputError
from sit_deploy.text import WarningText

_FORMATS = tuple(
    getattr(torch, name)
    for name in ("float8_e4m3fn", "float8_e5m2", "float8_e4m3fnuz", "float8_e5m2fnuz", "float8_e8m0fnu")
    if hasattr(torch, name)
)
_SCALES = re.compile(
    r".*(\b|_)((weight|input|output|activation|act|[qkv])_scales?(_inv|_2)?|scale_(weight|input|inv)|scaled_fp8)$"
)
_FULL = 0.5  # of a format's largest number, which no weight of a vision transformer reaches by itself: 224 in E4M3


def check_float8(weights: Mapping[str, Tensor], names: Iterable[str], where: str) -> WarningText | None:
    """Return what to say of weights in FP8, None where there are none.

    Args:
        weights: by name, as they are in the file.
        names: of all that is in the file.
        where: the file, for messages.

    Raises:
        InputError: they have scales, in the file or lost, without which they are no weights.
    """
    low = {key: value for key, value in weights.items() if value.dtype in _FORMATS}
    if not low:
        return None
    kind = str(next(iter(low.values())).dtype).removeprefix("torch.")
    words = f"{where} holds {len(low)} weights in FP8 ({kind})"
    remedy = "save the float model: of transformers, load it with FineGrainedFP8Config(dequantize=True), then save_pretrained"
    if scales := [name for name in names if _SCALES.match(name)]:
        raise InputError(
            f"{words} with scales beside them ({scales[0]}), which are not applied here; {remedy}"
        )
    for key, value in low.items():
        largest = value.float().abs().max().item() if value.numel() else 0.0
        if largest >= _FULL * torch.finfo(value.dtype).max:
            raise InputError(
                f"{words} up to {largest:g}, as they are when divided by scales, and has no scales; {remedy} ({key})"
            )
    return WarningText(
        f"{len(low)} weights of the checkpoint are in FP8 ({kind}) and have no scales: they are taken as they are, rounded to 2 or 3 bits; "
        "give the float checkpoint if there is one"
    )

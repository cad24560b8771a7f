"""How a state dict differs from the model that it was given for, in words.

Facts that can be seen, and no guess at why.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor, nn

from sit_deploy.models.hub import place_of
from sit_deploy.models.state_dict import OPTIONAL_KEYS

_SHOWN = 3
_PREFIX = ("cls_token", "dist_token", "reg_token")

# names that the model has not, and what the checkpoint then has
_PARTS = (
    (r"reg_token$", "register tokens"),
    (r"fc_norm\.", "a norm after its pooling (fc_norm)"),
    (r"norm_pre\.", "a norm before its blocks (norm_pre)"),
    (r"attn_pool\.", "attention pooling"),
    (r"pre_logits\.", "a layer before its head (pre_logits)"),
    (r"(dist_token|head_dist)", "a dist token"),
    (r"blocks\.\d+\.attn\.[qk]_norm\.", "normalised queries and keys (q_norm, k_norm)"),
    (r"blocks\.\d+\.(attn|mlp)\.norm\.", "norms inside its blocks (scale_norm)"),
    (r"blocks\.\d+\.(ls[12]|gamma_[12])\b", "layer scale"),
    (r"blocks\.\d+\.mlp\.(w12|w1|w2|w3|fc1_g|fc1_x)\.", "gated MLPs"),
    (r"blocks\.\d+\.attn\.(rel_pos|relative_position)", "relative positions"),
)
_NORM, _POOL_NORM = (tuple(f"{name}.{kind}" for kind in ("weight", "bias")) for name in ("norm", "fc_norm"))
# how weights are kept that are not the model's own yet, and what makes them so
_UNFINISHED = (
    (r".*\.lora_[AB]\b", "LoRA adapters beside its weights", "merge them before saving: model.merge_and_unload()"),
    (r".*(\.parametrizations\.|\.weight_[gv]$)", "parametrised weights",
     "make them plain before saving: torch.nn.utils.parametrize.remove_parametrizations"),
    (r".*\.weight_(orig|mask)$", "pruned weights with their masks",
     "make them plain before saving: torch.nn.utils.prune.remove"),
    (r"head\.\d+\.", "a head of several modules (nn.Sequential)",
     "if one of them alone has weights, make it the head before saving, such as model.head = model.head[-1]"),
    (r".*[./]kernel(:0)?$", "weights as Flax and TensorFlow keep them", "give the model's PyTorch weights"),
    (r".*\.(SCB|qweight|absmax|weight_scale\w*|_packed_params|zero_point|weight\._(data|scale))\b", "quantized weights", "save the float model"),
)  # fmt: skip


@dataclass(frozen=True)
class _Differences:
    """Names of weights that the model and a state dict do not have alike."""

    missing: list[str]
    unexpected: list[str]
    shapes: list[str]
    types: list[str]

    @classmethod
    def of(cls, state: Mapping[str, Tensor], own: Mapping[str, Tensor]) -> _Differences:
        """Compare a state dict with the model's own."""
        shared = [k for k in own if k in state]
        shapes = [k for k in shared if state[k].shape != own[k].shape]
        return cls(
            [k for k in own if k not in state],
            [k for k in state if k not in own],
            shapes,
            [k for k in shared if k not in shapes and state[k].dtype != own[k].dtype],
        )

    def __bool__(self) -> bool:
        return bool(self.missing or self.unexpected or self.shapes or self.types)


def mismatch_words(
    state: Mapping[str, Tensor], model: nn.Module, name: str, path: Path, option: str | None = "--model"
) -> str | None:
    """Return how `state` differs from a model and what to do, for a message; None where it fits.

    Args:
        state: weights by name.
        model: what they are for.
        name: of the model.
        path: of the checkpoint.
        option: what names the model on the command line, None where nothing does.
    """
    own = model.state_dict()
    differences = _Differences.of(state, own)
    if not differences:
        return None
    missing, unexpected = differences.missing, differences.unexpected
    counts = [
        f"{len(items)} {what} ({', '.join(items[:_SHOWN])}{', ...' if len(items) > _SHOWN else ''})"
        for what, items in (
            ("missing", missing),
            ("unexpected", unexpected),
            (
                "of another shape",
                [f"{k} {tuple(state[k].shape)} for {tuple(own[k].shape)}" for k in differences.shapes],
            ),
            ("of another type", [f"{k} {_type(state[k])} for {_type(own[k])}" for k in differences.types]),
        )
        if items
    ]
    words = [*_facts(state, own, missing, unexpected), *counts]
    remedy = _with_registers(state, own, differences, name, option) or _with_other_norm(
        own, differences, name, option
    )
    return f"{'; '.join(words)}; {remedy or _remedy(differences, own, name, path, option)}"


def _facts(
    state: Mapping[str, Tensor], own: Mapping[str, Tensor], missing: list[str], unexpected: list[str]
) -> Iterator[str]:
    """Give what can be said for certain of how it differs."""
    for words, theirs, ours in (
        ("its width is {}, not {}", _side(state, "pos_embed", -1, 3), _side(own, "pos_embed", -1, 3)),
        ("its depth is {}, not {}", _depth(state), _depth(own)),
        ("its patches are of {} pixels, not {}", _patch(state), _patch(own)),
        ("its images have {} channels, not {}", _channels(state), _channels(own)),
    ):
        if theirs and ours and theirs != ours:
            yield words.format(theirs, ours)
    head, wanted = _side(state, "head.weight", 1, 2), _side(own, "head.weight", 1, 2)
    if head and wanted and head == 2 * wanted:
        yield "its head reads the class token and the mean of the patches beside each other, as transformers' DINOv2 does"
    had = [words for pattern, words in _PARTS if _any(pattern, unexpected) and not _any(pattern, own)]
    had += [words for pattern, words, _ in _UNFINISHED if _any(pattern, unexpected)]
    lacked = [words for pattern, words in _PARTS if _any(pattern, missing) and not _any(pattern, state)]
    if had:
        yield f"it has {' and '.join(had)}, which the model has not"
    if lacked:
        yield f"it lacks {' and '.join(lacked)}"
    tokens, wanted = _side(state, "pos_embed", 1, 3), _side(own, "pos_embed", 1, 3)
    prefix = sum(
        value.shape[1] for key in _PREFIX if (value := state.get(key)) is not None and value.ndim == 3
    )
    if tokens and wanted and tokens != wanted and not (_is_square(tokens) or _is_square(tokens - prefix)):
        yield f"its {tokens} positions are not those of a square image"


def _with_registers(
    state: Mapping[str, Tensor],
    own: Mapping[str, Tensor],
    differences: _Differences,
    name: str,
    option: str | None,
) -> str | None:
    """Return the remedy where registers with positions of their own are all that differs, None elsewhere."""
    if (
        option != "--model"
        or differences != _Differences([], ["reg_token"], ["pos_embed"], [])
        or " " in name
    ):
        return None
    registers, theirs, ours = (
        _side(s, k, 1, 3) for s, k in ((state, "reg_token"), (state, "pos_embed"), (own, "pos_embed"))
    )
    if None in (registers, theirs, ours) or theirs - ours != registers:
        return None
    return f"pass --model {name}{',' if ':' in name else ':'}reg_tokens={registers}"


def _with_other_norm(
    own: Mapping[str, Tensor], differences: _Differences, name: str, option: str | None
) -> str | None:
    """Return the remedy where all that differs is whether the last norm stands behind the pooling, as in MAE as fine-tuned; None elsewhere."""
    if option != "--model" or differences.shapes or differences.types or " " in name:
        return None
    lacked, had = set(differences.missing), set(differences.unexpected)
    other = f"{name}{',' if ':' in name else ':'}"
    if lacked == set(_NORM) and had == set(_POOL_NORM) and "global_pool=" not in name:
        return f"if its head reads the mean of its patches, pass --model {other}global_pool=avg"
    if lacked == set(_POOL_NORM) and had == set(_NORM) and "fc_norm=" not in name:
        token = "cls_token" in own and "global_pool=" not in name
        reads = "reads the class token" if token else "reads the mean of patches that have their norm"
        return f"if its head {reads}, pass --model {other}{'global_pool=token' if token else 'fc_norm=false'}"
    return None


def _remedy(
    differences: _Differences, own: Mapping[str, Tensor], name: str, path: Path, option: str | None
) -> str:
    for pattern, _, remedy in _UNFINISHED:
        if _any(pattern, differences.unexpected):
            return remedy
    missing = differences.missing
    if differences == _Differences(missing, [], [], []) and all(k.startswith("head.") for k in missing):
        return (
            f"it ends in features, without a head; build it with --outputs features, or train one: sit-deploy train --model {name} "
            f"--init {place_of(path)}"
        )
    needed = [k for k in own if not OPTIONAL_KEYS.match(k)]
    held = len(set(needed) - set(missing) - set(differences.shapes))
    if 2 * held <= len(needed):
        remedy = f"pass the {option} that it was trained as" if option else f"give the checkpoint of a {name}"
        return f"it holds {held} of the {len(needed)} weights of {name}: {remedy}"
    return f"give a checkpoint of exactly this {name}"


def _any(pattern: str, names: Iterable[str]) -> bool:
    return any(re.match(pattern, name) for name in names)


def _side(state: Mapping[str, Tensor], key: str, axis: int, ndim: int) -> int | None:
    value = state.get(key)
    return value.shape[axis] if value is not None and value.ndim == ndim else None


def _channels(state: Mapping[str, Tensor]) -> int | None:
    return _side(state, "patch_embed.proj.weight", 1, 4) or _side(state, "patch_embed.conv1.weight", 1, 4)


def _patch(state: Mapping[str, Tensor]) -> int | None:
    return _side(state, "patch_embed.proj.weight", -1, 4)


def _depth(state: Mapping[str, Tensor]) -> int:
    return len({k.split(".")[1] for k in state if re.match(r"blocks\.\d{1,3}\.", k)})


def _is_square(patches: int) -> bool:
    return patches > 0 and math.isqrt(patches) ** 2 == patches


def _type(value: Tensor) -> str:
    return str(value.dtype).removeprefix("torch.")

"""Finding a model's weights in what a file holds: their entry, the prefix of their names, and what stands beside them.

No spelling of a trainer's is asked for: the weights are where the names of a vision transformer are. What wrappers put
between names is removed; what remains undecided is for the user to say (`--checkpoint-key`).
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch

from sit_deploy.errors import InputError
from sit_deploy.models import clip_names, hugging_face_names
from sit_deploy.models.hugging_face_names import other_task
from sit_deploy.models.key_names import to_timm_names
from sit_deploy.models.renamed import DoubleNameError
from sit_deploy.models.torch_file import Stored

Names = Mapping[str, Stored]
Fits = Callable[[Names], bool]

# what timm and the official code call the parts of a vision transformer
OWN = re.compile(
    r"(cls_token|pos_embed|reg_token|dist_token|dist_pos_embed|(patch_embed|embeds|norm|norm_pre|fc_norm|head|head_dist|aux_head"
    r"|pre_logits|attn_pool)\.\w|(blocks|tsm|rtsm)\.\d)"
)
# what is no weight of a model though it stands among them: losses, metrics, counters of averages, unused poolers, texts
RIDER = re.compile(
    r"(.*\.)?(criterion|loss|losses|\w*_loss|loss_\w+|metrics?|\w+_metrics?|\w*(acc|accuracy|auroc|f1|confmat)"
    r"|optimizers?|n_averaged|num_updates|decay|pooler|mask_token"
    # CLIP's and SigLIP's other half
    r"|text_model|text_projection|logit_scale|logit_bias"
    # what SAM's encoder of images stands beside
    r"|prompt_encoder|mask_decoder|pixel_mean|pixel_std"
    # what MAE restores its masked images by
    r"|decoder_(pos_embed|embed|blocks|norm|pred)"
    # in Google's files the optimizer, and SigLIP's texts and temperature
    r"|opt/state/.+|params/(txt/.+|[tb]))(\.|$)"
)
# blocks of a transformer by number: what stands in one is computed with, whatever it is called
_NUMBERED = re.compile(r"(?<![^.])(blocks?|layers?|resblocks)\.(\w+_)?\d+\.")
# and that under OpenAI's names beside the images' tower, which mean something else in other models
_TEXT = re.compile(
    r"(.*\.)?(text|token_embedding|ln_final|positional_embedding|transformer\.resblocks)(\.|$)"
)
_ITS_BLOCKS = re.compile(r"(blocks|tsm|rtsm)\.\d|patch_embed\.\w|embeds\.\w")
_TEMPERATURE = re.compile(r"(.*\.)?logit_(scale|bias)$")
_TEXT_TOWER = re.compile(r"(.*\.)?(text|text_model|text_projection|token_embedding)(\.|$)")
# a layer between backbone and classifier; those that transformers writes for a backbone alone are read by nothing
_POOLER = re.compile(r"(?!.*text)(.*\.)?pooler\.(\w+\.)?weight$")
# DistributedDataParallel, torch.compile, activation checkpointing, FSDP, DeepSpeed
_WRAPPERS = {"module", "_orig_mod", "_checkpoint_wrapped_module", "_fsdp_wrapped_module", "_forward_module"}
_LONGEST = 200  # characters of a name: it is to fit on the one line of a message
_DEPTH = 4  # entries within entries
_SHOWN = 4


@dataclass(frozen=True)
class Weights:
    """Where weights stand in a file.

    Attributes:
        entry: path of keys in the file, dotted.
        prefix: of their names, with its dot.
        names: the weights by the names of the model, and whatever else stands under that prefix.
        beside: what stands outside it.
        like: how many names are those of a vision transformer.
        notes: how they were renamed.
    """

    entry: str
    prefix: str
    names: dict[str, Stored]
    beside: dict[str, Stored] = field(default_factory=dict)
    like: int = 0
    notes: tuple[str, ...] = ()

    @property
    def address(self) -> str:
        """What --checkpoint-key takes to mean these weights alone; a dot for those at the top of the file."""
        return ".".join(filter(None, (self.entry, self.prefix.rstrip(".")))) or "."

    def is_at(self, key: str) -> bool:
        return key in (self.address, self.entry, self.prefix.rstrip("."))

    @property
    def averaged(self) -> bool:
        return "ema" in re.split(r"[._]", self.entry.lower())


def find_weights(
    content: Any,
    where: str,
    ema: bool = True,
    key: str | None = None,
    key_is_shared: bool = False,
    names: Collection[str] = (),
    fits: Fits | None = None,
) -> Weights:
    """Return the weights in a file's content.

    Args:
        content: of the file, as `sit_deploy.models.torch_file` gives it.
        where: the file, for messages.
        ema: of averaged weights and plain ones in entries of their own, take the averaged.
        key: the entry, the prefix, or both, that the user names.
        key_is_shared: nothing under the key is no error.
        names: of the model, where it is no vision transformer.
        fits: whether names and shapes are those of the model that is asked for; decides between several, and where it does
            not, the user must.

    Raises:
        InputError: no weights, several that could be meant, or none under `key`.
    """
    candidates = [w for entry in _entries(content, ()) for w in _rooted(*entry, where, frozenset(names))]
    if key is not None:
        rivals = [w for w in candidates if key == w.address]
        rivals = rivals or [w for w in candidates if w.is_at(key)]
        if not rivals and key_is_shared:
            return find_weights(content, where, ema, names=names, fits=fits)
        if not rivals:
            raise InputError(
                f"{where} has no weights under '{key}'; pass --checkpoint-key with one of {_addresses(candidates)}"
            )
        ema_asked = len({w.averaged for w in rivals}) == 1
    else:
        rivals, ema_asked = candidates, False
    if fits:  # first: an optimiser's flat state has three names of each weight
        rivals = [w for w in rivals if fits(w.names)] or rivals
    best = max((w.like for w in rivals), default=0)
    rivals = [w for w in rivals if 2 * w.like >= best]
    if not ema_asked and len({w.averaged for w in rivals}) == 2:
        rivals = [w for w in rivals if w.averaged == ema]
    if not rivals:
        raise InputError(
            f"{where} has no weights under model, state_dict, module (found: {_kinds(content)}); save a state dict"
        )
    if best == 0:  # no vision transformer: what is largest is what its entry says
        rivals = [max(rivals, key=lambda w: len(w.names))]
    rivals = _distinct(rivals)
    if len(rivals) > 1:
        raise InputError(
            f"{where} has weights of a model under each of {_addresses(rivals)}; say which with --checkpoint-key (of build, "
            "export, calibrate, train and visualize)"
        )
    return rivals[0]


def _addresses(candidates: list[Weights]) -> str:
    shown = [f"'{w.address}'" for w in candidates if w.address.isprintable() and len(w.address) <= _LONGEST][
        : 2 * _SHOWN
    ]
    return ", ".join(dict.fromkeys(shown)) or "none: it has none"


def _kinds(content: Any) -> str:
    if not isinstance(content, dict):
        return type(content).__name__
    return ", ".join(
        repr(key)[:40] if isinstance(key, str | int | float) else type(key).__name__
        for key in list(content)[:5]
    )


def _entries(value: Any, path: tuple[str, ...]) -> Iterator[tuple[tuple[str, ...], dict[str, Stored]]]:
    """Give the path and the tensors of every container that has some by name."""
    if len(path) > _DEPTH:
        return
    if isinstance(value, dict):
        tensors = {k: v for k, v in value.items() if isinstance(k, str) and isinstance(v, Stored)}
        if tensors:
            yield path, tensors
        for key, inner in value.items():
            if isinstance(key, str | int) and isinstance(inner, dict | list):
                yield from _entries(inner, (*path, str(key)))
    elif isinstance(value, list) and len(value) <= 100:
        for i, inner in enumerate(value):
            if isinstance(inner, dict | list):
                yield from _entries(inner, (*path, str(i)))


def _rooted(
    path: tuple[str, ...], tensors: dict[str, Stored], where: str, own: frozenset[str]
) -> Iterator[Weights]:
    """Give every reading of an entry: one a prefix under which names of a model stand, or all as they are."""
    for key in tensors:
        if not key.isprintable() or len(key) > _LONGEST:
            raise InputError(f"{where} has weights named {key[:40]!r}; save the state dict of a model")
    tensors = _unwrapped(tensors)
    try:
        tensors, notes = to_timm_names(tensors)
    except DoubleNameError as twice:
        raise InputError(
            f"{where} has '{twice}' twice, under the names of timm and of {twice.library}; save the state dict of one model"
        ) from None
    like: dict[str, int] = {}
    for key in tensors:
        at = 0
        while at >= 0:
            rest = key[at:]
            if rest in own or OWN.match(rest):
                like[key[:at]] = like.get(key[:at], 0) + 1
                if not own:
                    break  # the first is the outermost: blocks.0.norm.weight is no norm.weight
            at = key.find(".", at) + 1 or -1
    most = max(like.values(), default=0)
    entry = ".".join(path)
    for prefix, count in like.items() if most else [("", 0)]:
        if 2 * count >= most:
            names = {k[len(prefix) :]: v for k, v in tensors.items() if k.startswith(prefix)}
            beside = {k: v for k, v in tensors.items() if not k.startswith(prefix)}
            yield Weights(entry, prefix, names, beside, count, notes)


def _unwrapped(tensors: dict[str, Stored]) -> dict[str, Stored]:
    """Return the tensors without the segments that wrappers put into names; as they are where two would become one."""
    cleaned = {
        ".".join(part for part in key.split(".") if part not in _WRAPPERS) or key: value
        for key, value in tensors.items()
    }
    return cleaned if len(cleaned) == len(tensors) else tensors


def _distinct(rivals: list[Weights]) -> list[Weights]:
    """Return the weights that differ from one another: some trainers write the same ones twice."""
    kept: list[Weights] = []
    for one in rivals:
        if not any(_equal(one.names, other.names) for other in kept):
            kept.append(one)
    return kept


def _equal(one: Names, other: Names) -> bool:
    return one.keys() == other.keys() and all(
        a.plain and other[k].plain and a.shape == other[k].shape and torch.equal(a.read(), other[k].read())
        for k, a in one.items()
    )


def split_riders(weights: Weights, where: str, chosen: bool) -> tuple[dict[str, Stored], list[str]]:
    """Return the weights by the names of the model, and the names of what is left out as no part of it.

    Whatever under the prefix is not known for a rider is kept: if the model has no such weight, that is a mismatch.

    Args:
        weights: as found.
        where: the file, for messages.
        chosen: whether the user named what to take.

    Raises:
        InputError: outside the prefix, a part of the model, or a layer that could follow it, which nobody said to leave out; or a
            model of another task.
    """
    theirs = not weights.like or hugging_face_names.NOTE in weights.notes
    if theirs and not chosen and (task := other_task([*weights.names, *weights.beside])):
        raise InputError(
            f"{where} is a transformers model for {task}, and not a classifier that timm has; give a ...ForImageClassification of ViT, "
            "DeiT or SigLIP, or a backbone alone: model.base_model.save_pretrained(folder)"
        )
    is_clip = bool({clip_names.NOTE, clip_names.PERCEPTION_NOTE}.intersection(weights.notes))
    every = [*weights.names, *weights.beside]
    # a temperature is a text's where there are texts, and else the model's own
    texts = any(map(_TEXT_TOWER.match, every))
    others = _other_models(weights.names)
    names = {
        k: v
        for k, v in weights.names.items()
        if OWN.match(k) or not _is_rider(k, others) or (_TEMPERATURE.match(k) and not texts)
    }
    riders = [weights.prefix + k for k in weights.names if k not in names]
    _check_poolers(names, riders, weights, where, chosen)
    stray = [k for k in weights.beside if OWN.match(k)]
    if stray and weights.like and not chosen:
        raise InputError(
            f"{where} has weights of a model under '{weights.address}' and {len(stray)} more outside it ({_some(stray)}); save one "
            f"state dict with all of them, or pass --checkpoint-key {weights.address} to leave those out"
        )
    position, head = names.get("pos_embed"), names.get("head.weight")
    widths = [t.shape[i] for t, i in ((position, -1), (head, 0)) if t is not None and t.ndim > 1]
    beside = _other_models(weights.beside)
    layers = [
        k
        for k, v in weights.beside.items()
        if k.endswith("weight")
        and v.ndim == 2
        and v.shape[1] in widths
        and not _is_rider(k, beside)
        and not (is_clip and _TEXT.match(k))
    ]
    if layers and not chosen:
        raise InputError(
            f"{where} has weights of a model under '{weights.address}' and layers beside it that may follow it ({_some(layers)}); "
            f"pass --checkpoint-key {weights.address or weights.entry} to leave them out"
        )
    return names, riders + list(weights.beside)


def _other_models(names: Collection[str]) -> set[str]:
    """Return the prefixes under which other vision transformers stand, such as a teacher: those with blocks of their own."""
    return {
        key[: m.end()] for key in names for m in re.finditer(r"\.", key) if _ITS_BLOCKS.match(key, m.end())
    }


def _is_rider(key: str, others: Collection[str]) -> bool:
    """Say whether a name is of no part of the model: what a trainer keeps, texts, or another model's own parts (`_other_models`).

    What stands in a block is a part, though it be called like one of those: an attention's `logit_scale`, an adapter's `norm`.
    """
    block = _NUMBERED.search(key)
    before = key[: block.start()] if block else key
    ends = [m.end() for m in re.finditer(r"\.", key) if m.end() <= len(before)]
    return bool(RIDER.match(before)) or any(OWN.match(key, end) and key[:end] in others for end in ends)


def _check_poolers(
    names: Mapping[str, Stored], riders: list[str], weights: Weights, where: str, chosen: bool
) -> None:
    """Refuse a layer that is left out though a classifier follows it: transformers' own classifiers of images have none.

    Raises:
        InputError: says which.
    """
    poolers = [k for k in riders if _POOLER.match(k)]
    if poolers and "head.weight" in names and not chosen:
        raise InputError(
            f"{where} has a pooler before its classifier ({_some(poolers)}), and timm's model reads the class token without one: its scores "
            "would be others; train a classifier without it (transformers: ViTModel(config, add_pooling_layer=False)), or pass "
            f"--checkpoint-key {weights.address} to leave it out"
        )


def _some(names: list[str]) -> str:
    return f"{', '.join(names[:_SHOWN])}{', ...' if len(names) > _SHOWN else ''}"


def left_out_words(riders: list[str]) -> str | None:
    """Return the note on what was left out beside the weights, None where nothing was."""
    if not riders:
        return None
    what = "1 entry that is" if len(riders) == 1 else f"{len(riders)} entries that are"
    return f"left out {what} no part of the model: {_some(riders)}"

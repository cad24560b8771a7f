"""Other original files' names translated to timm's: SAM's, Perception Encoder's, Sapiens2's, EVA-02's (EVA-CLIP's too) and AIMv2's.

As facebookresearch/segment-anything, facebookresearch/perception_models, facebookresearch/sapiens2, baaivision/EVA and apple/ml-aim publish them.
What timm's own `checkpoint_filter_fn` makes of such files is what is made here; the tests compare the two.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

from sit_deploy.models.hugging_face_names import derived
from sit_deploy.models.renamed import put, roots
from sit_deploy.models.torch_file import Stored

Names = Mapping[str, Stored]
_Rules = tuple[tuple[re.Pattern[str], str], ...]
# tables of rotary positions, which timm computes
_UNUSED = re.compile(r"(.*\.)?rope\.(freqs(_cos|_sin)?|periods)$|rope_embed\.periods$")


@dataclass(frozen=True)
class _Origin:
    """Files of one origin.

    Attributes:
        note: that its names were taken for timm's.
        marks: names behind a prefix, of which each must be there: of any block, since a file may lack weights of some.
        rules: names behind the prefix, and timm's, in the order that they are tried in; the first that matches is applied.
        lacks: what none of the names may be.
    """

    note: str
    marks: tuple[str, ...]
    rules: _Rules
    lacks: re.Pattern[str] | None = None

    def roots(self, tensors: Names) -> list[str]:
        """Return the prefixes under which its names stand."""
        if self.lacks and any(map(self.lacks.match, tensors)):
            return []
        return sorted(set.intersection(*(roots(tensors, mark) for mark in self.marks)))


def _rules(*pairs: tuple[str, str]) -> _Rules:
    return tuple((re.compile(pattern), name) for pattern, name in pairs)


_ORIGINS = (
    _Origin(
        "the names of Segment Anything were taken for timm's",
        (r"blocks\.\d+\.mlp\.lin1\.weight", r"blocks\.\d+\.mlp\.lin2\.weight"),
        _rules((r"(blocks\.\d+\.mlp\.)lin([12])\.", r"\1fc\2.")),
    ),
    _Origin(
        "the names of Sapiens2 were taken for timm's",
        (r"blocks\.\d+\.attn\.wq\.weight", r"blocks\.\d+\.ffn\.w12\.weight"),
        _rules(
            (r"storage_tokens$", "reg_token"),
            (r"patch_embed\.projection\.", "patch_embed.proj."),
            (r"(blocks\.\d+\.attn\.)w([qkv])\.", r"\1\2_proj."),
            (r"(blocks\.\d+\.)attn\.gamma\.weight$", r"\1gamma_1"),
            (r"(blocks\.\d+\.)ffn\.w12\.", r"\1mlp.fc1."),
            (r"(blocks\.\d+\.)ffn\.w3\.", r"\1mlp.fc2."),
            (r"(blocks\.\d+\.)ln([12])\.", r"\1norm\2."),
            (r"ln1\.", "norm."),
        ),
    ),
    _Origin(
        "the names of EVA-02 were taken for timm's",
        tuple(rf"blocks\.\d+\.mlp\.w{n}\.weight" for n in (1, 2, 3)),
        _rules(
            (r"(blocks\.\d+\.mlp\.)w1\.", r"\1fc1_g."),
            (r"(blocks\.\d+\.mlp\.)w2\.", r"\1fc1_x."),
            (r"(blocks\.\d+\.mlp\.)w3\.", r"\1fc2."),
            (r"(blocks\.\d+\.mlp\.)ffn_ln\.", r"\1norm."),
            (r"(blocks\.\d+\.attn\.)inner_attn_ln\.", r"\1norm."),
        ),
        re.compile(r"(.*\.)?((storage|register)_tokens|qkv\.bias_mask)$"),  # DINO
    ),
    _Origin(  # of tiny and small size
        "the names of EVA-02 were taken for timm's",
        (r"blocks\.\d+\.mlp\.w12\.weight", r"blocks\.\d+\.mlp\.w3\.weight", r"blocks\.\d+\.attn\.q_bias"),
        _rules((r"(blocks\.\d+\.mlp\.)w12\.", r"\1fc1."), (r"(blocks\.\d+\.mlp\.)w3\.", r"\1fc2.")),
    ),
    _Origin(
        "the names of AIMv2 were taken for timm's",
        (r"trunk\.blocks\.\d+\.mlp\.fc1\.weight", r"trunk\.blocks\.\d+\.mlp\.fc3\.weight"),
        _rules(
            (r"preprocessor\.patchifier\.", "patch_embed."),
            (r"preprocessor\.pos_embed$", "pos_embed"),
            (r"trunk\.post_trunk_norm\.", "norm."),
            (r"trunk\.(blocks\.\d+\.)norm_([12])\.", r"\1norm\2."),
            (r"trunk\.(blocks\.\d+\.mlp\.)fc1\.", r"\1fc1_g."),
            (r"trunk\.(blocks\.\d+\.mlp\.)fc3\.", r"\1fc1_x."),
            (r"trunk\.(blocks\.\d+\.)", r"\1"),
        ),
    ),
)  # fmt: skip


def translate(tensors: Names) -> tuple[dict[str, Stored], tuple[str, ...]] | None:
    """Return weights under timm's names and a note, None where they are of none of these origins."""
    for origin in _ORIGINS:
        if found := origin.roots(tensors):
            renamed = dict(tensors)
            for root in found:
                renamed = _renamed(renamed, root, origin.rules)
                _bias_of_parts(renamed, root)
            return renamed, (origin.note,)
    return None


def _renamed(tensors: Names, root: str, rules: _Rules) -> dict[str, Stored]:
    """Return weights whose names behind a prefix are exchanged, without what timm computes itself."""
    renamed: dict[str, Stored] = {}
    for key, value in tensors.items():
        rest = key[len(root) :] if key.startswith(root) else None
        if rest is not None and _UNUSED.match(rest):
            continue
        put(renamed, key if rest is None else root + _by_rules(rest, rules), value)
    return renamed


def _by_rules(rest: str, rules: _Rules) -> str:
    for pattern, name in rules:
        if pattern.match(rest):
            return pattern.sub(name, rest, count=1)
    return rest


def _bias_of_parts(names: dict[str, Stored], root: str) -> None:
    """Give biases of queries and values to their projections, where these are apart, as in EVA-02 of base and large size."""
    for key in [k for k in names if k.startswith(root) and re.search(r"blocks\.\d+\.attn\.[qv]_bias$", k)]:
        stem = key.removesuffix("_bias")
        if f"{stem}_proj.weight" in names:
            put(names, f"{stem}_proj.bias", names.pop(key))


def perception_pool(tensors: Names, root: str) -> dict[str, Stored]:
    """Return the attention pooling of a Perception Encoder under timm's names, the other weights as they are; `clip_names` has those."""
    if f"{root}attn_pool.probe" not in tensors:
        return dict(tensors)
    renamed: dict[str, Stored] = {}
    at = f"{root}attn_pool."
    parts = {
        "attn.out_proj.": "proj.",
        "layernorm.": "norm.",
        "mlp.c_fc.": "mlp.fc1.",
        "mlp.c_proj.": "mlp.fc2.",
    }
    for key, value in tensors.items():
        rest = key.removeprefix(at)
        if not key.startswith(at):
            put(renamed, key, value)
        elif rest == "probe":
            put(renamed, f"{at}latent", value)
        elif rest in ("attn.in_proj_weight", "attn.in_proj_bias") and value.ndim and value.shape[0] % 3 == 0:
            third, kind = value.shape[0] // 3, rest.rpartition("_")[2]
            rest_of_shape = value.shape[1:]
            put(renamed, f"{at}q.{kind}", derived(lambda v, n=third: v[:n], (third, *rest_of_shape), value))
            put(
                renamed,
                f"{at}kv.{kind}",
                derived(lambda v, n=third: v[n:], (2 * third, *rest_of_shape), value),
            )
        else:
            part = next((p for p in parts if rest.startswith(p)), None)
            put(renamed, key if part is None else at + parts[part] + rest.removeprefix(part), value)
    return renamed

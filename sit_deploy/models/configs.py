"""The named models as data: architecture, preprocessing and published accuracy. Imports nothing heavy.

Figures are those of the paper and the official code (github.com/Sense-X/SiT); tests pin parameters and MACs.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from sit_deploy.errors import InputError, nearest

PATCH = 16
# (channels = dim / divisor, stride) of the stem's convolutions
STEMS: dict[str, tuple[tuple[int, int], ...]] = {
    "4c": ((8, 2), (4, 2), (2, 2), (1, 2)),
    "6c": ((8, 2), (8, 1), (8, 1), (4, 2), (2, 2), (1, 2)),
}


def kept_tokens(patches: int, stages: int, keeping_ratio: float) -> tuple[int, ...]:
    """Return the patch tokens of each stage: int(patches · ratio^stage), as the official code counts them."""
    return tuple(int(patches * keeping_ratio**i) for i in range(stages))


@dataclass(frozen=True)
class ModelConfig:
    """One architecture.

    stage_blocks: blocks a stage. image_size: native height and width in pixels. skip_lam: what residual branches are
    divided by. teacher: the unslimmed model it is distilled from. top1: published ImageNet-1k accuracy in percent.
    """

    name: str
    embed_dim: int
    num_heads: int
    stage_blocks: tuple[int, ...]
    image_size: int = 224
    stem: str = "4c"
    skip_lam: float = 2.0
    mlp_ratio: float = 3.0
    keeping_ratio: float = 0.5
    num_classes: int = 1000
    teacher: str | None = None
    top1: float | None = None
    aliases: tuple[str, ...] = ()

    @property
    def depth(self) -> int:
        return sum(self.stage_blocks)

    def tokens(self, image_size: int | None = None) -> tuple[int, ...]:
        """Return the patch tokens of each stage at `image_size` pixels (the native size by default)."""
        side = (image_size or self.image_size) // PATCH
        return kept_tokens(side * side, len(self.stage_blocks), self.keeping_ratio)


def _teacher(
    student: ModelConfig, name: str, top1: float | None, aliases: tuple[str, ...] = ()
) -> ModelConfig:
    stage = (student.depth,)
    return replace(student, name=name, stage_blocks=stage, teacher=None, top1=top1, aliases=aliases)


_SIT_NANO = ModelConfig("sit_nano", 128, 4, (2, 2, 2, 2), image_size=112, teacher="lvvit_nano")
_SIT_T = ModelConfig(
    "sit_t", 320, 5, (1, 1, 1, 11), teacher="lvvit_t", top1=80.1, aliases=("sit_lvvit_tiny",)
)
_SIT_XS = ModelConfig(
    "sit_xs", 384, 6, (1, 1, 1, 13), teacher="lvvit_s", top1=81.2, aliases=("sit_lvvit_xsmall",)
)
_SIT_S = ModelConfig(
    "sit_s", 384, 6, (9, 3, 2, 2), teacher="lvvit_s", top1=83.1, aliases=("sit_lvvit_small",)
)
_SIT_M = ModelConfig(
    "sit_m", 512, 8, (10, 4, 3, 3), teacher="lvvit_m", top1=84.2, aliases=("sit_lvvit_medium",)
)
_SIT_L = ModelConfig(
    "sit_l", 768, 12, (10, 4, 3, 7), image_size=288, stem="6c", skip_lam=3.0, teacher="lvvit_l", top1=85.6,
    aliases=("sit_lvvit_large",),
)  # fmt: skip

CONFIGS: dict[str, ModelConfig] = {
    c.name: c
    for c in (
        _SIT_NANO, _SIT_T, _SIT_XS, _SIT_S, _SIT_M, _SIT_L,
        _teacher(_SIT_NANO, "lvvit_nano", None),
        _teacher(_SIT_T, "lvvit_t", 81.8, ("lvvit_tiny",)),
        _teacher(_SIT_S, "lvvit_s", 83.1, ("lvvit_small",)),
        _teacher(_SIT_M, "lvvit_m", 84.0, ("lvvit_medium",)),
        _teacher(_SIT_L, "lvvit_l", 85.3, ("lvvit_large",)),
    )
}  # fmt: skip
_ALIASES = {alias: name for name, config in CONFIGS.items() for alias in (*config.aliases, name)}


def get_config(name: str) -> ModelConfig:
    """Return the configuration of a model by its name or official alias.

    Raises:
        InputError: no such model; names the nearest.
    """
    if name not in _ALIASES:
        raise InputError(
            f"unknown model '{name}'{nearest(name, tuple(_ALIASES)) or ';'} `sit-deploy models` lists them all"
        )
    return CONFIGS[_ALIASES[name]]

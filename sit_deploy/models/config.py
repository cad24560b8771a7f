"""The configuration of a model: its architecture and token schedule, how its images are prepared, and the rules these follow.

Imports nothing heavy. The configurations that have names are in `sit_deploy.models.catalog`.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable
from dataclasses import dataclass, replace

from sit_deploy.errors import InputError, nearest
from sit_deploy.methods import METHODS, TRAINING_FREE, TSM

# (channels = dim / divisor, stride) of the stem's convolutions, which make patches of 16 pixels
STEMS: dict[str, tuple[tuple[int, int], ...]] = {
    "4c": ((8, 2), (4, 2), (2, 2), (1, 2)),
    "6c": ((8, 2), (8, 1), (8, 1), (4, 2), (2, 2), (1, 2)),
}
PATCH = 16


def kept_tokens(patches: int, stages: int, keeping_ratio: float) -> tuple[int, ...]:
    """Return the patch tokens of each stage: int(patches · ratio^stage), as the official code counts them."""
    return tuple(int(patches * keeping_ratio**i) for i in range(stages))


def token_schedule(
    patches: int, stage_blocks: tuple[int, ...], keeping_ratio: float, kept: tuple[int, ...] | None = None
) -> tuple[int, ...]:
    """Return the patch tokens of each stage, `kept` itself where it is given.

    Raises:
        InputError: a stage without a block or a token, or more tokens in one than in the stage before.
    """
    stages = len(stage_blocks)
    kept = tuple(kept) if kept else kept_tokens(patches, stages, keeping_ratio)
    if len(kept) != stages or kept[0] != patches or min(kept) < 1 or min(stage_blocks) < 1:
        raise InputError(
            f"token schedule {kept} does not fit the {patches} patches and the blocks {stage_blocks}; every "
            "stage must have a block and keep at least one token: use a larger image or a larger keeping ratio"
        )
    if any(after > before for before, after in itertools.pairwise(kept)):
        raise InputError(
            f"token schedule {kept} grows, and slimming must not: use a larger image or a keeping ratio of at most 1"
        )
    return kept


def takes_side(side: int, patch: int, own: int | None = None) -> bool:
    """Say whether images of `side` pixels are taken: patches divide them, or they are a model's own (SigLIP's 384 of 14)."""
    return side == own or (side >= patch and side % patch == 0)


def schedule_name(stage_blocks: Iterable[int], kept: Iterable[int]) -> str:
    """Return blocks and patch tokens of each stage in a few characters, as 2x49-3x24-3x12."""
    return "-".join(f"{blocks}x{tokens}" for blocks, tokens in zip(stage_blocks, kept, strict=True))


def check_image_sides(sides: tuple[int, int], patch: int, own: int | None = None) -> None:
    """Refuse sides in pixels that `patch` does not divide, but for a model's own.

    Raises:
        InputError: names the sizes nearest to the first wrong side.
    """
    for side in sides:
        if not takes_side(side, patch, own):
            below = max(1, side // patch) * patch
            raise InputError(
                f"image sides must be positive and divisible by {patch}, got {sides[0]}x{sides[1]}; take {below} or {below + patch}"
            )


# what is wrong with one output
ONE_OUTPUT = "softmax of one output is 100 % whatever the image"


def check_class_count(count: int) -> None:
    """Refuse a count of classes that no classifier has.

    Raises:
        InputError: fewer than two.
    """
    if count < 2:
        why = f" ({ONE_OUTPUT})" if count == 1 else ""
        raise InputError(f"class count must be at least 2, got {count}{why}; pass --num-classes 2 or more")


@dataclass(frozen=True)
class ModelConfig:
    """One architecture and how its images are prepared.

    Attributes:
        name: ours or timm's.
        embed_dim: width of a token.
        num_heads: of each attention.
        stage_blocks: blocks a stage; one stage is the unslimmed model.
        image_size: native height and width in pixels.
        stem: which of `STEMS` makes the patches, of a SiT or LV-ViT.
        skip_lam: what residual branches are divided by, of a SiT or LV-ViT.
        mlp_ratio: hidden width of an MLP over that of a token.
        keeping_ratio: share of the patch tokens that each further stage keeps, where `kept` does not say how many.
        num_classes: of the published weights.
        teacher: the unslimmed model it is distilled from.
        top1: published ImageNet-1k accuracy in percent.
        aliases: its names in the official code.
        base: the timm model that it is, or is made of; None for a SiT or LV-ViT.
        patch_size: side of a patch in pixels.
        mean: of each channel of its images, of values from 0 to 1.
        std: likewise.
        crop_pct: share of the resized shorter side that the centre crop keeps.
        interpolation: of the resize.
        crop_mode: how its authors make a square of an image, by timm's names: "center" cropped, "squash" squeezed, "border"
            padded.
        unslimmable: what keeps it from slimming, of a model that is taken whole.
        kept: patch tokens of each stage, the first all patches of an image; None for those that `keeping_ratio` gives.
        method: how tokens are merged between stages (`sit_deploy.methods`).
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
    base: str | None = None
    patch_size: int = PATCH
    mean: tuple[float, float, float] = (0.485, 0.456, 0.406)
    std: tuple[float, float, float] = (0.229, 0.224, 0.225)
    crop_pct: float = 0.875  # official evaluation resizes the shorter side to size · 256/224
    interpolation: str = "bicubic"
    crop_mode: str = "center"
    unslimmable: str | None = None
    kept: tuple[int, ...] | None = None
    method: str = TSM

    @property
    def depth(self) -> int:
        return sum(self.stage_blocks)

    def tokens(self, image_size: int | None = None) -> tuple[int, ...]:
        """Return the patch tokens of each stage at `image_size` pixels (the native size by default).

        Raises:
            InputError: `kept` begins with the patches of another size.
        """
        size = image_size or self.image_size
        patches = (size // self.patch_size) ** 2
        if self.kept is None:
            return kept_tokens(patches, len(self.stage_blocks), self.keeping_ratio)
        if self.kept[0] != patches:
            theirs = math.isqrt(self.kept[0])
            whose = f", or take images of {theirs * self.patch_size}" if theirs**2 == self.kept[0] else ""
            raise InputError(
                f"kept tokens {_listed(self.kept)} begin with {self.kept[0]}, and images of {size} pixels have {patches} patches of "
                f"{self.patch_size}; begin with {patches}{whose}"
            )
        return self.kept

    def kept_at(self, image_size: int) -> tuple[int, ...] | None:
        """Return `kept` with as many patches in the first stage as an image of `image_size` pixels has: what TSMs keep is fixed."""
        return self.kept and ((image_size // self.patch_size) ** 2, *self.kept[1:])

    def at(self, image_size: int) -> ModelConfig:
        """Return the configuration for images of `image_size` pixels: without `kept` where the keeping ratio gives the same.

        Raises:
            InputError: as `tokens`.
        """
        same = self.kept and self.tokens(image_size) == replace(self, kept=None).tokens(image_size)
        return replace(self, kept=None) if same else self


def reschedule(
    config: ModelConfig,
    stages: tuple[int, ...] | None,
    keeping_ratio: float | None,
    kept: tuple[int, ...] | None = None,
    method: str | None = None,
) -> ModelConfig:
    """Return a configuration with other stages and tokens, `config` itself where they are its own.

    Args:
        config: whose depth the stages must add up to.
        stages: blocks of each stage, in place of its own; one number is the unslimmed model.
        keeping_ratio: share of the patch tokens that each further stage keeps, above 0 and at most 1.
        kept: patch tokens of each stage, in place of a ratio; the first has all patches of an image.
        method: how tokens are merged, in place of its own way.

    Raises:
        InputError: stages that do not add up to the depth, a ratio out of range, tokens that are not one count a stage, that
            grow or are none, both of them, a method that there is not, or any of these for a model that does not slim.
    """
    if kept is not None and keeping_ratio is not None:
        raise InputError(
            f"kept tokens {_listed(kept)} and a keeping ratio of {keeping_ratio:g} say the same thing twice; pass --kept or --keeping-ratio"
        )
    ratio = config.keeping_ratio if keeping_ratio is None else float(keeping_ratio)
    blocks = config.stage_blocks if stages is None else tuple(stages)
    if not 0 < ratio <= 1:
        raise InputError(
            f"keeping ratio must be above 0 and at most 1, got {keeping_ratio}; pass for example --keeping-ratio 0.5"
        )
    if not blocks or min(blocks) < 1 or sum(blocks) != config.depth:
        given, example = (",".join(map(str, b)) for b in (blocks, example_stages(config.depth)))
        raise InputError(
            f"stages {given or 'of no number'} do not fit {config.name}: every stage must have a block, and they must add up to its "
            f"depth of {config.depth}; pass for example --stages {example}"
        )
    if (keeping_ratio is not None or kept is not None) and stages is None and len(blocks) == 1:
        example = _listed(example_stages(config.depth))
        what = "a keeping ratio changes" if kept is None else "kept tokens change"
        raise InputError(
            f"{config.name} slims nothing, so {what} nothing; pass its stages too, as --stages {example}"
        )
    method = config.method if method is None else method
    _check_method(method, blocks, config)
    if kept is not None:
        _check_kept(tuple(kept), blocks, config)
        kept = tuple(kept) if len(blocks) > 1 else None
    own = (config.stage_blocks, config.keeping_ratio, config.method)
    if kept is None and (blocks, ratio, method) == own:
        return config
    if config.unslimmable:
        raise not_slimmed(config.name, config.unslimmable)
    teacher = (config.teacher or config.name) if len(blocks) > 1 else None
    slimming = {"stage_blocks": blocks, "keeping_ratio": ratio, "kept": kept, "method": method}
    return replace(config, **slimming, teacher=teacher, top1=None)


def _check_method(method: str, blocks: tuple[int, ...], config: ModelConfig) -> None:
    if method not in METHODS:
        raise InputError(
            f"unknown method '{method}'; choose from {', '.join(METHODS)}{nearest(method, METHODS)}"
        )
    if method in TRAINING_FREE and len(blocks) == 1:
        raise InputError(
            f"{config.name} slims nothing, so there is nothing for --method {method} to merge; pass its stages too, as --stages "
            f"{_listed(example_stages(config.depth))}"
        )


def _check_kept(kept: tuple[int, ...], blocks: tuple[int, ...], config: ModelConfig) -> None:
    """Refuse kept tokens that no image fits."""
    if len(kept) != len(blocks):
        usual = replace(config, stage_blocks=blocks, kept=None).tokens()
        raise InputError(
            f"kept tokens {_listed(kept) or 'of no number'} do not fit the stages {_listed(blocks)} of {config.name}: give one count for each "
            f"of the {len(blocks)}, the first all patches of an image; pass for example --kept {_listed(usual)}"
        )
    if min(kept) < 1:
        raise InputError(
            f"kept tokens {_listed(kept)} leave a stage without a token; keep at least 1 in each"
        )
    for before, after in itertools.pairwise(kept):
        if after > before:
            raise InputError(
                f"kept tokens {_listed(kept)} grow from {before} to {after}, and slimming must not; give every stage at most as many as "
                "the one before"
            )


def _listed(numbers: tuple[int, ...]) -> str:
    return ",".join(map(str, numbers))


def not_slimmed(name: str, obstacle: str) -> InputError:
    """Return the error of stages for a model that is taken whole, by what keeps it from slimming."""
    return InputError(
        f"{name} cannot be slimmed, for it has {obstacle}; take it as it is, without --stages, or slim a plain vision transformer such as "
        "deit_small_patch16_224"
    )


def example_stages(depth: int) -> tuple[int, ...]:
    """Return stages for a depth in the proportion of 6,2,2,2 of 12."""
    later = max(depth // 6, 1)
    return (depth - 3 * later, *[later] * 3) if depth > 3 else (1,) * depth

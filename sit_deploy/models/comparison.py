"""What a model costs beside the unslimmed one: parameters, multiply-accumulates and tokens. Imports torch."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from sit_deploy.models.catalog import title
from sit_deploy.models.config import ModelConfig, reschedule
from sit_deploy.models.count import count_cost, count_macs

if TYPE_CHECKING:
    from torch import nn

_UNDEPLOYED = "rtsm."  # reverse TSMs: in training only


@dataclass(frozen=True)
class ModelCost:
    """The cost of one model for one image.

    Attributes:
        parameters: weights, without reverse TSMs.
        macs: multiply-accumulates.
        image_size: pixels of a side.
        stage_blocks, tokens: blocks of each stage, and the patch tokens that they see.
        title: the name, with its stages where that alone does not say how it slims.
    """

    name: str
    parameters: int
    macs: int
    image_size: int
    num_classes: int
    stage_blocks: tuple[int, ...]
    tokens: tuple[int, ...]
    title: str

    @classmethod
    def of_config(cls, config: ModelConfig, image_size: int, num_classes: int) -> ModelCost:
        """Return the cost of a model that is not made yet.

        Raises:
            InputError: a size or a schedule that does not fit it.
        """
        figures = count_cost(config, image_size, num_classes)
        tokens = tuple(config.at(image_size).tokens(image_size))
        shape = (image_size, num_classes, tuple(config.stage_blocks), tokens, title(config))
        return cls(config.name, figures.parameters, figures.macs, *shape)

    @classmethod
    def of_model(cls, config: ModelConfig, model: nn.Module) -> ModelCost:
        """Return the cost of a model that is made."""
        parameters = sum(
            p.numel() for name, p in model.named_parameters() if not name.startswith(_UNDEPLOYED)
        )
        shape = (
            model.img_size[0],
            model.num_classes,
            tuple(config.stage_blocks),
            tuple(model.kept),
            title(config),
        )
        return cls(config.name, parameters, count_macs(config, model), *shape)

    @property
    def text(self) -> str:
        """Say it in a line: sit_nano: 1.71 M parameters, 0.047 GMACs an image of 112 pixels, tokens 49/24/12/6."""
        tokens = "/".join(map(str, self.tokens))
        return (
            f"{self.title}: {self.parameters / 1e6:.2f} M parameters, {self.macs / 1e9:.3f} GMACs an image of {self.image_size} pixels, "
            f"tokens {tokens}"
        )


@dataclass(frozen=True)
class Comparison:
    """A model and, where it slims, the unslimmed one."""

    model: ModelCost
    unslimmed: ModelCost | None = None

    @classmethod
    def of(cls, config: ModelConfig, image_size: int, num_classes: int) -> Comparison:
        """Return the comparison of a model with what it is without slimming, before either is made."""
        model = ModelCost.of_config(config, image_size, num_classes)
        if len(config.stage_blocks) == 1:
            return cls(model)
        whole = ModelCost.of_config(reschedule(config, (config.depth,), None), image_size, num_classes)
        name = config.teacher or config.name
        return cls(model, replace(whole, name=name, title=name))

    @property
    def macs_ratio(self) -> float | None:
        """How many times fewer multiply-accumulates it takes than the unslimmed one."""
        return self.unslimmed.macs / self.model.macs if self.unslimmed else None

    @property
    def token_share(self) -> float:
        """The share of the patch tokens that its blocks see."""
        blocks, tokens = self.model.stage_blocks, self.model.tokens
        return sum(b * n for b, n in zip(blocks, tokens, strict=True)) / (sum(blocks) * tokens[0])

    def saving(self, what: str = "the unslimmed") -> str | None:
        """Say what slimming saves; None where nothing is slimmed.

        Args:
            what: the other model is to this one.
        """
        if self.unslimmed is None:
            return None
        return f"{self.macs_ratio:.2f}x fewer MACs than {what} {self.unslimmed.title}; its blocks see {self.token_share:.0%} of the patch tokens"

    def to_dict(self) -> dict[str, Any]:
        """Return what the unslimmed model costs and what slimming saves, as JSON values."""
        if self.unslimmed is None:
            return {"unslimmed": None}
        theirs = self.unslimmed
        return {
            "unslimmed": {
                "name": theirs.name,
                "parameters": theirs.parameters,
                "macs": theirs.macs,
                "macs_ratio": self.macs_ratio,
                "token_share": self.token_share,
            }
        }

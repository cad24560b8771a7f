"""Vision transformers of timm that are taken as they are: run, validated and deployed whole, and not slimmed.

Windows of patches, relative positions, talking heads, batches of several sizes: what cannot lose tokens, or has parts that
the deploy form does not rewrite. Their graph is what PyTorch's exporter writes of timm's own code.
"""

from __future__ import annotations

from functools import lru_cache
from importlib import import_module
from typing import Any

from torch import Tensor, nn

from sit_deploy.errors import InputError
from sit_deploy.models.forward import FRDOutput, named_outputs
from sit_deploy.models.timm_vit import MODULES, check_sides, patch_side
from sit_deploy.outputs import DEFAULT


class WholeModel(nn.Module):
    """What a model that is passed through has in common with `SiT` and `SlimViT`; to stand first among its bases.

    forward: images (B, in_chans, H, W) float → logits (B, num_classes), timm's own.
    """

    has_dist_token = False
    outputs: tuple[str, ...] = DEFAULT
    why: str  # it is taken whole
    img_size: tuple[int, int]
    grid_size: tuple[int, int]

    @property
    def slim_after(self) -> dict[int, int]:
        return {}

    @property
    def depth(self) -> int:
        return len(self.blocks)

    @property
    def stage_blocks(self) -> tuple[int, ...]:
        return (self.depth,)

    @property
    def kept(self) -> tuple[int, ...]:
        return (self.grid_size[0] * self.grid_size[1],)

    def forward(self, x: Tensor) -> Any:
        """Images → logits; features, or both, where `outputs` says so (of its deploy form)."""
        return super().forward(x) if self.outputs == DEFAULT else named_outputs(self, x, self.outputs)

    def forward_frd(self, x: Tensor, tokens: bool = True) -> FRDOutput:
        """Images → its logits, of what FRD compares.

        Raises:
            InputError: its tokens are wanted, which stand for other things than a student's.
        """
        if tokens:
            raise InputError(
                "the tokens of a model that is taken whole are not those of a student; pass --token-weight 0 to distil its logits"
            )
        return FRDOutput(self(x), None, [])


@lru_cache
def _whole_class(kind: type[nn.Module]) -> type[nn.Module]:
    return type(f"Whole{kind.__name__}", (WholeModel, kind), {"__module__": __name__})


def __getattr__(name: str) -> type[nn.Module]:
    """Return a class by the name that a pickle of its model knows it by."""
    for module in MODULES if name.startswith("Whole") else ():
        kind = getattr(import_module(f"timm.models.{module}"), name.removeprefix("Whole"), None)
        if isinstance(kind, type):
            return _whole_class(kind)
    raise AttributeError(f"module {__name__} has no {name}")


def pass_whole(model: nn.Module, img_size: tuple[int, int], why: str) -> Any:
    """Make a `WholeModel` of one of timm's, in place; return it.

    Args:
        model: in whose place it stands.
        img_size: height and width of its images in pixels.
        why: what it has that keeps it from slimming (`models.timm_vit.why_whole`).

    Raises:
        InputError: a size that its patches do not divide.
    """
    side = patch_side(model)
    check_sides(model, img_size)
    model.__class__ = _whole_class(type(model))
    model.grid_size = (img_size[0] // side, img_size[1] // side)
    model.img_size, model.why = img_size, why
    return model

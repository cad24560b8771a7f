"""The forward pass of a model whose tokens slim between its blocks, for inference and for distillation."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from sit_deploy.errors import InputError
from sit_deploy.models.evidence import evidence, has_class_token
from sit_deploy.models.rotary import Rotary
from sit_deploy.models.token_reduction import size_bias
from sit_deploy.outputs import CLS, FEATURES, LOGITS, PATCHES


@dataclass(frozen=True)
class FRDOutput:
    """What distillation compares.

    Attributes:
        logits: (B, classes) of the head.
        dist_logits: (B, classes) of the dist token, or None.
        tokens: one (B, patches, dim) a block, the patch tokens after slimming and recovery.
    """

    logits: Tensor
    dist_logits: Tensor | None
    tokens: list[Tensor]


def named_outputs(model: Any, images: Tensor, names: Sequence[str]) -> Tensor | tuple[Tensor, ...]:
    """Return outputs (`sit_deploy.outputs`) of images (B, C, H, W), as timm's methods compute them: a tensor, or several in order."""
    if isinstance(model, SlimmingForward):
        tokens, read = model.forward_tokens(images)
    else:
        tokens, read = model.forward_features(images), {}
    make = {
        LOGITS: lambda: model.forward_head(tokens, **read),
        FEATURES: lambda: model.forward_head(tokens, pre_logits=True, **read),
        CLS: lambda: tokens[:, 0],
        PATCHES: lambda: tokens[:, model.num_prefix_tokens :],
    }
    made = tuple(make[name]() for name in names)
    return made if len(made) > 1 else made[0]


@dataclass(frozen=True)
class Passing:
    """What passes from block to block.

    Attributes:
        x: tokens (B, prefix + tokens, dim).
        rotary: where the patch tokens are, of a model with rotary positions.
        sizes: how many patches each patch token stands for, (B, tokens), once they were merged without training; None before.
    """

    x: Tensor
    rotary: Rotary | None = None
    sizes: Tensor | None = None

    @property
    def read(self) -> dict[str, Tensor]:
        """What `forward_head` is to know of the tokens: their sizes, where they have some."""
        return {} if self.sizes is None else {"sizes": self.sizes}


class SlimmingForward(nn.Module):
    """What `SiT` and `SlimViT` do with their parts; to stand first among a model's bases, as timm's have a forward of their own.

    A model brings img_size, depth, num_prefix_tokens and grad_checkpointing; the modules blocks and norm, tsm where it
    slims, or reduction where it does so without training, and rtsm to be distilled into; and the methods forward_head, _start or _embed
    and, with more heads than one, _heads.

    Attributes:
        stage_blocks: blocks a stage.
        kept: patch tokens of each stage.
        slim_after: block index → index of the TSM, or of the reduction, after it.
    """

    stage_blocks: tuple[int, ...]
    kept: tuple[int, ...]
    slim_after: dict[int, int]

    def _load_from_state_dict(self, state_dict: dict[str, Tensor], prefix: str, *args: Any) -> None:
        """Leave out the reverse TSMs of training, which official checkpoints have, where the model has none."""
        if not hasattr(self, "rtsm"):
            state_dict = {k: v for k, v in state_dict.items() if not k.startswith(f"{prefix}rtsm.")}
        super()._load_from_state_dict(state_dict, prefix, *args)

    def embed(self, x: Tensor) -> Tensor:
        """Images (B, in_chans, H, W) → tokens (B, prefix + patches, dim) as the first block takes them.

        Raises:
            InputError: images of another size than the model was made for.
        """
        return self._checked_start(x).x

    def _checked_start(self, x: Tensor) -> Passing:
        if x.shape[-2:] != self.img_size:
            raise InputError(
                f"this model takes images of {self.img_size}, got {tuple(x.shape[-2:])}; resize them"
            )
        return Passing(*self._start(x))

    def _start(self, x: Tensor) -> tuple[Tensor, Rotary | None]:
        """Do what `embed` says, for images of the right size; with the rotary positions of the tokens, where they have some."""
        return self._embed(x), None

    def _embed(self, x: Tensor) -> Tensor:
        """Images → tokens, of a model without rotary positions."""
        raise NotImplementedError

    def _run_block(self, index: int, passing: Passing) -> Passing:
        """Run block `index` and, where a stage ends, merge the patch tokens."""
        passing = self._through(index, passing)
        return self._slim(index, passing) if index in self.slim_after else passing

    def _through(self, index: int, passing: Passing) -> Passing:
        block, given, named = self.blocks[index], [passing.x], {}
        if passing.rotary is not None:
            given.append(passing.rotary.of_block(index))
        if passing.sizes is not None:
            named["attn_mask"] = size_bias(passing.sizes, self.num_prefix_tokens).to(passing.x.dtype)
        if self.grad_checkpointing and self.training:
            x = checkpoint(block, *given, use_reentrant=False, **named)
        else:
            x = block(*given, **named)
        return replace(passing, x=x)

    def _slim(self, index: int, passing: Passing) -> Passing:
        """Merge the patch tokens behind block `index`, where a stage ends; the prefix tokens go round that."""
        n, step = self.num_prefix_tokens, self.slim_after[index]
        prefix, tokens = passing.x[:, :n], passing.x[:, n:]
        rotary, sizes, assignment = passing.rotary, passing.sizes, None
        if hasattr(self, "reduction"):
            reduction = self.reduction[step]
            if reduction.kept == tokens.shape[1]:
                return passing
            read = evidence(
                self.blocks[index + 1],
                passing.x,
                n,
                class_token=has_class_token(self) if reduction.selects else None,
                rope=None if rotary is None else rotary.of_block(index + 1),
                bias=None if sizes is None else size_bias(sizes, n),
            )
            slimmed, sizes, assignment = reduction(tokens, read, sizes)
        elif rotary is None:
            slimmed = self.tsm[step](tokens)
        else:
            slimmed, assignment = self.tsm[step](tokens, with_assignment=True)
        rotary = rotary and rotary.merge(assignment)
        return Passing(torch.cat((prefix, slimmed), dim=1), rotary, sizes)

    def forward_tokens(self, x: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """Images → normalised tokens of the last block (B, prefix + kept, dim), and what `forward_head` is to know of them: their sizes."""
        passing = self._checked_start(x)
        for i in range(self.depth):
            passing = self._run_block(i, passing)
        return self.norm(passing.x), passing.read

    def forward_features(self, x: Tensor) -> Tensor:
        """Images → normalised tokens of the last block (B, prefix + kept, dim)."""
        return self.forward_tokens(x)[0]

    def forward(self, x: Tensor) -> Tensor:
        tokens, read = self.forward_tokens(x)
        return self.forward_head(tokens, **read)

    def forward_frd(self, x: Tensor, tokens: bool = True) -> FRDOutput:
        """Images → what FRD compares (section 3.3). A student needs `reverse_tsm=True`.

        Args:
            x: images (B, in_chans, H, W).
            tokens: whether they are wanted; without, there are none in what is returned, and no reverse TSM is needed.

        Raises:
            InputError: a slimmed model without reverse TSMs, whose tokens no teacher can be compared with.
        """
        if not tokens:
            x, read = self.forward_tokens(x)
            return FRDOutput(*self._heads(x, **read), [])
        recover = getattr(self, "rtsm", None)
        if self.slim_after and recover is None:
            raise InputError(
                "this model has no reverse TSMs; create it with reverse_tsm=True to distil into it"
            )
        passing = self._checked_start(x)
        recovered = []
        for i in range(self.depth):
            passing = self._run_block(i, passing)
            patches = passing.x[:, self.num_prefix_tokens :]
            recovered.append(patches if recover is None else recover[i](patches))
        return FRDOutput(*self._heads(self.norm(passing.x), **passing.read), recovered)

    def forward_to(self, index: int, images: Tensor) -> tuple[Tensor, Rotary | None]:
        """Images → tokens (B, tokens, dim) behind block `index`, not slimmed there, and their rotary positions.

        Raises:
            InputError: tokens that were merged without training before, whose sizes `forward_from` would not know.
        """
        passing = self._checked_start(images)
        for i in range(index):
            passing = self._run_block(i, passing)
        if passing.sizes is not None:
            raise InputError(
                "tokens that were merged without training have sizes; cut this model before its first reduction"
            )
        passing = self._through(index, passing)
        return passing.x, passing.rotary

    def forward_from(self, index: int, x: Tensor, rotary: Rotary | None = None) -> FRDOutput:
        """Go on from what `forward_to` gave.

        Args:
            index: of the block that the tokens are behind; where a stage ends with it, they are slimmed first.
            x: tokens (B, tokens, dim).
            rotary: their positions, where they have some.

        Returns:
            Logits, and all tokens (B, prefix + kept, dim) behind block `index` and each further one as they are: slimmed, not
            recovered.
        """
        passing = Passing(x, rotary)
        passing = self._slim(index, passing) if index in self.slim_after else passing
        behind = [passing.x]
        for i in range(index + 1, self.depth):
            passing = self._run_block(i, passing)
            behind.append(passing.x)
        return FRDOutput(*self._heads(self.norm(passing.x), **passing.read), behind)

    def _heads(self, x: Tensor, **read: Tensor) -> tuple[Tensor, Tensor | None]:
        """Normalised tokens → logits of the head, and those of the dist head or None."""
        return self.forward_head(x, **read), None

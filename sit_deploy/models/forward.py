"""The forward pass of a model whose tokens slim between its blocks, for inference and for distillation."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from sit_deploy.errors import InputError
from sit_deploy.models.rotary import Rotary
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
    tokens = model.forward_features(images)
    make = {
        LOGITS: lambda: model.forward_head(tokens),
        FEATURES: lambda: model.forward_head(tokens, pre_logits=True),
        CLS: lambda: tokens[:, 0],
        PATCHES: lambda: tokens[:, model.num_prefix_tokens :],
    }
    made = tuple(make[name]() for name in names)
    return made if len(made) > 1 else made[0]


class SlimmingForward(nn.Module):
    """What `SiT` and `SlimViT` do with their parts; to stand first among a model's bases, as timm's have a forward of their own.

    A model brings img_size, depth, num_prefix_tokens and grad_checkpointing; the modules blocks and norm, tsm where it
    slims, and rtsm to be distilled into; and the methods forward_head, _start or _embed and, with more heads than one, _heads.

    Attributes:
        stage_blocks: blocks a stage.
        kept: patch tokens of each stage.
        slim_after: block index → index of the TSM after it.
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
        return self._checked_start(x)[0]

    def _checked_start(self, x: Tensor) -> tuple[Tensor, Rotary | None]:
        if x.shape[-2:] != self.img_size:
            raise InputError(
                f"this model takes images of {self.img_size}, got {tuple(x.shape[-2:])}; resize them"
            )
        return self._start(x)

    def _start(self, x: Tensor) -> tuple[Tensor, Rotary | None]:
        """Do what `embed` says, for images of the right size; with the rotary positions of the tokens, where they have some."""
        return self._embed(x), None

    def _embed(self, x: Tensor) -> Tensor:
        """Images → tokens, of a model without rotary positions."""
        raise NotImplementedError

    def _run_block(self, index: int, x: Tensor, rotary: Rotary | None = None) -> tuple[Tensor, Rotary | None]:
        """Run block `index` and, where a stage ends, its TSM."""
        x = self._through(index, x, rotary)
        return self._slim(index, x, rotary) if index in self.slim_after else (x, rotary)

    def _through(self, index: int, x: Tensor, rotary: Rotary | None) -> Tensor:
        block = self.blocks[index]
        given = (x,) if rotary is None else (x, rotary.of_block(index))
        again = self.grad_checkpointing and self.training
        return checkpoint(block, *given, use_reentrant=False) if again else block(*given)

    def _slim(self, index: int, x: Tensor, rotary: Rotary | None) -> tuple[Tensor, Rotary | None]:
        """Slim the patch tokens behind block `index`, where a stage ends; the prefix tokens go round its TSM."""
        n = self.num_prefix_tokens
        tsm = self.tsm[self.slim_after[index]]
        if rotary is None:
            slimmed = tsm(x[:, n:])
        else:
            slimmed, assignment = tsm(x[:, n:], with_assignment=True)
            rotary = rotary.merge(assignment)
        return torch.cat((x[:, :n], slimmed), dim=1), rotary

    def forward_features(self, x: Tensor) -> Tensor:
        """Images → normalised tokens of the last block (B, prefix + kept, dim)."""
        x, rotary = self._checked_start(x)
        for i in range(self.depth):
            x, rotary = self._run_block(i, x, rotary)
        return self.norm(x)

    def forward(self, x: Tensor) -> Tensor:
        return self.forward_head(self.forward_features(x))

    def forward_frd(self, x: Tensor, tokens: bool = True) -> FRDOutput:
        """Images → what FRD compares (section 3.3). A student needs `reverse_tsm=True`.

        Args:
            x: images (B, in_chans, H, W).
            tokens: whether they are wanted; without, there are none in what is returned, and no reverse TSM is needed.

        Raises:
            InputError: a slimmed model without reverse TSMs, whose tokens no teacher can be compared with.
        """
        if not tokens:
            return FRDOutput(*self._heads(self.forward_features(x)), [])
        recover = getattr(self, "rtsm", None)
        if self.slim_after and recover is None:
            raise InputError(
                "this model has no reverse TSMs; create it with reverse_tsm=True to distil into it"
            )
        x, rotary = self._checked_start(x)
        recovered = []
        for i in range(self.depth):
            x, rotary = self._run_block(i, x, rotary)
            patches = x[:, self.num_prefix_tokens :]
            recovered.append(patches if recover is None else recover[i](patches))
        return FRDOutput(*self._heads(self.norm(x)), recovered)

    def forward_to(self, index: int, images: Tensor) -> tuple[Tensor, Rotary | None]:
        """Images → tokens (B, tokens, dim) behind block `index`, not slimmed there, and their rotary positions."""
        x, rotary = self._checked_start(images)
        for i in range(index):
            x, rotary = self._run_block(i, x, rotary)
        return self._through(index, x, rotary), rotary

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
        if index in self.slim_after:
            x, rotary = self._slim(index, x, rotary)
        behind = [x]
        for i in range(index + 1, self.depth):
            x, rotary = self._run_block(i, x, rotary)
            behind.append(x)
        return FRDOutput(*self._heads(self.norm(x)), behind)

    def _heads(self, x: Tensor) -> tuple[Tensor, Tensor | None]:
        """Normalised tokens → logits of the head, and those of the dist head or None."""
        return self.forward_head(x), None

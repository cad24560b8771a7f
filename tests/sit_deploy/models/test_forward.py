"""A forward pass cut in two at a block: what is computed once for many passes, and the rest."""

from __future__ import annotations

import pytest
import torch

from tests.helpers.models import OF_EACH_KIND, images, tiny_model


@torch.no_grad()
@pytest.mark.parametrize("name", OF_EACH_KIND)
def test_both_parts_make_the_whole(name: str) -> None:
    model = OF_EACH_KIND[name]()
    x = images(model)
    for index in (0, 1, 3):
        tokens, rotary = model.forward_to(index, x)
        output = model.forward_from(index, tokens, rotary)
        logits = output.logits
        if output.dist_logits is not None:
            logits = (logits + output.dist_logits) / 2
        assert torch.equal(logits, model(x))
        assert len(output.tokens) == model.depth - index
        assert torch.equal(model.norm(output.tokens[-1]), model.forward_features(x))


@torch.no_grad()
def test_tokens_are_slimmed_in_the_second_part_alone() -> None:
    model = tiny_model()
    x = images(model)
    tokens, _ = model.forward_to(1, x)
    assert tokens.shape[1] == 17  # a TSM follows block 1
    for parameter in model.tsm.parameters():
        parameter.zero_()
    assert torch.equal(model.forward_to(1, x)[0], tokens)
    counts = [t.shape[1] - 1 for t in model.forward_from(1, tokens).tokens]
    assert counts == [8, 4, 2, 2, 2]  # slimmed where a stage ends

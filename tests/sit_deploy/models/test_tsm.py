"""Token slimming and its reverse against the paper's formulas, written anew in NumPy."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from sit_deploy.models.tsm import Mlp, ReverseTokenSlimming, TokenSlimming
from tests.helpers import numpy_sit
from tests.helpers.models import randomise

DIM, TOKENS, KEPT = 16, 10, 4


def weights(module: nn.Module, name: str) -> numpy_sit.Weights:
    return {f"{name}.{k}": v.numpy() for k, v in module.state_dict().items()}


@pytest.fixture
def tsm() -> TokenSlimming:
    return randomise(TokenSlimming(DIM, KEPT)).double().eval()


@pytest.fixture
def tokens() -> torch.Tensor:
    return torch.randn(3, TOKENS, DIM, dtype=torch.float64, generator=torch.Generator().manual_seed(3))


@torch.no_grad()
def test_slimming_is_the_papers(tsm: TokenSlimming, tokens: torch.Tensor) -> None:
    expected = numpy_sit.slim(weights(tsm, "tsm"), "tsm", tokens.numpy())
    np.testing.assert_allclose(tsm(tokens).numpy(), expected, rtol=0, atol=1e-12)


@torch.no_grad()
def test_each_output_is_a_convex_combination_of_all_inputs(tsm: TokenSlimming, tokens: torch.Tensor) -> None:
    assignment = tsm.assignment(tokens)
    assert assignment.shape == (3, KEPT, TOKENS)
    assert (assignment > 0).all()
    torch.testing.assert_close(assignment.sum(dim=2), torch.ones(3, KEPT, dtype=torch.float64))
    assert (assignment.std(dim=2) > 1e-3).all()  # uneven, so that a wrong axis would show
    torch.testing.assert_close(tsm(tokens), torch.einsum("bkn,bnc->bkc", assignment, tokens))


@torch.no_grad()
def test_a_constant_stays_what_it_is(tsm: TokenSlimming) -> None:
    same = torch.full((1, TOKENS, DIM), 2.5, dtype=torch.float64)
    torch.testing.assert_close(tsm(same), same[:, :KEPT])


@torch.no_grad()
def test_order_of_the_inputs_is_irrelevant(tsm: TokenSlimming, tokens: torch.Tensor) -> None:
    torch.testing.assert_close(tsm(tokens.flip(1)), tsm(tokens))


@torch.no_grad()
def test_scale_sharpens(tsm: TokenSlimming, tokens: torch.Tensor) -> None:
    tsm.scale.zero_()
    torch.testing.assert_close(tsm(tokens), tokens.mean(dim=1, keepdim=True).expand(-1, KEPT, -1))
    tsm.scale.fill_(1e6)
    assert torch.allclose(tsm.assignment(tokens).max(dim=2).values, torch.ones(3, KEPT, dtype=torch.float64))


@torch.no_grad()
@pytest.mark.parametrize("count", [1, 3, 25])
def test_any_number_of_inputs(tsm: TokenSlimming, count: int) -> None:
    assert tsm(torch.randn(2, count, DIM, dtype=torch.float64)).shape == (2, KEPT, DIM)


def test_parameters_of_slimming() -> None:
    shapes = {k: tuple(v.shape) for k, v in TokenSlimming(DIM, KEPT).state_dict().items()}
    assert shapes == {
        "scale": (1, 1, 1),
        "weight.0.weight": (DIM,),
        "weight.0.bias": (DIM,),
        "weight.1.weight": (DIM // 2, DIM),
        "weight.1.bias": (DIM // 2,),
        "weight.3.weight": (KEPT, DIM // 2),
        "weight.3.bias": (KEPT,),
    }


@torch.no_grad()
def test_recovery_is_the_papers() -> None:
    reverse = randomise(ReverseTokenSlimming(DIM, KEPT, TOKENS)).double().eval()
    kept = torch.randn(2, KEPT, DIM, dtype=torch.float64)
    found = reverse(kept)
    assert found.shape == (2, TOKENS, DIM)
    expected = numpy_sit.recover(weights(reverse, "rtsm"), "rtsm", kept.numpy())
    np.testing.assert_allclose(found.numpy(), expected, rtol=0, atol=1e-12)


def test_parameters_of_recovery() -> None:
    shapes = {k: tuple(v.shape) for k, v in ReverseTokenSlimming(DIM, KEPT, TOKENS).state_dict().items()}
    assert shapes == {
        "norm1.weight": (DIM,),
        "norm1.bias": (DIM,),
        "mlp1.fc1.weight": (TOKENS * 4, KEPT),
        "mlp1.fc1.bias": (TOKENS * 4,),
        "mlp1.fc2.weight": (TOKENS, TOKENS * 4),
        "mlp1.fc2.bias": (TOKENS,),
        "norm2.weight": (DIM,),
        "norm2.bias": (DIM,),
        "mlp2.fc1.weight": (DIM * 4, DIM),
        "mlp2.fc1.bias": (DIM * 4,),
        "mlp2.fc2.weight": (DIM, DIM * 4),
        "mlp2.fc2.bias": (DIM,),
    }


@torch.no_grad()
def test_mlp_is_linear_gelu_linear() -> None:
    mlp = randomise(Mlp(6, 12, 5)).double()
    x = torch.randn(2, 3, 6, dtype=torch.float64)
    expected = numpy_sit.mlp(weights(mlp, "mlp"), "mlp", x.numpy())
    np.testing.assert_allclose(mlp(x).numpy(), expected, rtol=0, atol=1e-12)


def test_gradients_reach_every_parameter() -> None:
    torch.manual_seed(0)
    chain = randomise(nn.Sequential(TokenSlimming(DIM, KEPT), ReverseTokenSlimming(DIM, KEPT, TOKENS)))
    chain(torch.randn(2, TOKENS, DIM)).square().sum().backward()
    # the last bias shifts all scores of an output alike, which the softmax does not see
    blind = "0.weight.3.bias"
    idle = [n for n, p in chain.named_parameters() if n != blind and not p.grad.abs().sum() > 1e-6]
    assert not idle

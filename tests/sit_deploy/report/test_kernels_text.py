from __future__ import annotations

import pytest

from sit_deploy.report.kernels_text import eight_bit_products, kernels_note


def details(kept: int, widened: int = 0, unknown: int = 0) -> dict:
    named = {"kept": kept, "widened": widened, "unknown": unknown}
    return {"eight_bits": {kind: [f"{kind}.{i}" for i in range(count)] for kind, count in named.items()}}


@pytest.mark.parametrize(
    ("found", "words"),
    [
        (details(5), "the engine multiplies all 5 products in int8 in 8 bits"),
        (
            details(3, 1),
            "not all in 8 bits: by its builder's log the engine multiplies 3 of 4 products in int8 so; for 1 it widens",
        ),
        (details(0, 5), "to multiply in 16 bits (widened.0, widened.1, widened.2, ...)"),
        (details(3, 0, 2), "3 of 5 products in int8 so; of 2 the log does not tell"),
        (details(0, 0, 5), "which of 5 products in int8 the engine multiplies so is unknown"),
    ],
)
def test_what_the_engine_does(found: dict, words: str) -> None:
    products = eight_bit_products(found)
    assert products is not None and words in kernels_note(products, "int8")


def test_engines_that_are_not_asked() -> None:
    for none in ({}, {"eight_bits": None}, {"int8": {"products": 3}}):
        assert eight_bit_products(none) is None

from __future__ import annotations

import pytest

from sit_deploy.errors import InputError
from sit_deploy.report.kernels_text import (
    census_text,
    eight_bit_products,
    engine_text,
    kernels_note,
    lacking_text,
)
from sit_deploy.report.stages_view import stages_view
from sit_deploy.report.types import StagesRecord
from sit_deploy.schema import check


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
        (
            details(3, 0, 2),
            "not all in 8 bits, perhaps: by its builder's log the engine multiplies 3 of 5 products in int8 so; of 2 the log does not tell",
        ),
        (details(0, 0, 5), "which of 5 products in int8 the engine multiplies so is unknown"),
    ],
)
def test_what_the_engine_does(found: dict, words: str) -> None:
    products = eight_bit_products(found)
    assert products is not None and words in kernels_note(products, "int8")


def test_engines_that_are_not_asked() -> None:
    for none in ({}, {"eight_bits": None}, {"int8": {"products": 3}}):
        assert eight_bit_products(none) is None


CENSUS = {
    "kernels": 137,
    "products": {"float16": 60},
    "attention_kernels": 16,
    "attention": 16,
    "attentions": 16,
    "widened": [],
}


@pytest.mark.parametrize(
    ("more", "text"),
    [
        ({}, "137 kernels by its builder's log; attention in one kernel in 16 of 16 places; kernels of products: 60 in float16"),
        (
            {"products": {"": 1, "int8": 5}, "widened": ["a/qkv", "b/qkv"], "attentions": 0, "attention": 0},
            "137 kernels by its builder's log; 16 of them attention; kernels of products: 1 in an unknown type, 5 in int8; 2 weights widened from 8 bits at "
            "every run",
        ),
    ],
)  # fmt: skip
def test_the_census(more: dict, text: str) -> None:
    assert census_text({"kernels": CENSUS | more}) == text
    assert census_text({"kernels": None}) is census_text({}) is None


@pytest.mark.parametrize(
    "kernels",
    [
        5,
        [1],
        {"kernels": 3},
        CENSUS | {"products": [1]},
        CENSUS | {"kernels": "3"},
        CENSUS | {"kernels": -1},
        CENSUS | {"attention": 17},
    ],
)
def test_a_manifest_that_says_something_else(kernels: object) -> None:
    with pytest.raises(InputError, match=r"^kernels of the engine: .*; build the bundle again$"):
        census_text({"kernels": kernels})
    with pytest.raises(InputError, match=r"^eight_bits of the engine: .*; build the bundle again$"):
        eight_bit_products({"eight_bits": kernels})
    with pytest.raises(InputError, match=r"^raised of the engine: .*; build the bundle again$"):
        lacking_text({"raised": kernels}, "fp16")


def test_all_that_there_is_to_say() -> None:
    assert engine_text({"kernels": None, "eight_bits": None, "raised": None}, "fp16") is None
    assert engine_text(details(5), "int8") == kernels_note(eight_bit_products(details(5)), "int8")
    wider = {"kernels": CENSUS, **details(3, 2), "raised": ["\x1b[31mhead"]}
    text = engine_text(wider, "int8")
    assert text.startswith("137 kernels by its builder's log; ") and text.count("not all in 8 bits") == 1
    assert text.endswith("multiplies 1 products of the graph in 32 bits (\\x1b[31mhead)")


def test_the_ledger_says_it_of_the_engine() -> None:
    figures = dict.fromkeys(("top1", "agreement", "sqnr_db", "latency_ms"))
    entries = [
        {"name": name, "runtime": "r", "size": 1, "macs": 1, "note": "", **figures}
        for name in ("student", "e engine")
    ]
    ledger = check({"entries": entries, "images": 9, "batch_size": 1}, StagesRecord, "ledger", "")
    assert stages_view(ledger, kernels="137 kernels")["notes"] == ["e engine: 137 kernels."]
    assert stages_view(ledger)["notes"] == []

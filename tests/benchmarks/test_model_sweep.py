"""The sweep of timm's names: what becomes of one, and that docs/models.md is what the last run found."""

from __future__ import annotations

import json

import pytest

from benchmarks import model_sweep
from benchmarks.documents import DOCS
from benchmarks.model_sweep import REFUSED, SLIMMED, WHOLE, Found
from tests.helpers.models import shapes_alone

KEPT = json.loads(model_sweep.RESULTS.read_text(encoding="utf-8"))
ROWS = [Found(**row) for row in KEPT["names"]]


@pytest.mark.parametrize(
    ("name", "module", "kind", "parts"),
    [
        ("test_vit", "vision_transformer", SLIMMED, "Block, Attention, Mlp"),
        (
            "vit_tiny_patch16_dinov3_qkvb",
            "eva",
            SLIMMED,
            "EvaBlock, EvaAttention, Mlp, RotaryEmbeddingDinoV3",
        ),
        ("test_vit_relpos", "vision_transformer_relpos", WHOLE, "RelPosBlock, RelPosAttention, Mlp"),
    ],
)
def test_what_becomes_of_a_name(name: str, module: str, kind: str, parts: str) -> None:
    with shapes_alone():
        found = model_sweep.sweep_one(name, module)
    assert (found.kind, found.parts, found.name in {row.name for row in ROWS}) == (kind, parts, True)
    assert found.million > 0 and found.image_size >= 128
    assert (found.reason is None) == (kind == SLIMMED)


def test_a_name_that_is_refused_has_its_reason() -> None:
    found = model_sweep.sweep_one("resnet18", "resnet")
    assert found.kind == REFUSED and found.reason and "another architecture (resnet.ResNet)" in found.reason


def test_the_page_is_what_the_last_sweep_found() -> None:
    page = (DOCS / "models.md").read_text(encoding="utf-8")
    for table in (
        model_sweep.table_of_modules(ROWS),
        model_sweep.table_of_families(ROWS, KEPT["errors"]),
        model_sweep.table_of_names(ROWS),
    ):
        assert table in page


def test_the_families_keep_to_their_tolerances() -> None:
    measured = {row.name for row in model_sweep.smallest(ROWS).values()}
    assert KEPT["errors"].keys() == measured
    for name, errors in KEPT["errors"].items():
        assert errors["deploy form"] < 1e-4 and errors["fp32"] < 1e-4, name
        assert errors["fp16"] < 0.05 and errors["fp16 cosine"] >= 0.9997, name


def test_the_families_are_told_apart_by_what_they_are_made_of() -> None:
    rows = [
        Found("a", "eva", SLIMMED, parts="P", head="avg", million=5),
        Found("b", "eva", SLIMMED, parts="P", head="avg", million=3),
        Found("c", "eva", SLIMMED, parts="P", head="token", million=4),
        Found("d", "eva", REFUSED, "no"),
    ]
    assert [row.name for row in model_sweep.smallest(rows).values()] == ["b", "c"]
    assert model_sweep.table_of_modules(rows).splitlines()[-1] == "| all | 4 | 3 | 0 | 1 |"

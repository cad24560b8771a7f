"""The model card: what it says survives the file, a bad one is refused in a line, and the file is whole or not there."""

from __future__ import annotations

import json
import math
import struct
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from engines.errors import EngineError
from sit_deploy.errors import InputError
from sit_deploy.models import create_model
from sit_deploy.models.card import ModelCard
from sit_deploy.models.card_file import KEY, read_card, save_weights
from sit_deploy.preprocessing import Preprocessing
from tests.sit_deploy.test_manifest import changed as altered
from tests.sit_deploy.test_manifest import places

CARD = ModelCard(
    name="vit_tiny_patch16_224",
    stages=(6, 2, 2, 2),
    keeping_ratio=0.5,
    tokens=(36, 18, 9, 4),
    image_size=96,
    num_classes=3,
    preprocessing=Preprocessing((96, 96), 112, "bicubic", (0.5, 0.5, 0.5), (0.25, 0.5, 0.75)),
    classes=("cat", "Hündin", "cow"),
    metrics={"top1": 71.5},
    training={"epochs": 3, "teacher": None},
)
ROUNDED: dict[str, Any] = {"grid": "int8", "thresholds": {"head": 1.5}}


def weights() -> dict[str, torch.Tensor]:
    whole = torch.arange(12.0).reshape(3, 4)
    return {"a": whole, "b": whole.T, "c": whole[1], "d": torch.ones(2, dtype=torch.float16)}


def test_it_comes_back_as_it_was(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    save_weights(path, weights(), CARD)
    assert read_card(path) == CARD
    read = load_file(path)
    assert read.keys() == weights().keys()
    assert all(torch.equal(read[name], tensor) for name, tensor in weights().items())
    with safe_open(path, "pt") as file:
        assert list(file.metadata()) == [KEY]
    assert json.loads((tmp_path / "model.json").read_text(encoding="utf-8")) == CARD.to_dict()
    assert sorted(p.name for p in tmp_path.iterdir()) == ["model.json", "model.safetensors"]


def test_what_it_is_written_as() -> None:
    assert CARD.to_dict() == {
        "schema": 1,
        "model": {
            "name": "vit_tiny_patch16_224", "stages": [6, 2, 2, 2], "keeping_ratio": 0.5, "tokens": [36, 18, 9, 4],
            "image_size": 96, "num_classes": 3, "dist_token": False,
        },
        "classes": ["cat", "Hündin", "cow"],
        "preprocessing": {
            "size": [96, 96], "resize": 112, "interpolation": "bicubic", "mean": [0.5, 0.5, 0.5],
            "std": [0.25, 0.5, 0.75], "layout": "NCHW", "dtype": "float32", "orientation": "stored", "crop_mode": "center", "crop_offset": "round",
        },
        "metrics": {"top1": 71.5},
        "training": {"epochs": 3, "teacher": None},
    }  # fmt: skip
    assert ModelCard.from_dict(json.loads(json.dumps(CARD.to_dict()))) == CARD


def test_tokens_that_no_ratio_gives(tmp_path: Path) -> None:
    """The ratio is null then, so that nothing reads a schedule out of it; older versions refuse it in a line."""
    card = replace(CARD, keeping_ratio=None, tokens=(36, 30, 7, 7))
    assert (card.kept, CARD.kept) == ((36, 30, 7, 7), None)
    save_weights(tmp_path / "model.safetensors", weights(), card)
    assert read_card(tmp_path / "model.safetensors") == card
    assert card.to_dict()["model"]["keeping_ratio"] is None
    fields = card.to_dict()
    fields["model"]["tokens"] = [36, 7, 8, 4]
    with pytest.raises(InputError, match=r"its tokens \[36, 7, 8, 4\] grow, and slimming must not"):
        ModelCard.from_dict(fields)


def test_what_it_was_trained_to_be_rounded_with(tmp_path: Path) -> None:
    """Read back to the bit. A card without it, such as those of before there was any, has None."""
    thresholds = {"blocks.3/attn/qkv": float(torch.tensor(1 / 3)), "tsm.0/fc1": 127 * 0.25}
    card = replace(CARD, quantization={"grid": "int8", "thresholds": thresholds})
    save_weights(tmp_path / "model.safetensors", weights(), card)
    read = read_card(tmp_path / "model.safetensors")
    assert read == card != CARD
    assert card.to_dict() == {**CARD.to_dict(), "quantization": card.quantization}
    assert "quantization" not in CARD.to_dict()
    assert ModelCard.from_dict(CARD.to_dict()).quantization is None


def test_files_without_a_card(tmp_path: Path) -> None:
    plain, other, broken, short = (
        tmp_path / n for n in ("a.safetensors", "b.pth", "c.safetensors", "d.safetensors")
    )
    save_file(weights() | {"b": torch.ones(1), "c": torch.ones(1)}, plain, metadata={"format": "pt"})
    torch.save(weights(), other)
    broken.write_bytes(struct.pack("<Q", 10) + b"[not json]")
    short.write_bytes(b"abc")
    for path in (plain, other, broken, short, tmp_path / "gone.safetensors", tmp_path):
        assert read_card(path) is None


def test_only_the_header_is_read(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    save_weights(path, weights(), CARD)
    content = path.read_bytes()
    (length,) = struct.unpack("<Q", content[:8])
    path.write_bytes(content[: 8 + length])  # no weights left
    assert read_card(path) == CARD


def changed(path: str, value: Any = None, *, remove: bool = False) -> dict[str, Any]:
    fields = json.loads(json.dumps(CARD.to_dict()))
    *way, last = path.split(".")
    place = fields
    for part in way:
        place = place[part]
    if remove:
        del place[last]
    else:
        place[last] = value
    return fields


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        (["no", "card"], "no card of sit-deploy"),
        (changed("schema", 2), "of schema 2, newer than the 1 known here; upgrade sit-deploy"),
        (changed("schema", "1"), "no card of sit-deploy"),
        (changed("classes", remove=True), "the card lacks classes"),
        (changed("more", 1), "the card has unknown more"),
        (changed("model.stages", remove=True), "its model lacks stages"),
        (changed("model.depth", 12), "its model has unknown depth"),
        (changed("model", "sit_s"), "its model must be named fields, got 'sit_s'"),
        (changed("model.name", ""), "its name must be the name of a model, got ''"),
        (changed("model.stages", [6, 0]), r"its stages must be blocks of each stage, got \[6, 0\]"),
        (changed("model.stages", []), "its stages must be"),
        (
            changed("model.stages", [12]),
            r"its tokens \[36, 18, 9, 4\] are not one for each of the stages \[12\]",
        ),
        (changed("model.keeping_ratio", 0), "its keeping_ratio must be above 0 and at most 1, got 0"),
        (changed("model.image_size", 96.0), "its image_size must be a number of pixels up to 8192, got 96.0"),
        (changed("model.image_size", 112), "its preprocessing gives 96x96 pixels, its model takes 112"),
        (changed("model.num_classes", True), "its num_classes must be from 1 to 1000000, got True"),
        (changed("model.num_classes", 4), "it has 3 class names for 4 classes"),
        (changed("model.dist_token", 0), "its dist_token must be true or false, got 0"),
        (changed("classes", [1, 2, 3]), "its classes must be a list of names, or null"),
        (changed("metrics", []), r"its metrics must be named fields, got \[\]"),
        (changed("quantization", None), "its quantization must be named fields, got None"),
        (changed("quantization", {"grid": "int8"}), "its quantization lacks thresholds"),
        (changed("quantization", {**ROUNDED, "bits": 8}), "its quantization has unknown bits"),
        (changed("quantization", {**ROUNDED, "grid": "int4"}), "must be on the grid int8, got 'int4'"),
        (
            changed("quantization", {**ROUNDED, "thresholds": {}}),
            "its thresholds must be numbers by node, got {}",
        ),
        (changed("quantization", {**ROUNDED, "thresholds": [1.0]}), "its thresholds must be numbers by node"),
        (
            changed("quantization", {**ROUNDED, "thresholds": {"head": 0.0}}),
            "its threshold of head must be above 0, got 0.0",
        ),
        (
            changed("quantization", {**ROUNDED, "thresholds": {"head": "1"}}),
            "its threshold of head must be above 0, got '1'",
        ),
        (
            changed("quantization", {**ROUNDED, "thresholds": {"head": math.nan}}),
            "is no JSON",
        ),
        (changed("preprocessing.mean", [0.5]), "preprocessing: mean must be three numbers"),
        (changed("preprocessing.crop", 1), "preprocessing: unknown field crop"),
    ],
    ids=lambda value: value[:30] if isinstance(value, str) else "",
)
def test_a_bad_card_is_refused_in_a_line(fields: Any, message: str, tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    save_file({"a": torch.ones(1)}, path, metadata={KEY: json.dumps(fields)})
    with pytest.raises(InputError, match=message) as caught:
        read_card(path)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_card_that_is_no_json_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    save_file({"a": torch.ones(1)}, path, metadata={KEY: "{"})
    with pytest.raises(InputError, match=r"model\.safetensors is no JSON"):
        read_card(path)


def test_a_failure_leaves_what_was_there(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    save_weights(path, weights(), CARD)
    before = {p.name: p.read_bytes() for p in tmp_path.iterdir()}
    with pytest.raises((TypeError, AttributeError)):
        save_weights(path, {"a": "no tensor"}, CARD)  # type: ignore[dict-item]
    with pytest.raises(EngineError, match="does not exist"):
        save_weights(tmp_path / "gone" / "model.safetensors", weights(), CARD)
    assert {p.name: p.read_bytes() for p in tmp_path.iterdir()} == before


def test_weights_are_as_readable_as_any_other_file(tmp_path: Path) -> None:
    plain = tmp_path / "plain"
    plain.write_bytes(b"")
    save_weights(tmp_path / "model.safetensors", weights(), CARD)
    modes = {(tmp_path / name).stat().st_mode for name in ("plain", "model.safetensors", "model.json")}
    assert len(modes) == 1


# ------------------------------------------------------------------------------------------------ cards that lie


def nano(**changes: Any) -> tuple[dict[str, torch.Tensor], ModelCard]:
    """Weights of sit_nano with seven classes, and their card with something else in it."""
    state = create_model("sit_nano", num_classes=7).state_dict()
    card = ModelCard(
        "sit_nano",
        (2, 2, 2, 2),
        0.5,
        (49, 24, 12, 6),
        112,
        7,
        Preprocessing.for_model(112),
        classes=tuple("abcdefg"),
    )
    return state, replace(card, **changes)


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({}, None),
        ({"num_classes": 8, "classes": tuple("abcdefgh")}, "it has 8 classes by the card, and 7 by the weights"),
        ({"dist_token": True}, "it has dist token by the card, and none by the weights"),
        ({"stages": (2, 2, 2, 3)}, r"it has 9 blocks \(2, 2, 2, 3\) by the card, and 8"),
        ({"stages": (2, 2, 4), "tokens": (49, 24, 12)}, "it slims 2 times by the card, and 3 times"),
        ({"tokens": (49, 24, 12, 5)}, "its stages keep 24, 12, 5 tokens by the card, and 24, 12, 6"),
        (
            {"image_size": 128, "tokens": (64, 32, 16, 8), "preprocessing": Preprocessing.for_model(128)},
            "it has 64 patches at 128 pixels by the card, and 50 positions",
        ),
    ],
)  # fmt: skip
def test_a_card_that_lies_of_its_weights(changes: dict[str, Any], told: str | None, tmp_path: Path) -> None:
    path = tmp_path / "c.safetensors"
    save_weights(path, *nano(**changes))
    if told is None:
        assert read_card(path) is not None
    else:
        with pytest.raises(
            InputError, match=rf"c\.safetensors does not fit its weights: {told}.*; save the model again"
        ):
            read_card(path)


WRONG: tuple[Any, ...] = (
    ...,
    [],
    {},
    None,
    -1,
    0,
    1e308,
    "",
    "x",
    True,
    2**63,
    10**30,
    [[]],
    {"x": {}},
    [None],
)


def test_every_field_of_a_card_is_checked(tmp_path: Path) -> None:
    """Its text is another's: whatever is in it, a card comes out that serves, or one line."""
    state, card = nano(quantization=ROUNDED)
    fields, path = {**card.to_dict(), "metrics": {"top1": 71.5}}, tmp_path / "c.safetensors"
    texts = [json.dumps(altered(fields, place, to)) for place in places(fields) for to in WRONG]
    texts += ["[" * 100_000, "9" * 5000, "[NaN]", '"\\udcff"', '{"schema": 1, "schema": 1}', "", "null", "3"]
    few = {name: state[name] for name in ("head.weight", "pos_embed", "tsm.0.weight.3.weight")}
    refused = 0
    for text in texts:
        save_file(few, path, metadata={KEY: text})
        try:
            found = read_card(path)
        except InputError as error:
            assert "\n" not in str(error)
            refused += 1
            continue
        assert found is not None and json.dumps(found.to_dict(), allow_nan=False)
        assert found.num_classes == 7 and isinstance(found.metrics.get("top1"), int | float | None)
    assert refused > 300


@pytest.mark.parametrize(
    "header", [b"[" * 100_000, b"9" * 5000, b"[]", b'{"__metadata__": []}', b'{"a": NaN}', b"\xff"]
)
def test_a_header_that_is_none_has_no_card(header: bytes, tmp_path: Path) -> None:
    """Whoever reads the weights says what is wrong."""
    (tmp_path / "c.safetensors").write_bytes(struct.pack("<Q", len(header)) + header)
    assert read_card(tmp_path / "c.safetensors") is None

from __future__ import annotations

import json

import pytest

from calibration.errors import CalibrationError
from calibration.layers import GROUPS, Layer, find_layers
from calibration.plan import DEFAULT_GROUPS, Reason, make_plan
from tests.helpers.graphs import exported

HIGH = {"stem", "head", "attention", "aggregation", "residual"}


@pytest.fixture(scope="module")
def layers() -> dict[str, Layer]:
    return find_layers(exported("sit"))


@pytest.mark.parametrize("precision", ["int8", "fp8"])
def test_default(layers: dict[str, Layer], precision: str) -> None:
    plan = make_plan(layers, precision)
    assert [layer.name for layer in plan.layers] == list(layers)
    for layer in plan.layers:
        assert layer.precision == ("high" if layer.group in HIGH else precision)
        assert layer.macs == layers[layer.name].macs
        assert layer.reason
    assert plan.quantized == tuple(name for name, layer in layers.items() if layer.group not in HIGH)
    reasons = {layer.group: layer.reason for layer in plan.layers if layer.group in HIGH}
    assert len(set(reasons.values())) == len(HIGH)


@pytest.mark.parametrize("group", [group for group in GROUPS if group != "pool"])
def test_one_group(layers: dict[str, Layer], group: str) -> None:
    plan = make_plan(layers, "int8", [group])
    assert plan.quantized == tuple(name for name, layer in layers.items() if layer.group == group)


@pytest.mark.parametrize(
    ("precision", "queries", "keys", "kept"),
    [
        ("fp8", 2, 32, False),
        ("fp8", 2, 31, True),
        ("fp8", 1, 197, True),
        ("int8", 2, 2, False),
        ("int8", 1, 197, True),
    ],
)
def test_attention_that_would_fall_apart_in_8_bits_is_left_high(
    precision: str, queries: int, keys: int, kept: bool
) -> None:
    """The numbers are what TensorRT-RTX 1.7.1's builder logs for graphs of one attention."""
    product = Layer("p", "MatMul", "attention", (0, 1), ("q", "k"), None, None, 1, (queries, keys))
    linear = Layer("l", "MatMul", "qkv", (0,), ("x",), "w", 1, 1)
    groups = ["qkv", "attention"]
    plan = make_plan({"p": product, "l": linear}, precision, groups, one_kernel=True)
    assert [layer.is_high for layer in plan.layers] == [kept, False]
    assert (plan.layers[0].reason is Reason.FEW_TOKENS) == kept
    # for an engine that has a kernel a product it makes no difference, and neither where attention is not asked for
    assert len(make_plan({"p": product, "l": linear}, precision, groups).quantized) == 2
    assert (
        make_plan({"p": product, "l": linear}, precision, one_kernel=True).layers[0].reason
        is Reason.TWO_ACTIVATIONS
    )


def test_default_and_one_more(layers: dict[str, Layer]) -> None:
    assert make_plan(layers, groups=["default"]) == make_plan(layers)
    more = set(make_plan(layers, groups=["default", "head"]).quantized)
    assert more == {*make_plan(layers).quantized, "head"}


def test_all_is_every_layer_with_a_weight(layers: dict[str, Layer]) -> None:
    expected = tuple(name for name, layer in layers.items() if layer.weight is not None)
    assert make_plan(layers, "int8", ["all"]).quantized == expected


def test_unnamed_products_are_quantized_and_convolutions_not() -> None:
    found = {
        name: Layer(name, op_type, name, (0,), ("x",), "w", 0, 1)
        for name, op_type in (("linear", "MatMul"), ("conv", "Conv"))
    }
    assert make_plan(found).quantized == ("linear",)
    assert make_plan(found, groups=["conv"]).quantized == ("conv",)
    assert {*GROUPS, "linear"} - HIGH - {"pool"} == DEFAULT_GROUPS


def test_share_is_of_multiply_accumulates(layers: dict[str, Layer]) -> None:
    total = sum(layer.macs for layer in layers.values())
    kept = sum(layer.macs for layer in layers.values() if layer.group == "fc1")
    assert make_plan(layers, "int8", ["fc1"]).share == pytest.approx(kept / total)
    assert make_plan(layers, "int8", GROUPS).share == 1


def test_a_layer_that_is_named_with_a_minus_stays_high(layers: dict[str, Layer]) -> None:
    first, *rest = make_plan(layers).quantized
    plan = make_plan(layers, groups=["default", f"-{first}"])
    assert plan.quantized == tuple(rest)
    (left,) = [layer for layer in plan.layers if layer.name == first]
    assert left.reason is Reason.NOT_ASKED_FOR
    with pytest.raises(CalibrationError, match=r"there is no layer 'fc9'; `sit-deploy inspect` lists them"):
        make_plan(layers, groups=["default", "-fc9"])


def test_groups_of_a_plan(layers: dict[str, Layer]) -> None:
    """What stays high for another reason goes on saying so."""
    whole = make_plan(layers, groups=["default", "head"])
    lost = whole.quantized[0]
    plan = whole.without_outliers([lost]).of_groups({"head", whole.layers[0].group, "fc1"})
    reasons = {layer.name: layer.reason for layer in plan.layers}
    assert {layers[name].group for name in plan.quantized} <= {"head", whole.layers[0].group, "fc1"}
    assert reasons["head"] is Reason.TUNED_LOW and reasons[lost] is Reason.OUTLIERS
    assert Reason.TUNED_HIGH in reasons.values()


def test_keep_high(layers: dict[str, Layer]) -> None:
    plan = make_plan(layers)
    first, *rest = plan.quantized
    kept = plan.keep_high([first])
    assert kept.quantized == tuple(rest)
    assert kept.kept_for_accuracy == (first,) and plan.kept_for_accuracy == ()
    assert next(layer.reason for layer in kept.layers if layer.name == first) is Reason.ACCURACY_BUDGET
    assert [layer for layer in kept.layers if layer.name != first] == [
        layer for layer in plan.layers if layer.name != first
    ]
    assert first in plan.quantized
    with pytest.raises(CalibrationError, match="no layer 'nowhere'"):
        plan.keep_high(["nowhere"])


def test_layers_that_read_outliers_stay_high_before_any_budget(layers: dict[str, Layer]) -> None:
    plan = make_plan(layers)
    first, second, *rest = plan.quantized
    kept = plan.without_outliers([first]).keep_high([second])
    assert kept.quantized == tuple(rest) and kept.share < plan.share
    assert (kept.kept_for_outliers, kept.kept_for_accuracy) == ((first,), (second,))
    assert next(p.sentence for p in kept.layers if p.name == first).startswith(
        "outliers: 8 bits hold them or the rest"
    )
    assert plan.kept_for_outliers == ()


def test_the_order_of_those_kept_high_is_their_rank(layers: dict[str, Layer]) -> None:
    plan = make_plan(layers)
    last, first = plan.quantized[-1], plan.quantized[0]
    words = {layer.name: layer.sentence for layer in plan.keep_high([last, first]).layers}
    assert words[last] == "kept high for accuracy: number 1 by harm for its work"
    assert words[first] == "kept high for accuracy: number 2 by harm for its work"
    assert words[plan.quantized[1]] == "constant weight"


def test_plain_types(layers: dict[str, Layer]) -> None:
    plain = json.loads(json.dumps(make_plan(layers).to_dict()))
    assert plain["precision"] == "int8"
    assert plain["layers"][0] == {
        "name": "stem/conv1",
        "group": "stem",
        "precision": "high",
        "reason": "every token comes from it",
        "macs": layers["stem/conv1"].macs,
    }


@pytest.mark.parametrize(
    ("precision", "groups", "message"),
    [
        ("int4", None, "'int4' is not one of int8, fp8"),
        ("int8", ["qvk"], "no layers are called 'qvk'; choose from stem, qkv, .*linear, conv"),
        ("int8", [], "quantizes no layer"),
        ("int8", ["conv"], "quantizes no layer"),
    ],
)
def test_refusals(layers: dict[str, Layer], precision: str, groups: list[str] | None, message: str) -> None:
    with pytest.raises(CalibrationError, match=message) as raised:
        make_plan(layers, precision, groups)
    assert "\n" not in str(raised.value)

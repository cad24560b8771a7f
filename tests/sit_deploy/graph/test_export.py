"""The exported graph: what it is made of, what it is called, what it computes, and that it is always the same."""

from __future__ import annotations

import functools
import logging
import re
import socket
import sys
import warnings
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch

from sit_deploy.errors import InputError
from sit_deploy.graph.deploy_form import to_deploy_form
from sit_deploy.graph.export import DEFAULT_OPSET, OPSETS, export_onnx, set_batch
from sit_deploy.graph.lint import lint
from sit_deploy.models.sit import SiT
from tests.helpers.models import TINY, images, relative_error, tiny_model, tiny_vit

pytestmark = pytest.mark.usefixtures("exported_anew")

ROOT = Path(__file__).parents[3]
TOLERANCE = 2e-5  # of the logits' standard deviation
# every operator set once, and every kind of batch
BATCHES: dict[int, int | str] = {17: 3, 18: "batch", 19: 1, 20: 1, 23: 1}
# of the model that is looked at most: each kind of block, and two slimmings; larger ones repeat the same
STAGES = (2, 1, 1)


def run(graph: onnx.ModelProto, pixels: torch.Tensor) -> torch.Tensor:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    session = onnxruntime.InferenceSession(graph.SerializeToString(), options, ["CPUExecutionProvider"])
    (logits,) = session.run(["logits"], {"images": pixels.numpy()})
    return torch.from_numpy(logits)


def shape(value: onnx.ValueInfoProto) -> tuple[int | str, ...]:
    return tuple(d.dim_param or d.dim_value for d in value.type.tensor_type.shape.dim)


@pytest.fixture(scope="module")
def small() -> SiT:
    return tiny_model(stage_blocks=STAGES).requires_grad_(False)


@pytest.fixture(scope="module")
def export(small: SiT) -> Callable[[int], onnx.ModelProto]:
    """A function that gives the small model in an operator set, exported once."""

    @functools.cache
    def exported(opset: int) -> onnx.ModelProto:
        form = to_deploy_form(small)
        return export_onnx(form, small.img_size, batch=BATCHES[opset], opset=opset, name="small")

    return exported


@pytest.fixture(
    params=[DEFAULT_OPSET, *(pytest.param(n, marks=pytest.mark.slow) for n in OPSETS if n != DEFAULT_OPSET)]
)
def graph(request: pytest.FixtureRequest, export: Callable[[int], onnx.ModelProto]) -> onnx.ModelProto:
    return export(request.param)


@pytest.fixture
def default(export: Callable[[int], onnx.ModelProto]) -> onnx.ModelProto:
    return export(DEFAULT_OPSET)


def opset_of(graph: onnx.ModelProto) -> int:
    (declared,) = graph.opset_import
    return declared.version


def test_offered_operator_sets() -> None:
    assert OPSETS == tuple(BATCHES) == (17, 18, 19, 20, 23)
    assert DEFAULT_OPSET == 20


def test_passes_the_checker_and_the_lint(graph: onnx.ModelProto) -> None:
    onnx.checker.check_model(graph, full_check=True)
    opset = opset_of(graph)
    assert lint(graph, max_opset=opset, dynamic_batch=BATCHES[opset] == "batch") == []


def test_standard_operators_only(graph: onnx.ModelProto) -> None:
    assert [o.domain for o in graph.opset_import] == [""]
    assert {n.domain for n in graph.graph.node} == {""}
    assert not graph.functions
    # the file version that came with the operator set: TensorRT 8.6 reads 8, and none reads one to come
    assert graph.ir_version == {17: 8, 18: 8, 19: 9, 20: 9, 23: 11}[opset_of(graph)]


def test_operators_are_those_of_the_model(graph: onnx.ModelProto) -> None:
    depth, tsms, stem = sum(STAGES), len(STAGES) - 1, 4
    gelus = depth + tsms + stem - 1
    counts = Counter(n.op_type for n in graph.graph.node)
    assert counts["Conv"] == stem
    assert counts["LayerNormalization"] == 2 * depth + tsms + 1
    whole = depth - 1 if opset_of(graph) == 23 else 0  # attention as one operator, but for a single query
    assert counts.pop("Attention", 0) == whole
    assert counts["Softmax"] == depth - whole + tsms
    assert counts["MatMul"] == 6 * depth + 1 + 3 * tsms - 2 * whole  # the last block has its queries apart
    assert counts["Gemm"] == 1
    assert counts["Concat"] == tsms
    modern = opset_of(graph) >= 20
    assert (counts["Gelu"], counts["Erf"]) == ((gelus, 0) if modern else (0, gelus))
    rest = {"Add", "Reshape", "Transpose", "Split", "Slice", "Pad"} | (
        {"Gelu"} if modern else {"Erf", "Div", "Mul"}
    )
    assert set(counts) == rest | {"Conv", "LayerNormalization", "Softmax", "MatMul", "Gemm", "Concat"}
    # no Identity, Shape, Constant, Cast, Gather, Expand, ...; no run-time division outside the exact GELU
    if not modern:
        assert counts["Div"] == gelus


def test_gelu_is_exact(default: onnx.ModelProto) -> None:
    attributes = [a for n in default.graph.node if n.op_type == "Gelu" for a in n.attribute]
    assert {a.s for a in attributes if a.name == "approximate"} <= {b"none"}


def test_input_and_output(graph: onnx.ModelProto) -> None:
    batch = BATCHES[opset_of(graph)]
    (image,), (logits,) = graph.graph.input, graph.graph.output
    assert (image.name, shape(image)) == ("images", (batch, 3, 64, 64))
    assert (logits.name, shape(logits)) == ("logits", (batch, 7))
    float32 = onnx.TensorProto.FLOAT
    assert {v.type.tensor_type.elem_type for v in (image, logits)} == {float32}
    assert {t.data_type for t in graph.graph.initializer} == {float32, onnx.TensorProto.INT64}


def test_every_tensor_has_its_shape_and_only_the_batch_is_open(graph: onnx.ModelProto) -> None:
    batch = BATCHES[opset_of(graph)]
    made = {o for n in graph.graph.node for o in n.output} - {"logits"}
    shapes = {v.name: shape(v) for v in graph.graph.value_info}
    assert made == shapes.keys()
    assert {s[0] for s in shapes.values()} == {batch}
    assert all(isinstance(d, int) and d > 0 for s in shapes.values() for d in s[1:])


def test_the_graph_slims(graph: onnx.ModelProto) -> None:
    shapes = {v.name: shape(v) for v in graph.graph.value_info}
    tokens = [shapes[f"blocks.{i}/mlp/fc1"][1] for i in range(4)]
    assert tokens == [17, 17, 9, 1]


def test_names_are_unique_and_readable(graph: onnx.ModelProto) -> None:
    nodes = [n.name for n in graph.graph.node]
    tensors = [o for n in graph.graph.node for o in n.output]
    weights = [t.name for t in graph.graph.initializer]
    assert len(set(nodes)) == len(nodes)
    assert len({*tensors, *weights, "images"}) == len(tensors) + len(weights) + 1
    # TensorRT's parser refuses a node that is called as a weight is
    assert not set(nodes) & set(weights)
    place = r"(stem|embed|blocks\.\d|tsm\.\d|norm|head|reshape)"
    odd = [
        n
        for n in (*nodes, *tensors, *weights)
        if n != "logits" and not re.fullmatch(rf"{place}(/[a-z][a-z0-9_]*)*(:\d)?", n)
    ]
    assert odd == []
    assert set(nodes) >= {
        "stem/conv1", "stem/conv4", "embed/pad", "blocks.0/norm1", "blocks.2/attn/qkv",
        "blocks.2/attn/attention" if opset_of(graph) == 23 else "blocks.2/attn/softmax",
        "blocks.2/attn/proj", "blocks.2/attn/proj/bias", "blocks.2/mlp/fc1", "blocks.3/attn/q", "blocks.3/attn/kv", "tsm.0/fc2", "tsm.1/softmax", "norm",
        "head",
    }  # fmt: skip
    read = dict.fromkeys(i for n in graph.graph.node for i in n.input)
    assert weights == [i for i in read if i in set(weights)]  # in the order of their first reader
    assert set(weights) >= {
        "stem/conv1/weight",
        "stem/conv1/bias",
        "blocks.2/attn/qkv/weight",
        "norm/bias",
        "head/weight",
    }


def test_names_tell_the_truth(graph: onnx.ModelProto, small: SiT) -> None:
    form = to_deploy_form(small)
    weights = {t.name: onnx.numpy_helper.to_array(t) for t in graph.graph.initializer}
    for name in ("blocks.1.attn.qkv", "blocks.2.mlp.fc2", "tsm.1.fc1"):
        linear = form.get_submodule(name)
        found = weights[re.sub(r"\.(?!\d)", "/", name) + "/weight"]
        np.testing.assert_array_equal(found, linear.weight.T.numpy())
    np.testing.assert_array_equal(weights["blocks.3/norm2/weight"], form.blocks[3].norm2.weight.numpy())
    np.testing.assert_array_equal(weights["embed/add/value"], form.embed.position.numpy())


def test_no_trace_of_the_machine(graph: onnx.ModelProto) -> None:
    assert (graph.producer_name, graph.producer_version, graph.doc_string) == ("sit-deploy", "", "")
    assert graph.graph.name == "small"
    items = (
        graph,
        graph.graph,
        *graph.graph.node,
        *graph.graph.initializer,
        *graph.graph.input,
        *graph.graph.output,
    )
    assert not any(i.metadata_props or i.doc_string for i in items)
    text = onnx.ModelProto()
    text.CopyFrom(graph)
    for tensor in text.graph.initializer:
        assert tensor.data_location == onnx.TensorProto.DEFAULT
        tensor.ClearField("raw_data")  # random bytes, in which anything may be found by chance
    found = text.SerializeToString()
    for trace in (
        "/tmp",
        ".py",
        "torch",
        "/usr",
        "site-packages",
        sys.prefix,
        str(ROOT),
        str(Path.home()),
        socket.gethostname(),
    ):
        assert trace.encode() not in found, trace
    whole = graph.SerializeToString()
    for trace in ("site-packages", str(ROOT), sys.prefix):
        assert trace.encode() not in whole, trace


@torch.no_grad()
def test_computes_what_pytorch_does(graph: onnx.ModelProto, small: SiT) -> None:
    batch = BATCHES[opset_of(graph)]
    for count in (1, 2, 5) if batch == "batch" else (batch,):
        pixels = images(small, batch=count)
        logits = run(graph, pixels)
        assert logits.dtype == torch.float32
        assert relative_error(logits, small(pixels)) < TOLERANCE
        assert relative_error(logits, to_deploy_form(small)(pixels)) < TOLERANCE


@pytest.mark.slow
def test_fixed_batch_is_fixed(export: Callable[[int], onnx.ModelProto], small: SiT) -> None:
    with pytest.raises(Exception, match="Got: 2 Expected: 3"):
        run(export(17), images(small, batch=2))


@torch.no_grad()
def test_batch_can_be_set_afterwards(default: onnx.ModelProto, small: SiT) -> None:
    before = default.SerializeToString()
    assert lint(set_batch(default, "batch"), dynamic_batch=True) == []
    for batch in (1, 4, "batch"):
        pixels = images(small, batch=4 if batch == "batch" else batch)
        assert relative_error(run(set_batch(default, batch), pixels), small(pixels)) < TOLERANCE
    assert default.SerializeToString() == before


@pytest.mark.slow
def test_the_same_bytes_every_time(default: onnx.ModelProto, small: SiT) -> None:
    opened = export_onnx(to_deploy_form(small), small.img_size, batch="batch", name="small")
    assert set_batch(opened, 1).SerializeToString() == default.SerializeToString()
    assert set_batch(default, "batch").SerializeToString() == opened.SerializeToString()


@pytest.mark.slow
@torch.no_grad()
@pytest.mark.parametrize(
    "options",
    [
        {
            "dist_token": True,
            "stem": "6c",
            "skip_lam": 3.0,
            "in_chans": 1,
            "img_size": (48, 80),
            "stage_blocks": (1, 1),
            "kept": (15, 8),
        },
        {"stage_blocks": (1,), "num_classes": 1},
    ],
    ids=["dist token, six convolutions, grey, not square", "teacher of one class"],
)
def test_variations(
    options: dict[str, object], capfd: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    model = tiny_model(**options)
    loggers = [logging.getLogger(n) for n in ("torch.onnx", "onnxscript", "onnx_ir")]
    for logger in loggers:
        caplog.set_level(logging.INFO, logger=logger.name)
    with warnings.catch_warnings(record=True) as warned:
        warnings.simplefilter("always")
        graph = export_onnx(to_deploy_form(model), model.img_size, batch="batch", opset=18)
    assert [str(w.message) for w in warned] == []
    assert capfd.readouterr() == ("", "")
    assert [r.getMessage() for r in caplog.records if r.name.startswith(("torch.onnx", "onnx"))] == []
    assert [logger.level for logger in loggers] == [logging.INFO] * 3
    assert lint(graph, max_opset=18, dynamic_batch=True) == []
    for count in (1, 3):
        pixels = images(model, batch=count)
        assert (run(graph, pixels) - model(pixels)).abs().max() < TOLERANCE


@pytest.mark.slow
@torch.no_grad()
def test_a_fresh_model() -> None:
    """A model as it is initialised, whose biases are all the same zeros, so that one weight serves many nodes."""
    torch.manual_seed(0)
    model = SiT(**{**TINY, "stage_blocks": (1, 1)}).eval()
    graph = export_onnx(to_deploy_form(model), model.img_size, batch=2)
    assert lint(graph, max_opset=20) == []
    assert not {n.name for n in graph.graph.node} & {t.name for t in graph.graph.initializer}
    assert len({t.name for t in graph.graph.initializer}) == len(graph.graph.initializer)
    pixels = images(model)
    assert relative_error(run(graph, pixels), model(pixels)) < TOLERANCE


@pytest.mark.parametrize("opset", [0, 16, 21])
def test_operator_sets_that_are_not_offered(opset: int, small: SiT) -> None:
    with pytest.raises(
        InputError, match=rf"opset {opset} is not offered; pass --opset 17 or 18 or 19 or 20 or 23"
    ):
        export_onnx(to_deploy_form(small), small.img_size, opset=opset)


@pytest.mark.parametrize("batch", [0, -1])
def test_batches_below_one(batch: int, small: SiT) -> None:
    with pytest.raises(
        InputError, match=rf"batch size must be at least 1, got {batch}; pass --batch-size 1 or more"
    ):
        export_onnx(to_deploy_form(small), small.img_size, batch=batch)


# --- vision transformers of timm ---


@pytest.mark.slow
@pytest.mark.parametrize(
    ("variant", "opset", "batch", "fused"),
    # attention of the last block is fused where it computes all tokens, which is for the mean of them
    [
        ("registers without positions", 18, 3, 1),  # and layer scale
        ("norm before the blocks", 17, "batch", 1),
        ("average with registers", 17, "batch", 2),
        ("average without class token", 20, 1, 2),
    ],
)
@torch.no_grad()
def test_vision_transformers(variant: str, opset: int, batch: int | str, fused: int) -> None:
    from engines.onnxruntime.fusion import fuse_for_cpu

    model = tiny_vit(variant, (1, 1))
    pixels = images(model, batch=batch if isinstance(batch, int) else 3)
    graph = export_onnx(to_deploy_form(model), model.img_size, batch=batch, opset=opset)
    assert lint(graph, max_opset=opset, dynamic_batch=batch == "batch") == []
    assert relative_error(run(graph, pixels), model(pixels)) < TOLERANCE
    counts = Counter(n.op_type for n in graph.graph.node)
    assert counts["ReduceMean"] == ("average" in variant)
    assert not counts.keys() & {"Identity", "Constant", "Cast", "Shape", "Expand", "BatchNormalization"}
    assert counts["Conv"] == 1
    names = {n.name for n in graph.graph.node}
    assert {"stem/conv1", "blocks.0/attn/qkv", "blocks.0/attn/add", "tsm.0/fc2", "head"} <= names
    assert fuse_for_cpu(graph)["attention"] == fused  # each with the bias of its projection
    assert relative_error(run(graph, pixels), model(pixels)) < TOLERANCE


@pytest.mark.slow
@torch.no_grad()
def test_a_slimmed_vision_transformer_builds_on_tensorrt_rtx(tmp_path: Path) -> None:
    """LayerScale, registers and the mean of the patches, strongly typed in both low precisions; the lowest operator set, too."""
    pytest.importorskip("tensorrt_rtx", reason="needs TensorRT-RTX to build: pip install tensorrt-rtx")
    import engines
    from sit_deploy.graph.precision import to_precision
    from sit_deploy.graph.simulate import simulate

    model = tiny_vit("average with registers", (1, 1))
    pixels = images(model, batch=2)
    for precision, opset, tolerance in (("fp16", 17, 0.02), ("bf16", 20, 0.2)):
        graph = export_onnx(to_deploy_form(model), model.img_size, batch=2, opset=opset)
        low, plan = to_precision(graph, precision)
        assert lint(low, max_opset=opset) == []
        (mean,) = [node for node in plan.nodes if node.op_type == "ReduceMean"]
        assert (mean.dtype, mean.sentence) == ("float32", "mean sums tokens")
        assert relative_error(run(simulate(low), pixels), model(pixels)) < tolerance
        onnx.save(low, tmp_path / "model.onnx")
        engines.get("tensorrt-rtx").build(
            tmp_path / "model.onnx", tmp_path / "engine.plan", engines.BuildOptions()
        )
        assert (tmp_path / "engine.plan").stat().st_size > 10_000

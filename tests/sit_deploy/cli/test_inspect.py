from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path

import onnx
import pytest
from onnx import TensorProto, helper

from engines.tensorrt.roofline import GPUS
from sit_deploy.graph.inspect import summarize
from tests.helpers.bundles import seal_again
from tests.helpers.command_line import CommandLine
from tests.sit_deploy.conftest import Trained


def graph_file(path: Path, shape: list[int] | None, node: str = "sum") -> Path:
    """Write a graph that adds its input, of a shape that may be a scalar's or unknown, to itself."""
    values = [helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name in ("a", "b")]
    graph = helper.make_graph([helper.make_node("Add", ["a", "a"], ["b"], node)], "g", values[:1], values[1:])
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=9), path)
    return path


def test_a_bundle_and_its_graph_give_the_same(trained: Trained, cli: CommandLine) -> None:
    of_bundle = cli("inspect", trained.bundle, "--json").json()
    of_file = cli("inspect", trained.bundle / "model.onnx", "--json").json()
    assert of_bundle["findings"] == []
    assert of_bundle["summary"] == of_file["summary"]
    summary = summarize(onnx.load(trained.bundle / "model.onnx")).to_dict()
    assert of_bundle["summary"] == json.loads(json.dumps(summary))
    assert of_bundle["target"] == str(trained.bundle)


def test_for_people(nano_fp32: Path, trained: Trained, cli: CommandLine) -> None:
    result = cli("inspect", nano_fp32)
    assert result.err == ""
    assert "input  images  float32 (1, 3, 112, 112)\n" in result.out
    assert "output logits  float32 (1, 1000)\n" in result.out
    assert "opset 20, " in result.out and "0.0% of them in 16 bits or fewer\n" in result.out
    assert "✓ lint: " in result.out
    assert "input  images  float32 (batch, 3, 112, 112)\n" in cli("inspect", trained.bundle).out


def test_half_precision(nano_rtx: Path, cli: CommandLine) -> None:
    assert "100.0% of them in 16 bits or fewer" in cli("inspect", nano_rtx).out


def test_findings_are_listed_and_the_status_is_1(nano_fp32: Path, cli: CommandLine) -> None:
    result = cli("inspect", nano_fp32, "--opset", "17", status=1)
    assert "opset" in result.out
    (line,) = result.complaints
    assert line == f"Error: {nano_fp32} is not deployable: 1 problem"
    found = cli("inspect", nano_fp32, "--opset", "17", "--json", status=1)
    assert [finding["rule"] for finding in found.json()["findings"]] == ["opset"]


def test_shapes_that_are_none(cli: CommandLine) -> None:
    scalar = graph_file(cli.folder / "scalar.onnx", [])
    assert "input  a  float32 ()\n" in cli("inspect", scalar).out
    unknown = graph_file(cli.folder / "unknown.onnx", None)
    result = cli("inspect", unknown, "--json", status=1).json()
    assert result["summary"] is None
    assert [finding["rule"] for finding in result["findings"]] == ["invalid"]


def test_names_with_brackets(cli: CommandLine) -> None:
    path = graph_file(cli.folder / "[red]m.onnx", None, node="[/b] :cow:")
    result = cli("inspect", path, status=1)
    assert "[red]m.onnx is not deployable" in result.err
    twice = onnx.load(graph_file(cli.folder / "twice.onnx", [1], node="[/b] :cow:"))
    twice.graph.node.append(helper.make_node("Add", ["a", "a"], ["c"], "[/b] :cow:"))
    onnx.save(twice, cli.folder / "twice.onnx")
    assert "[/b] :cow:" in cli("inspect", "twice.onnx", status=1).out


@pytest.mark.parametrize("content", [b"", b"hello, this is no model\n", b"\x08\x09garbage" * 50])
def test_not_onnx(content: bytes, cli: CommandLine) -> None:
    (cli.folder / "not.onnx").write_bytes(content)
    assert "not.onnx is not a readable ONNX model" in cli.refuses("inspect", "not.onnx")


def test_cut_short(nano_fp32: Path, cli: CommandLine) -> None:
    (cli.folder / "cut.onnx").write_bytes((nano_fp32 / "model.onnx").read_bytes()[:100_000])
    assert "not a readable ONNX model" in cli.refuses("inspect", "cut.onnx")


def test_not_there(cli: CommandLine) -> None:
    assert cli.refuses("inspect", "nowhere.onnx") == "nowhere.onnx: no such ONNX file"
    assert "it has no manifest.json" in cli.refuses("inspect", "tmp")


# --------------------------------------------------------------------------------------------------------- kernels


@pytest.mark.slow
def test_kernels_of_any_graph(trained: Trained, nano_rtx: Path, cli: CommandLine) -> None:
    """An engine is built and thrown away; with an open batch too."""
    found = cli("inspect", nano_rtx / "model.onnx", "--kernels", "--target", "sm89", "--json").json()
    ours = cli("inspect", nano_rtx, "--kernels", "--json").json()
    assert found["census"] == ours["census"] and found["kernel_list"] == ours["kernel_list"]
    assert "kernel_list" not in cli("inspect", nano_rtx, "--json").json()
    out = cli("inspect", trained.bundle / "model.onnx", "--kernels").out
    assert (
        " kernels by its builder's log; attention in one kernel in " in out and "blocks.0/attn/softmax" in out
    )
    assert re.search(r"^ \d+ product ", out, re.MULTILINE) and re.search(r"^ \d+ {3}", out, re.MULTILINE)
    assert {path.name for path in cli.folder.iterdir()} == {"tmp"} and not list(
        (cli.folder / "tmp").iterdir()
    )


def test_what_an_engine_has_in_fewer_bits_than_its_graph(trained_bf16: Path, cli: CommandLine) -> None:
    """The stem's convolutions, for which ONNX has no bfloat16 form, are named; a product's kernel says what it multiplies."""
    out = " ".join(cli("inspect", trained_bf16, "--kernels").out.split())
    assert "4 products that the graph has in fp32 it multiplies in bfloat16 (stem/conv1, stem/conv2," in out
    assert "computes in" in out and out.count("product │ bfloat16") + out.count("product bfloat16") > 20


def test_kernels_that_are_not_known(
    nano_fp32: Path, nano_rtx: Path, copy_of: Callable[[Path], Path], cli: CommandLine
) -> None:
    assert cli.refuses("inspect", nano_fp32, "--kernels") == (
        f"{nano_fp32} has no list of its engine's kernels: ONNX Runtime does not tell them; pass "
        f"{nano_fp32}/model.onnx, and TensorRT-RTX tells those of its own"
    )
    only = "--target is for the kernels of an ONNX file; "
    words = ("inspect", nano_rtx, "--kernels", "--target", "sm89")
    assert cli.refuses(*words) == f"{only}leave it out, or pass {nano_rtx}/model.onnx"
    words = ("inspect", nano_rtx / "model.onnx", "--target", "sm89")
    assert cli.refuses(*words) == f"{only}pass --kernels with it"
    assert "unknown compute capability 'sm1'" in cli.refuses(
        "inspect", nano_rtx / "model.onnx", "--kernels", "--target", "sm1"
    )
    lists = cli.refuses("inspect", nano_rtx / "model.onnx", "--kernels", "--target", "sm90")
    assert lists.endswith("; sit-deploy build --engine tensorrt builds for it, on such a GPU")
    older = copy_of(nano_rtx)
    (older / "kernels.json").unlink()
    seal_again(older)
    assert (
        "it was built by an older version, or the builder's log had a form that is not known; build it again"
        in (cli.refuses("inspect", older, "--kernels"))
    )


def test_an_estimate(nano_rtx: Path, cli: CommandLine) -> None:
    """Of every product of the graph, and called what it is."""
    words = ("inspect", nano_rtx, "--kernels", "--estimate")
    found = cli(*words, "--json").json()["estimate"]
    assert found["assumptions"].startswith("estimated by roofline, not measured: ")
    assert [one["gpu"] for one in found["gpus"]] == list(GPUS)
    assert all(one["untold"] == 0 and one["ms"] > one["products_ms"] > 0 for one in found["gpus"])
    out = cli(*words).out
    assert (
        "roofline ms" in out
        and "Batch 1, estimated by roofline, not measured: " in out
        and "left out" not in out
    )
    (one,) = cli(*words, "--gpu", "l4", "--json").json()["estimate"]["gpus"]
    assert one["gpu"] == "l4" and len(one["kernel_us"]) == len(cli(*words, "--json").json()["kernel_list"])
    assert "est. µs" in cli(*words, "--gpu", "L4").out and "est. µs" not in out


@pytest.mark.slow
def test_an_estimate_of_an_open_batch(trained: Trained, nano_fp32: Path, cli: CommandLine) -> None:
    """It is fixed: twice the batch, twice the operations."""
    path = trained.bundle / "model.onnx"
    for target in (trained.bundle, path):
        told = (
            f"{target} takes batches of any size, and an estimate is of one; pass {path} with --batch-size N"
        )
        assert cli.refuses("inspect", target, "--kernels", "--estimate") == told
    words = ("--kernels", "--target", "sm89", "--estimate", "--gpu", "l4", "--json")
    small, large = (cli("inspect", path, *words, "--batch-size", n).json() for n in (32, 64))
    (a,), (b,) = (found["estimate"]["gpus"] for found in (small, large))
    assert a["untold"] == b["untold"] == 0 and 1.8 < b["products_ms"] / a["products_ms"] < 2.2
    assert small["summary"]["macs"] * 2 == large["summary"]["macs"] and not small["findings"]
    assert "this one's is fixed; leave it out" in cli.refuses(
        "inspect", nano_fp32 / "model.onnx", "--batch-size", 4
    )
    assert "--batch-size is for the kernels of an ONNX file" in cli.refuses(
        "inspect", nano_fp32, "--batch-size", 4
    )


def kernels_of(bundle: Path, **changed: object) -> Path:
    """Write a bundle's kernels anew: the first product with fields that are changed."""
    content = json.loads((bundle / "kernels.json").read_text())
    row = next(row for row in content["kernels"] if row["role"] == "product")
    row.update(changed)
    (bundle / "kernels.json").write_text(json.dumps(content))
    seal_again(bundle)
    return bundle


def test_estimates_that_cannot_be(nano_rtx: Path, copy_of: Callable[..., Path], cli: CommandLine) -> None:
    words = ("inspect", nano_rtx)
    assert cli.refuses(*words, "--estimate") == "--estimate is of the kernels; pass --kernels with it"
    refused = cli.refuses(*words, "--kernels", "--gpu", "l4")
    assert refused == "--gpu is for an estimate; pass --kernels --estimate with it"
    words = (*words, "--kernels", "--estimate")
    assert cli.refuses(*words, "--gpu", "tpu") == (
        "the rates of GPU 'tpu' are not known; choose from a100, a100-40gb, h100, l4, rtx4090, rtx5090"
    )
    low = kernels_of(copy_of(nano_rtx, "low"), reads=["float8_e4m3fn[1,8]"] * 2)
    words = ("inspect", low, "--kernels", "--estimate")
    assert cli.refuses(*words, "--gpu", "a100") == (
        "A100 80GB SXM (sm80) has no FP8; pass --gpu h100 or l4 or rtx4090 or rtx5090"
    )
    assert re.search(r"^ A100 80GB SXM +no FP8 *$", cli(*words).out, re.MULTILINE)
    assert cli(*words, "--json").json()["estimate"]["gpus"][0] == {"gpu": "a100", "lacks": "FP8"}
    for number, (reads, told) in enumerate(
        (
            (
                ["float16[-1,8]"] * 2,
                "are open (float16[-1,8]); build with a fixed batch",
            ),
            (["?[1,8]"] * 2, "are not known (?[1,8]); build it again"),
            (["int4x[1,8]"] * 2, "no GPU whose rates are known multiplies int4x"),
            (["nothing"], "'nothing' is no tensor; build it again"),
        )
    ):
        odd = kernels_of(copy_of(nano_rtx, f"odd-{number}"), reads=reads)
        assert told in cli.refuses("inspect", odd, "--kernels", "--estimate", "--gpu", "l4")


@pytest.mark.slow
def test_names_that_a_log_cannot_tell_apart(tmp_path: Path, cli: CommandLine) -> None:
    """Brackets, line breaks, none, the same twice, and one that looks like a line of the log."""
    forged = (
        "a\nName: x, LayerType: gemm, Inputs: [ { Name: x, Dimensions: [1], Datatype: Int8 }], Outputs: []"
    )
    model = onnx.parser.parse_model(
        """<ir_version: 9, opset_import: ["": 20]> g (float16[1,3,197,64] q, float16[1,3,64,197] k, float16[1,3,197,64] v) => (float16[1,3,197,64] y)
        { a = Relu (q) b = Relu (k) c = Relu (v) s = MatMul (a, b) p = Softmax <axis = -1> (s) m = MatMul (p, c) y = Relu (m) }"""
    )
    odd = (
        ["a[0]", "soft[0]max", "]", "[/red]"],
        [""] * 4,
        ["same"] * 4,
        [forged, "self_mha/q", "b\u2028c", "d"],
    )
    counts = []
    for names in odd:
        for node, name in zip(model.graph.node[3:], names, strict=True):
            node.name = name
        onnx.save(model, tmp_path / "names.onnx")
        before = (tmp_path / "names.onnx").read_bytes()
        words = ("inspect", "names.onnx", "--kernels", "--target", "sm89", "--json")
        counts.append(cli(*words, status=None).json()["census"])
        assert (tmp_path / "names.onnx").read_bytes() == before
    assert counts == counts[:1] * len(odd) and counts[0]["attentions"] == 1


@pytest.mark.parametrize(
    "content",
    [
        "",
        "[1]",
        '{"schema": 2, "kernels": []}',
        '{"schema": 1, "kernels": [{"role": 3}]}',
        '{"schema": 1, "kernels": []}',
    ],
)
def test_a_list_of_kernels_that_is_none(
    content: str, nano_rtx: Path, copy_of: Callable[[Path], Path], cli: CommandLine
) -> None:
    """Sealed again, so that its hash is right."""
    bundle = copy_of(nano_rtx)
    (bundle / "kernels.json").write_text(content)
    seal_again(bundle)
    message = cli.refuses("inspect", bundle, "--kernels")
    assert "kernels.json" in message and message.endswith("; build the bundle again")


def _hostile(change: Callable[[onnx.ModelProto], object], path: Path) -> Path:
    """Write a product of a dequantized weight, changed."""
    model = onnx.parser.parse_model(
        """<ir_version: 9, opset_import: ["": 20]> g (float[1,8] x) => (float[1,8] y)
        <int8[8,8] w = {1}, float s = {0.5}, int8 z = {0}>
        { q = QuantizeLinear (x, s, z) d = DequantizeLinear (q, s, z) v = DequantizeLinear (w, s, z) y = MatMul (d, v) }"""
    )
    model.graph.initializer[0].ClearField("int32_data")
    model.graph.initializer[0].raw_data = bytes(64)
    change(model)
    path.write_bytes(model.SerializeToString())
    return path


@pytest.mark.parametrize(
    "change",
    [
        lambda m: m.graph.node[1].ClearField("input"),
        lambda m: m.graph.node[3].ClearField("input"),
        lambda m: m.graph.node[0].ClearField("output"),
        lambda m: m.graph.initializer[0].dims.append(3),
        lambda m: setattr(m.graph.initializer[0], "data_type", 999),
        lambda m: setattr(m.graph.initializer[1], "raw_data", b"123"),
        lambda m: m.graph.initializer[1].dims.append(2**40),
        lambda m: setattr(m.graph.input[0].type.tensor_type, "elem_type", 999),
        lambda m: setattr(m.opset_import[0], "version", 2**40),
        lambda m: setattr(m.graph.node[3], "op_type", ""),
    ],
)
def test_a_graph_that_cannot_be_is_said_to_be_none(
    change: Callable[[onnx.ModelProto], object], cli: CommandLine
) -> None:
    """Nodes without operands, weights of another length, types that are none: one line, and nothing is built of it."""
    path = _hostile(change, cli.folder / "hostile.onnx")
    result = cli("inspect", path, status=1)
    assert [line.startswith(f"Error: {path} is not deployable: ") for line in result.complaints] == [True]
    assert "ONNX's check fails" in result.out
    message = cli.refuses("inspect", path, "--kernels", "--target", "sm89")
    assert "ONNX's check fails" in message or "none; export it again" in message


def test_weights_that_are_gone(cli: CommandLine) -> None:
    path = _hostile(lambda _: None, cli.folder / "whole.onnx")
    onnx.save(onnx.load(path), path, save_as_external_data=True, location="w.data", size_threshold=0)
    (cli.folder / "w.data").unlink()
    for words in ((), ("--kernels",)):
        assert f"{path} is not a readable ONNX model" in cli.refuses("inspect", path, *words)

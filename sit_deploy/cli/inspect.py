"""The command `sit-deploy inspect`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from sit_deploy import limits
from sit_deploy.cli.common import (
    Whole,
    console,
    emit_json,
    examples,
    file_size,
    json_option,
    literal,
    path_type,
    progress,
    quiet_option,
    say,
    table,
)
from sit_deploy.errors import GateError, InputError
from sit_deploy.report.kernels_text import (
    census_text,
    eight_bit_products,
    kernels_note,
    lowered_note,
    raised_note,
    told_by,
)
from sit_deploy.report.slimming_view import slimming_words
from sit_deploy.report.tuning_view import tuning_sentence
from sit_deploy.report.view import preprocessing_words

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    import onnx

    from engines.tensorrt.roofline import Estimate
    from sit_deploy.bundle import Bundle
    from sit_deploy.pipeline.kernels import KernelRow
    from sit_deploy.report.build_types import BuildReport

_OPEN_BATCH = (1, 1, 8)  # of the engine whose kernels are listed, for a graph that takes any
_REPORTED = ("group", "reason", "sqnr_db", "noise", "alone_db", "alone_drop", "macs")


@click.command(
    "inspect",
    epilog=examples(
        "sit-deploy inspect sit_s-fp16",
        "sit-deploy inspect model.onnx --opset 17 --json",
        "sit-deploy inspect model.onnx --kernels --target sm89",
        "sit-deploy inspect sit_s-fp16 --kernels --estimate --gpu l4",
    ),
)
@click.argument("target", type=path_type)
@click.option("--opset", type=Whole(100, 1), metavar="N", help="Newest operator set that may be used.")
@click.option(
    "--kernels",
    "list_kernels",
    is_flag=True,
    help="List the kernels of its TensorRT-RTX engine; one is built of an ONNX file, with no GPU.",
)
@click.option("--target", "gpu", metavar="smXY", help="GPU whose kernels are listed of an ONNX file.")
@click.option(
    "--batch-size", type=Whole(limits.BATCH, 1), metavar="N", help="Fix the open batch of an ONNX file."
)
@click.option(
    "--estimate",
    "estimated",
    is_flag=True,
    help="Estimate by roofline how long they take on GPUs; no measurement.",
)
@click.option(
    "--gpu",
    "rates",
    metavar="NAME",
    help="Estimate for one GPU, and each kernel: a100, a100-40gb, h100, l4, rtx4090, rtx5090.",
)
@quiet_option
@json_option
def command(
    target: Path,
    opset: int | None,
    list_kernels: bool,
    gpu: str | None,
    batch_size: int | None,
    estimated: bool,
    rates: str | None,
    as_json: bool,
) -> None:
    """Lint and summarise an ONNX file or a bundle's graph: is it static, standard and fully typed?

    Exit status 1 if the lint finds something.
    """
    from sit_deploy.bundle import load_bundle
    from sit_deploy.graph.inspect import summarize
    from sit_deploy.graph.lint import lint, unsound
    from sit_deploy.pipeline.estimate import ASSUMPTIONS, estimate_kernels, known_gpu
    from sit_deploy.pipeline.kernels import fix_batch
    from sit_deploy.report.read import read_build_report

    bundle = load_bundle(target) if target.is_dir() else None
    if bundle and (given := "--target" if gpu else "--batch-size" if batch_size else None):
        raise InputError(
            f"{given} is for the kernels of an ONNX file; leave it out, or pass {target}/model.onnx"
        )
    if gpu is not None and not list_kernels:
        raise InputError("--target is for the kernels of an ONNX file; pass --kernels with it")
    if estimated and not list_kernels:
        raise InputError("--estimate is of the kernels; pass --kernels with it")
    if rates is not None and not estimated:
        raise InputError("--gpu is for an estimate; pass --kernels --estimate with it")
    rates = rates and known_gpu(rates)
    graph = _read(bundle.model_path if bundle else target)
    report = read_build_report(bundle) if bundle else None
    tuning = report.tuned if report else None
    unreadable = unsound(graph)
    if unreadable and (list_kernels or batch_size is not None):
        raise InputError(f"{target}: {unreadable}")
    if batch_size is not None:
        fix_batch(graph, batch_size)
    layers = [] if unreadable else quantized_layers(graph, _reported(report))
    dims = [d for value in graph.graph.input[:1] for d in value.type.tensor_type.shape.dim[:1]]
    open_batch = any(not d.HasField("dim_value") for d in dims)
    if estimated and open_batch:
        path = bundle.model_path if bundle else target
        raise InputError(
            f"{target} takes batches of any size, and an estimate is of one; pass {path} with --batch-size N"
        )
    findings = lint(graph, max_opset=opset, dynamic_batch=open_batch)
    summary = (
        None if any(f.rule in ("invalid", "unknown-shape") for f in findings) else summarize(graph).to_dict()
    )
    rows, details = (), bundle.manifest.engine.details if bundle else {}
    if list_kernels:
        rows, details = _kernels(bundle, target, graph, gpu, batch_size)
    estimates = estimate_kernels(rows, graph, rates) if estimated else {}
    census = census_text(details)
    products = eight_bit_products(details)
    low = next((row["precision"] for row in layers if row["precision"] != "high"), "8 bits")
    kernels = kernels_note(products, low, told_by(details)) if products else None
    if as_json:
        rows_of_findings = [{"rule": f.rule, "where": f.where, "message": f.message} for f in findings]
        prepared = (
            {k: v for k, v in bundle.manifest.to_dict().items() if k.startswith("preprocessing")}
            if bundle
            else {}
        )
        emit_json(
            {
                "target": str(target),
                "findings": rows_of_findings,
                "summary": summary,
                "layers": layers,
                "kernels": kernels,
                **({"tuning": tuning_sentence(tuning)} if tuning else {}),
                "census": details.get("kernels"),
                **({"kernel_list": [row.to_dict() for row in rows]} if list_kernels else {}),
                **({"estimate": _json(estimates, ASSUMPTIONS)} if estimated else {}),
                **prepared,
                **_passed(bundle),
                **({"slimming": bundle.manifest.model.slimming} if bundle else {}),
            }
        )
    else:
        screen = console()
        if summary:
            _show(summary)
        if bundle:
            say(
                screen,
                f"preprocessing: {literal(preprocessing_words(bundle.manifest.preprocessing, bundle.manifest.preprocessing_source))}",
            )
            say(screen, f"patch tokens: {literal(slimming_words(bundle.manifest.model))}")
            for passed in _passed(bundle).values():
                say(screen, f"As PyTorch writes it: {literal(passed)}")
        if any(row["precision"] != "high" for row in layers):
            _show_layers(layers)
        if tuning:
            say(screen, f"Plan: {literal(tuning_sentence(tuning))}")
        if rows:
            _show_kernels(rows, estimates.get(rates) if rates else None)
        if estimates:
            _show_estimates(estimates, dims[0].dim_value if dims else 1, ASSUMPTIONS)
        if census:
            say(screen, f"Engine: {literal(census)}")
        if kernels and products:
            head = "Engine:" if products.all_kept else "[bold yellow]Engine:[/]"
            say(screen, f"{head} {literal(kernels)}")
        if raised := raised_note(details):
            say(screen, f"[bold yellow]Engine:[/] {literal(raised)}")
        if lowered := lowered_note(details):
            say(screen, f"Engine: {literal(lowered)}")
        for finding in findings:
            say(screen, f"[red]{finding.rule}[/] {literal(finding.where)}: {literal(finding.message)}")
        if not findings:
            say(
                screen,
                "[green]✓[/] lint: standard operators, static shapes, one type a tensor, finite weights, nothing unused",
            )
    if findings:
        plural = "problem" if len(findings) == 1 else "problems"
        raise GateError(f"{target} is not deployable: {len(findings)} {plural}")


def _passed(bundle: Bundle | None) -> dict[str, str]:
    """Return which parts of a build were not rewritten, nothing where all were."""
    config = bundle.manifest.model.config if bundle else {}
    return {"passed_through": str(config["passed_through"])} if config.get("passed_through") else {}


def _kernels(
    bundle: Bundle | None, path: Path, graph: onnx.ModelProto, gpu: str | None, batch: int | None
) -> tuple[tuple[KernelRow, ...], dict[str, Any]]:
    """Return the kernels of a bundle's engine, or of one that is built of an ONNX file, and the engine's details."""
    from engines import BuildOptions
    from engines.graph_file import input_specs
    from sit_deploy.pipeline.kernels import kernels_of_bundle, kernels_of_graph

    if bundle:
        return kernels_of_bundle(bundle)
    open_batch = any(spec.shape and spec.shape[0] is None for spec in input_specs(graph))
    options = BuildOptions(
        dynamic_batch=_OPEN_BATCH if open_batch else None, compute_capabilities=(gpu,) if gpu else ()
    )
    with progress() as report:
        return kernels_of_graph(path, options, report, batch)


def _json(estimates: Mapping[str, Estimate | str], assumptions: str) -> dict[str, Any]:
    """Return estimates as JSON values; a GPU that lacks a type has `lacks` alone."""
    gpus = [
        {"gpu": gpu, "lacks": one} if isinstance(one, str) else one.to_dict()
        for gpu, one in estimates.items()
    ]
    return {"assumptions": assumptions, "gpus": gpus}


def _show_estimates(estimates: Mapping[str, Estimate | str], batch: int, assumptions: str) -> None:
    from engines.tensorrt.roofline import GPUS

    right = ("roofline ms", "products", "attention", "rest", "launches")
    listing = table("GPU", *right, right=right)
    for gpu, one in estimates.items():
        if isinstance(one, str):
            listing.add_row(GPUS[gpu].title, literal(f"no {one}"), *[""] * (len(right) - 1))
            continue
        parts = (one.products_ms, one.attention_ms, one.other_ms, one.launches_ms)
        listing.add_row(GPUS[gpu].title, f"{one.ms:.3f}", *(f"{ms:.3f}" for ms in parts))
    screen = console()
    screen.print(listing)
    untold = max((one.untold for one in estimates.values() if not isinstance(one, str)), default=0.0)
    left_out = (
        f"; {untold:.1%} of the multiply-accumulates are left out, in no kernel that tells" if untold else ""
    )
    say(screen, f"Batch {batch}, {literal(assumptions)}{left_out}")


def _show_kernels(rows: Sequence[KernelRow], one: Estimate | str | None) -> None:
    times = one.kernel_us if one is not None and not isinstance(one, str) else ()
    told = (
        ["computes in"] if any(row.factors for row in rows) else []
    )  # of products, where the engine says so
    columns = ("kernel", *(["est. µs"] if times else []), *told, "reads", "writes", "of the graph")
    listing = table(*columns, fold=("reads", "writes", "of the graph"), right=("est. µs",))
    for number, row in enumerate(rows, 1):
        role = "" if row.role == "other" else f" {row.role.value}"
        cells = (
            ", ".join(names[:4]) + (", ..." if len(names) > 4 else "")
            for names in (row.reads, row.writes, row.nodes)
        )
        took = [f"{times[number - 1]:.1f}"] if times else []
        multiplied = [literal(row.factors)] if told else []
        listing.add_row(literal(f"{number}{role}"), *took, *multiplied, *map(literal, cells))
    console().print(listing)


def _reported(report: BuildReport | None) -> list[dict[str, Any]]:
    """Return what a bundle's report says of its layers, nothing for one without 8 bits."""
    return ((report.to_dict()["quantization"] or {}) if report else {}).get("layers", [])


def quantized_layers(graph: onnx.ModelProto, reported: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return the layers of a graph: what they run in and their scales, why, and with what error.

    The first two are the graph's own, the others those of the report.
    """
    from calibration.read_qdq import read_layers

    known = {row["layer"]: row for row in reported}
    rows = []
    for row in read_layers(graph):
        recorded = known.get(row["layer"], {})
        rows.append({**{k: recorded.get(k) for k in _REPORTED if k in recorded}, **row})
    return rows


def _show_layers(layers: list[dict[str, Any]]) -> None:
    right = (
        "scale",
        "shift",
        "SQNR dB",
        *(("alone dB",) if any("alone_db" in row for row in layers) else ()),
    )
    listing = table("layer", "runs in", *right, "why", right=right)
    for row in layers:
        low = row["precision"] != "high"
        figures = ["" if row["scale"] is None else f"{row['scale']:.3g}", str(row["shift"] or "")]
        figures += [
            f"{row[key]:.1f}" if row.get(key) is not None else ""
            for key in ("sqnr_db", "alone_db")[: len(right) - 2]
        ]
        listing.add_row(
            literal(row["layer"]),
            row["precision"] if low else "high",
            *figures,
            literal(row.get("reason", "")),
        )
    console().print(listing)


def _read(path: Path) -> onnx.ModelProto:
    """Parse an ONNX file.

    Raises:
        engines.EngineBuildError: missing, unreadable or not ONNX.
    """
    from engines.graph_file import read_model

    return read_model(path, weights=True)


def _show(summary: dict) -> None:
    screen = console()
    for kind in ("inputs", "outputs"):
        for tensor in summary[kind]:
            shape = ", ".join("N" if d is None else str(d) for d in tensor["shape"])
            say(screen, f"{kind[:-1]:6} {literal(tensor['name'])}  {tensor['dtype']} ({shape})")
    share = summary["low_precision_fraction"]
    say(
        screen,
        f"opset {summary['opset']}, {summary['nodes']} nodes, {summary['parameters'] / 1e6:.2f} M parameters "
        f"({file_size(summary['parameter_bytes'])}), {summary['macs'] / 1e9:.2f} GMACs, {share:.1%} of them in 16 bits or fewer",
    )
    say(screen, "operators: " + ", ".join(f"{name} {count}" for name, count in summary["operators"].items()))
    columns = ("nodes", "GMACs")
    listing = table("block", *columns, "types", right=columns)
    for block in summary["blocks"]:
        kinds = ", ".join(f"{k} {v / 1e6:.0f}M" for k, v in block["macs_by_dtype"].items())
        listing.add_row(literal(block["name"]), str(block["nodes"]), f"{block['macs'] / 1e9:.3f}", kinds)
    if summary["blocks"]:
        screen.print(listing)

"""An estimate by roofline of how long the kernels of an engine take, for GPUs that are not here."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import engines
from engines.kernels import Kernel, Operand
from engines.tensorrt.roofline import GPUS, LAUNCH_SECONDS, Estimate, estimate, lacks
from sit_deploy.errors import InputError
from sit_deploy.pipeline.kernels import KernelRow, readable_names

if TYPE_CHECKING:
    import onnx

ASSUMPTIONS = (
    "estimated by roofline, not measured: each kernel takes the longer of its operations at the dense peak and its bytes at the full bandwidth of "
    f"NVIDIA's data sheet, and {LAUNCH_SECONDS * 1e6:g} us to launch; published engines of ViT-B took 1.3 to 6 times as long, longest at batch 1 (docs/gpu.md)"
)


def known_gpu(name: str) -> str:
    """Return the name in `GPUS` of a GPU, however it is spelt ("RTX 4090").

    Raises:
        InputError: its rates are not known; names those that are.
    """
    known = name.lower().replace(" ", "")
    if known not in GPUS:
        raise InputError(f"the rates of GPU '{name}' are not known; choose from {', '.join(GPUS)}")
    return known


def estimate_kernels(
    rows: Sequence[KernelRow], graph: onnx.ModelProto, gpu: str | None = None
) -> dict[str, Estimate | str]:
    """Estimate a run of an engine on a GPU, or on each that is known.

    Args:
        rows: the engine's kernels.
        graph: that it was built from, with a fixed batch.
        gpu: one of `known_gpu`; None for all of them.

    Returns:
        By GPU, the estimate, or the type that it lacks.

    Raises:
        InputError: the one GPU is not known or lacks a type, or kernels do not tell their shapes.
    """
    from sit_deploy.graph.inspect import node_macs

    gpu = gpu and known_gpu(gpu)
    by_output = node_macs(graph)
    macs = {
        name: by_output[node.output[0]]
        for node, name in zip(graph.graph.node, readable_names(graph), strict=True)
        if node.output and node.output[0] in by_output
    }
    try:
        kernels = [_kernel(row) for row in rows]
    except ValueError as error:
        raise InputError(f"the list of kernels cannot be estimated: {error}; build it again") from error
    found: dict[str, Estimate | str] = {}
    for name in (gpu,) if gpu else GPUS:
        if missing := lacks(kernels, name):
            if gpu:
                able = [other for other in GPUS if not lacks(kernels, other)]
                if not able:
                    raise InputError(f"no GPU whose rates are known multiplies {missing}")
                raise InputError(
                    f"{GPUS[name].title} ({GPUS[name].capability}) has no {missing}; pass --gpu {' or '.join(able)}"
                )
            found[name] = missing
            continue
        try:
            found[name] = estimate(kernels, macs, name)
        except engines.EngineInputError as error:
            raise InputError(f"no estimate: {error}") from error
    return found


def _kernel(row: KernelRow) -> Kernel:
    reads, writes = (tuple(map(Operand.of, group)) for group in (row.reads, row.writes))
    return Kernel(row.name, row.kind, reads, writes, row.nodes, row.role, row.factors)

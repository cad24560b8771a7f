"""The kernels of an engine, where its builder names them: kept beside the engine, and those of any ONNX graph."""

from __future__ import annotations

import json
import re
import tempfile
from collections import Counter
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import engines
from engines.graph_file import input_specs, read_model
from engines.kernels import Role
from sit_deploy.bundle import Bundle
from sit_deploy.errors import InputError
from sit_deploy.schema import check, decode

if TYPE_CHECKING:
    import onnx

    from engines import BuildOptions, EngineInfo, Progress

KERNELS = "kernels.json"
KIND = "tensorrt-rtx"  # whose builder names them with no GPU
_SCHEMA = 1
# a node's, in a log that puts names between brackets and commas
_PLAIN_NAME = re.compile(r"[\w./:+-]{1,500}")


@dataclass(frozen=True)
class KernelRow:
    """A kernel, as `engines.kernels.Kernel.to_dict` gives it.

    Attributes:
        role: what it is for.
        kind, name: the builder's.
        reads, writes: tensors as type[shape], inputs before constants.
        nodes: of the ONNX graph, that it has a part in.
        factors: the type that it multiplies, where only the name of its tactic tells.
    """

    role: Role
    kind: str
    name: str
    reads: tuple[str, ...]
    writes: tuple[str, ...]
    nodes: tuple[str, ...]
    factors: str = ""

    def to_dict(self) -> dict[str, Any]:
        """Return it as JSON values."""
        return {key: value for key, value in asdict(self).items() if key != "factors" or value}


@dataclass(frozen=True)
class _File:
    schema: int
    kernels: tuple[KernelRow, ...]


def write_kernels(info: EngineInfo, path: Path) -> None:
    """Write the kernels of an engine that was built; nothing where its builder does not name them."""
    if info.kernels:
        rows = ",\n".join(json.dumps(kernel) for kernel in info.kernels)
        path.write_text(f'{{"schema": {_SCHEMA}, "kernels": [\n{rows}\n]}}\n', encoding="utf-8")


def kernels_of_bundle(bundle: Bundle) -> tuple[tuple[KernelRow, ...], dict[str, Any]]:
    """Return the kernels of a bundle's engine, in the order in which they run, and the engine's details.

    A TensorRT engine that was built without being asked is asked now, where it runs here.

    Raises:
        InputError: it has no list of them, or one that cannot be read.
        EngineError: the engine does not run.
    """
    path, details = bundle.path / KERNELS, bundle.manifest.engine.details
    if KERNELS not in bundle.manifest.files:
        engine = engines.get(bundle.manifest.engine.kind)
        if engine.kind == KIND or not engine.reports_types or not engine.probe().can_run:
            raise InputError(f"{bundle.path} has no list of its engine's kernels: {_why_none(bundle)}")
        images = bundle.golden()[0]
        feeds = {
            input_specs(read_model(bundle.model_path))[0].name: images[:1].repeat(bundle.batch_size, axis=0)
        }
        rows, details = engine.inspect_kernels(
            bundle.engine_path, bundle.model_path, feeds, origin=bundle.origin
        )
        return check(rows, tuple[KernelRow, ...], bundle.path, "report it"), details
    again = "build the bundle again"
    content = decode(path, _File, again)
    if content.schema != _SCHEMA:
        raise InputError(f"{path} has schema {content.schema}, which this version does not know; {again}")
    census = details.get("kernels")
    if not isinstance(census, dict) or census.get("kernels") != len(content.kernels):
        raise InputError(f"{path} is not the list of the kernels that the manifest counts; {again}")
    return content.kernels, details


def _why_none(bundle: Bundle) -> str:
    engine = bundle.manifest.engine
    if engines.get(engine.kind).reports_types and engine.kind != KIND:
        return f"its inspector tells them on a GPU that runs it; pass {bundle.path}/model.onnx for those of TensorRT-RTX"
    if engines.get(engine.kind).tells_kernels and engine.kind != KIND:
        return "it was built by an older version; build it again"
    if engine.kind != KIND:
        return f"{engines.get(engine.kind).title} does not tell them; pass {bundle.path}/model.onnx, and TensorRT-RTX tells those of its own"
    if engine.details.get("profiling") == "detailed":
        return "it was built by an older version, or the builder's log had a form that is not known; build it again"
    return "its builder did not tell them; build it again with --profiling detailed"


def kernels_of_graph(
    path: Path, options: BuildOptions, progress: Progress | None = None, batch: int | None = None
) -> tuple[tuple[KernelRow, ...], dict[str, Any]]:
    """Build a graph with TensorRT-RTX, throw the engine away, and return its kernels and details.

    Args:
        path: an ONNX file, of whatever origin.
        options: of the build: the GPU and the batch sizes.
        progress: called with a step, how much of it is done, and of how much.
        batch: that an open batch is fixed to.

    Raises:
        EngineError: TensorRT-RTX is not there or does not take the graph.
        InputError: its builder does not tell its kernels.
    """
    with tempfile.TemporaryDirectory(prefix="sit-deploy-") as folder:
        source = _readable(path, Path(folder), batch)
        info = engines.get(KIND).build(source, Path(folder) / "engine.plan", options, progress)
    if not info.kernels:
        raise InputError(
            f"TensorRT-RTX {info.version} built {path} and did not tell its kernels in a form that is known"
        )
    return check(info.kernels, tuple[KernelRow, ...], path, "report it"), info.details


def _readable(path: Path, folder: Path, batch: int | None) -> Path:
    """Return the file, or a copy: whose batch is fixed, or whose nodes have names that can be told apart in a log, where its own cannot be."""
    import onnx

    model = read_model(path)
    if batch is None and readable_names(model) == [node.name for node in model.graph.node]:
        return path
    model = read_model(path, weights=True)
    for node, name in zip(model.graph.node, readable_names(model), strict=True):
        node.name = name
    if batch is not None:
        fix_batch(model, batch)
    copy = folder / "model.onnx"
    onnx.save(model, copy, save_as_external_data=True, location="model.data")
    return copy


def readable_names(model: onnx.ModelProto) -> list[str]:
    """Return the names by which a list of kernels calls the nodes of a graph: their own, where a log can tell those apart."""
    counts = Counter(node.name for node in model.graph.node)
    taken, names = set(counts), []
    for number, node in enumerate(model.graph.node):
        name = node.name
        if counts[name] > 1 or not _PLAIN_NAME.fullmatch(name):
            name = f"{node.op_type}_{number}"
            while name in taken:
                name += "_"
            taken.add(name)
        names.append(name)
    return names


def fix_batch(model: onnx.ModelProto, batch: int) -> None:
    """Give the first dimension of a graph's inputs and outputs a size, where it is open.

    Raises:
        InputError: none is open.
    """
    values = (*model.graph.input, *model.graph.output)
    dims = [value.type.tensor_type.shape.dim[0] for value in values if value.type.tensor_type.shape.dim]
    opened = [dim for dim in dims if not dim.HasField("dim_value")]
    if not opened:
        raise InputError(
            "--batch-size is for a graph whose batch is open, and this one's is fixed; leave it out"
        )
    for dim in opened:
        dim.dim_value = batch
    del model.graph.value_info[:]  # what was inferred of the open one

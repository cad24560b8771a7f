"""Writes down the public names of a TensorRT release: `python record.py tensorrt > tensorrt-X.json`.

No GPU and no TensorRT libraries are needed. The bindings wheels (tensorrt-cu12-bindings) are a single extension that takes
about ten C functions from libnvinfer, libnvinfer_plugin and libnvonnxparser, all of them called only when something is
made. So a shared object of that name that defines those functions (`nm -D --undefined-only` lists them), on
LD_LIBRARY_PATH, lets the real bindings be imported: `python record.py tensorrt_bindings`. TensorRT 8.6.0's wheel for
Python 3.10 carries its libraries, and stand-ins for cuBLAS and cuDNN do.
"""

from __future__ import annotations

import importlib
import json
import re
import sys

# what code that builds and runs engines can use
CLASSES = [
    "Builder",
    "IBuilderConfig",
    "INetworkDefinition",
    "ILayer",
    "ITensor",
    "IOptimizationProfile",
    "OnnxParser",
    "OnnxParserRefitter",
    "Refitter",
    "Runtime",
    "ICudaEngine",
    "IExecutionContext",
    "IRuntimeConfig",
    "IRuntimeCache",
    "EngineInspector",
    "ITimingCache",
    "IProgressMonitor",
    "IProfiler",
    "ILogger",
    "IHostMemory",
    "BuilderFlag",
    "NetworkDefinitionCreationFlag",
    "HardwareCompatibilityLevel",
    "ProfilingVerbosity",
    "LayerInformationFormat",
    "DataType",
    "TensorIOMode",
    "MemoryPoolType",
    "EngineValidity",
    "EngineInvalidityDiagnostics",
    "CudaGraphStrategy",
    "DynamicShapesKernelSpecializationStrategy",
    "ExecutionContextAllocationStrategy",
    "ComputeCapability",
    "LayerType",
    "TacticSource",
    "EngineCapability",
]


def record(module: str) -> dict:
    """Return version and, for each class that the release has, its members' signatures and an enumeration's values."""
    trt = importlib.import_module(module)
    classes = {}
    for name in CLASSES:
        kind = getattr(trt, name, None)
        if kind is None:
            continue
        values = {key: int(value) for key, value in getattr(kind, "__members__", {}).items()}
        members = {}
        for member in sorted(set(dir(kind)) - set(values)):
            if member.startswith("_") or (member in ("name", "value") and values):
                continue
            found = getattr(kind, member)
            lines = (getattr(found, "__doc__", None) or "").splitlines() if callable(found) else []
            members[member] = [
                re.sub(r"[\w.]+\.(?=\w)", "", re.sub(r"^\d+\. ", "", line)).strip()
                for line in lines
                if re.match(rf"(\d+\. )?{member}\((?!\*args)", line)
            ]
        classes[name] = {"members": members, "values": values}
    return {"version": trt.__version__, "classes": classes}


def dump(found: dict) -> str:
    """Return JSON with a line for each member, so that two releases can be compared by `diff`."""
    lines = [f'{{"version": {json.dumps(found["version"])}, "classes": {{']
    kinds = list(found["classes"].items())
    for index, (name, kind) in enumerate(kinds):
        members = ",\n".join(f" {json.dumps(m)}: {json.dumps(s)}" for m, s in kind["members"].items())
        end = "}" if index == len(kinds) - 1 else "},"
        lines.append(
            f'{json.dumps(name)}: {{"values": {json.dumps(kind["values"])}, "members": {{\n{members}}}{end}'
        )
    return "\n".join(lines) + "}}\n"


if __name__ == "__main__":
    sys.stdout.write(dump(record(sys.argv[1])))

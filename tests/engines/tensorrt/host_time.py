"""How long Python takes for a call of `infer_device`, on the fake GPU: `python -m tests.engines.tensorrt.host_time`.

What the driver and PyTorch take is not in it: their part is a stand-in's. No test decides by it; what a call does, test_torch.py
counts.
"""

from __future__ import annotations

import itertools
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper

from tests.helpers.fake_tensorrt import make_plan
from tests.helpers.fake_torch import FakeTorch
from tests.helpers.trt_rig import make_rig

CALLS = 2000


def write_plan(path: Path) -> Path:
    """Write a plan of one product, for batches of 1 to 8."""
    ends = [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["batch", 8]) for name in "xy"]
    weight = numpy_helper.from_array(np.eye(8, dtype=np.float32), "w")
    graph = helper.make_graph(
        [helper.make_node("MatMul", ["x", "w"], ["y"])], "g", ends[:1], ends[1:], [weight]
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    onnx.checker.check_model(model)
    path.write_bytes(make_plan(model.SerializeToString(), batch=(1, 4, 8)))
    return path


def microseconds(call: Callable[[], object]) -> float:
    """The median of many calls."""
    times = []
    for _ in range(CALLS):
        started = time.perf_counter()
        call()
        times.append(time.perf_counter() - started)
    return 1e6 * statistics.median(times)


def without_the_driver(gpu: object) -> None:
    """Leave of the calls that a captured shape makes only that they are called."""
    nothing = (0,)
    for name in ("cuGraphLaunch", "cuEventRecord", "cuEventSynchronize", "cuMemcpyDtoDAsync"):
        setattr(gpu.graphs, name, lambda *_: nothing)


def main() -> None:
    """Print a line for each way to call."""
    with tempfile.TemporaryDirectory() as folder:
        plan = write_plan(Path(folder) / "engine.plan")
        for what, stays, given in (
            ("tensors that stay, out given", True, True),
            ("an input that stays, new outputs", True, False),
            ("an input that moves, new outputs", False, False),
        ):
            with pytest.MonkeyPatch.context() as monkeypatch:
                rig = make_rig(monkeypatch, Path(folder), "tensorrt-10.16.1")
                fake = FakeTorch(rig, monkeypatch)
                without_the_driver(rig.gpu)
                first, second, result = (fake.tensor(np.zeros((3, 8), np.float32)) for _ in range(3))
                turns = itertools.cycle([first, first if stays else second])
                out = {"y": result} if given else None
                with rig.engine.load(plan) as runner:
                    for _ in range(4):
                        runner.infer_device({"x": next(turns)}, out)
                    assert runner.captured == 1
                    monkeypatch.setattr(torch, "empty", lambda *_, made=result, **__: made)
                    took = microseconds(lambda r=runner, t=turns, o=out: r.infer_device({"x": next(t)}, o))
            print(f"{took:6.1f} µs  {what}")


if __name__ == "__main__":
    main()

"""Our use of the real cuda-bindings, which PyTorch brings along, over a stand-in for the driver's library: no GPU is needed."""

from __future__ import annotations

import importlib.util
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[3]
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        importlib.util.find_spec("cuda") is None or importlib.util.find_spec("cuda.bindings") is None,
        reason="cuda-bindings is not installed",
    ),
    pytest.mark.skipif(not shutil.which("gcc"), reason="needs gcc"),
]

# in a process of its own, whose loader finds the stand-in
CALLS = """
import ctypes, json, types
import cuda.bindings.driver as api
from engines.tensorrt import cuda

driver = ctypes.CDLL("libcuda.so.1")
def made(function, *arguments):
    status, *values = function(*arguments)
    assert int(status) == 0, (function, status)
    return values[0] if values else None

made(api.cuInit, 0)
context = made(api.cuDevicePrimaryCtxRetain, made(api.cuDeviceGet, 0))
made(api.cuCtxPushCurrent, context)
ours, theirs = (made(api.cuStreamCreate, 1) for _ in range(2))
stream = types.SimpleNamespace(handle=int(ours))
given, middle, result = (int(made(api.cuMemAlloc, 8)) for _ in range(3))
value = ctypes.c_uint64.from_address
value(given).value, value(middle).value, value(result).value = 7, 1, 1

with cuda.capture(api, stream) as captured:
    cuda.copy_on_device(api, result, middle, 8, int(ours))
fence = cuda.Fence(api)
fence.leave(int(ours))
seen = []
for handle in (int(theirs), 0, int(ours)):
    fence.enter(handle)
    value(given).value += 1
    cuda.copy_on_device(api, middle, given, 8, handle)
    captured[0].launch(handle)
    fence.leave(handle)
    fence.wait()
    seen.append(value(result).value)
# of two turns of which none is waited for, the second is done after the first
fence.enter(int(theirs))
cuda.copy_on_device(api, middle, given, 8, int(theirs))
fence.leave(int(theirs))
fence.enter(int(ours))
captured[0].launch(int(ours))
fence.leave(int(ours))
value(given).value, value(middle).value = 99, 0
made(api.cuStreamSynchronize, ours)
seen.append(value(result).value)
fence.close()
captured[0].close()
try:
    cuda.CudaGraph(types.SimpleNamespace(cuGraphLaunch=lambda *_: (api.CUresult.CUDA_ERROR_OUT_OF_MEMORY,),
                                         cuGraphExecDestroy=None), None).launch(0)
except cuda.GraphError as error:
    refused = str(error), error.out_of_memory
counts = (ctypes.c_long * 8)()
driver.stand_in_counts(counts)
print(json.dumps({"seen": seen, "refused": refused, "events": counts[3], "graphs": counts[4], "launches": counts[5]}))
"""


def test_graphs_fences_and_copies_on_the_real_bindings(tmp_path: Path):
    source = ROOT / "tests" / "helpers" / "stand_in_driver.c"
    command = ["gcc", "-shared", "-fPIC", "-Wl,-soname,libcuda.so.1", "-o", tmp_path / "libcuda.so.1", source]
    subprocess.run([*command, "-ldl"], check=True)
    environment = {
        **os.environ,
        "LD_LIBRARY_PATH": str(tmp_path),
        "PYTHONPATH": os.pathsep.join([str(ROOT), *sys.path]),
    }
    done = subprocess.run([sys.executable, "-c", CALLS], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == {
        "seen": [8, 9, 10, 99],
        "refused": ["CUDA_ERROR_OUT_OF_MEMORY", True],
        "events": 0,
        "graphs": 0,
        "launches": 4,
    }

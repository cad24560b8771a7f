"""Our use of the real PyCUDA and cuda-bindings, where they are installed: over a stand-in for the driver's library, so that no GPU is needed.

To have PyCUDA without a GPU: a CUDA toolkit's headers, any libcuda.so.1 to link against, and `pip install pycuda`.
"""

from __future__ import annotations

import importlib.util
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from tests.helpers.fake_tensorrt import make_plan

HERE = Path(__file__).parent
pytestmark = [
    pytest.mark.skipif(importlib.util.find_spec("pycuda") is None, reason="PyCUDA is not installed"),
    pytest.mark.skipif(not (shutil.which("gcc") and shutil.which("nm")), reason="needs gcc and nm"),
]


@pytest.fixture
def stand_in(tmp_path: Path) -> Path:
    """A folder with libcuda.so.1: the stand-in, and a function for everything else that this PyCUDA links against."""
    source = (HERE.parents[1] / "helpers" / "stand_in_driver.c").read_text()
    (extension,) = Path(importlib.util.find_spec("pycuda").origin).parent.glob("_driver*.so")
    symbols = subprocess.run(
        ["nm", "-D", "--undefined-only", extension], capture_output=True, text=True, check=True
    )
    wanted = set(re.findall(r" U (cu[A-Z]\w*)", symbols.stdout))
    missing = sorted(wanted - set(re.findall(r"^int (cu\w+)\(", source, re.M)))
    source += "".join(
        f'int {name}(void) {{ fputs("{name} is not stood in for\\n", stderr); abort(); }}\n'
        for name in missing
    )
    (tmp_path / "driver.c").write_text(source)
    command = "gcc -shared -fPIC -Wl,-soname,libcuda.so.1 -o libcuda.so.1 driver.c -ldl"
    subprocess.run(command.split(), cwd=tmp_path, check=True)
    return tmp_path


def test_the_runner_on_the_real_pycuda(make_mlp, tmp_path: Path, stand_in: Path):
    model = onnx.load(make_mlp(batch="batch"))
    del model.graph.node[1:]
    model.graph.node[0].output[0] = "y"
    plan = tmp_path / "engine.plan"
    plan.write_bytes(make_plan(model.SerializeToString(), batch=(1, 4, 8)))
    np.save(tmp_path / "weights.npy", numpy_helper.to_array(model.graph.initializer[0]))
    root = HERE.parents[2]
    done = subprocess.run(
        [sys.executable, HERE / "pycuda_on_stand_in.py", plan, tmp_path / "weights.npy"],
        env={
            **os.environ,
            "LD_LIBRARY_PATH": str(stand_in),
            "PYTHONPATH": os.pathsep.join([str(root), *sys.path]),
        },
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert "PyCUDA WARNING" not in done.stderr and "stood in" not in done.stderr
    result = json.loads(done.stdout)
    assert result["probe"].endswith("builds and runs here, on Stand-in")
    assert result["worst"] < 1e-5 and result["gpu_seconds"] > 0
    assert result["notes"] == []
    # of 3, 3, 3, 8, 1 images the second and third run are one launch each
    assert result["after"].pop("launches") == 200
    nothing = {"device": 0, "host": 0, "streams": 0, "events": 0, "graphs": 0, "retained": 1, "depth": 0}
    assert result["after"] == nothing
    # of 12 calls on tensors the first is none; what moves after six is captured anew, and launched in the same call
    assert result["on_device"].pop("worst") < 1e-5
    assert result["on_device"] == {"captured": 1, "notes": []}
    assert result["after_on_device"].pop("launches") == 200 + 11
    assert result["after_on_device"] == {**nothing, "depth": 1}
    assert result["closed_elsewhere"].pop("launches") == 200 + 11
    assert result["closed_elsewhere"] == {**nothing, "errors": []}
    assert result["too_much"] == (
        "out of memory on Stand-in: tensor x needs 1024.00 GiB and finds 1.0 MiB of 1.0 MiB free; take less"
    )

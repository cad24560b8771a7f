"""The recipe of CONTRIBUTING.md, followed to the letter: a folder and a line of registration make an engine."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import textwrap
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnxruntime as ort
import pytest

from engines import registry

pytest.importorskip("torch", reason="needs PyTorch for its models")
from tests.sit_deploy.conftest import nano_fp32

__all__ = ["nano_fp32"]  # the fixture
ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the project to which the recipe's engine was added."""
    folder = tmp_path_factory.mktemp("tree")
    for package in ("engines", "calibration", "sit_deploy", "training"):
        shutil.copytree(ROOT / package, folder / package, ignore=shutil.ignore_patterns("cpp"))
    recipe = re.search(r"^## Add an engine\n(.*?)^## ", (ROOT / "CONTRIBUTING.md").read_text(), re.M | re.S)
    assert recipe is not None
    engine, runner, line = (
        textwrap.dedent(block) for block in re.findall(r"```python\n(.*?)^ *```", recipe[1], re.M | re.S)
    )
    new = folder / "engines" / "reference"
    new.mkdir()
    (new / "__init__.py").touch()
    (new / "engine.py").write_text(engine)
    (new / "runner.py").write_text(runner)
    registry = folder / "engines" / "registry.py"
    before = registry.read_text()
    after = re.sub(
        r"^(ENGINES = \{\n.*?)^\}", lambda found: f"{found[1]}    {line}}}", before, flags=re.M | re.S
    )
    assert after != before
    registry.write_text(after)
    return folder


@pytest.fixture
def python(tree: Path, tmp_path: Path) -> Callable[..., str]:
    """Run Python with that copy; returns what it printed."""

    def run(*words: object, status: int = 0) -> str:
        done = subprocess.run(
            [sys.executable, *map(str, words)],
            cwd=tmp_path,
            env={**os.environ, "PYTHONPATH": str(tree), "NO_COLOR": "1", "COLUMNS": "200"},
            capture_output=True,
            text=True,
        )
        assert done.returncode == status, done.stderr
        return done.stdout if status == 0 else done.stderr

    return run


PROGRAM = """
import json, sys
from pathlib import Path
import numpy as np
import engines
from engines.timing import TimingOptions, alternate, engine_worker

if __name__ == "__main__":
    source, target = Path(sys.argv[1]), Path(sys.argv[2])
    engine, why = engines.select("reference")
    info = engine.build(source, target / engine.filename, engines.BuildOptions())
    with engine.load(target / engine.filename, origin=info.origin) as runner:
        y = runner.infer({"x": np.load(sys.argv[3])})["y"]
    timing = TimingOptions(rounds=2, seconds=0.02, warmup_seconds=0.0)
    timed = alternate({"reference": engine_worker("reference", target / engine.filename, 2, timing, info.origin)}, timing)
    print(json.dumps({
        "kinds": engines.KINDS, "title": engines.TITLES["reference"], "cpu": engines.ON_CPU, "why": why,
        "calls": timed["reference"].stats.iterations, "y": y.tolist(),
        "supported": [s.kind for s in engines.support() if s.can_build],
    }))
"""


@pytest.mark.slow
def test_it_is_chosen_built_run_and_timed(python: Callable[..., str], make_mlp, tmp_path: Path) -> None:
    model, x = make_mlp(), np.random.default_rng(0).standard_normal((2, 8)).astype(np.float32)
    np.save(tmp_path / "x.npy", x)
    (tmp_path / "built").mkdir()
    program = tmp_path / "program.py"
    program.write_text(PROGRAM)
    result = json.loads(python(program, model, tmp_path / "built", tmp_path / "x.npy"))
    assert result["kinds"][-1] == "reference" and result["title"] == "the ONNX reference"
    assert "reference" in result["cpu"] and "reference" in result["supported"]
    assert result["why"].startswith("reference was asked for: ONNX ")
    assert result["calls"] >= 6
    assert np.allclose(result["y"], ort.InferenceSession(model).run(None, {"x": x})[0], atol=1e-5)


PIPELINE = """
import json, sys
from pathlib import Path
import onnx
import sit_deploy
from sit_deploy.cli.build import ENGINES
from sit_deploy.pipeline import float_graph

bundle, exported = Path(sys.argv[1]), onnx.load(sys.argv[2])
float_graph._export = lambda *_: exported  # which takes seconds
request = {"model": "sit_nano", "output": bundle, "engine": "reference"}
errors = []
try:
    sit_deploy.build(sit_deploy.BuildRequest(**request, precision="bf16"))
except sit_deploy.Error as error:
    errors.append(str(error))
built = sit_deploy.build(sit_deploy.BuildRequest(**request))
found = sit_deploy.validate(sit_deploy.ValidateRequest(bundle))
try:
    sit_deploy.validate(sit_deploy.ValidateRequest(bundle, layers=True))
except sit_deploy.Error as error:
    errors.append(str(error))
print(json.dumps({
    "offered": ENGINES, "errors": errors, "kind": built.manifest.engine.kind, "file": built.manifest.engine.file,
    "validated": found.engine, "passed": found.golden.passed,
}))
"""


@pytest.mark.slow
def test_bundles_are_built_and_validated_with_it(
    python: Callable[..., str], nano_fp32: Path, tmp_path: Path
) -> None:
    program = tmp_path / "program.py"
    program.write_text(PIPELINE)
    result = json.loads(python(program, tmp_path / "bundle", nano_fp32 / "model.onnx").splitlines()[-1])
    assert "reference" in result["offered"]
    assert (result["kind"], result["file"]) == ("reference", "engine.onnx")
    assert result["validated"] == "reference" and result["passed"]
    no_kernels, no_times = result["errors"]
    assert no_kernels.startswith(
        f"the ONNX reference has no bf16 kernels for a CPU; pass --engine {registry.with_precision('bf16', on_cpu=True)}"
    )
    assert no_times == "the ONNX reference does not tell the times of its layers"

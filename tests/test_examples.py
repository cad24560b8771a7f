"""The notebook of the docs runs from its own text, cell after cell in one process, in an empty folder."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[1]
NOTEBOOK = ROOT / "docs/examples/digits.ipynb"
_RUN = """
import json, sys
space = {"__name__": "__main__"}
for number, cell in enumerate(json.load(open(sys.argv[1], encoding="utf-8"))["cells"]):
    if cell["cell_type"] == "code":
        exec(compile("".join(cell["source"]), f"cell {number}", "exec"), space)
"""


def cells() -> list[dict[str, Any]]:
    return json.loads(NOTEBOOK.read_text(encoding="utf-8"))["cells"]


def test_it_holds_no_outputs() -> None:
    code = [cell for cell in cells() if cell["cell_type"] == "code"]
    assert len(code) > 4
    assert all(cell["outputs"] == [] and cell["execution_count"] is None for cell in code)
    assert len({cell["id"] for cell in cells()}) == len(cells())


def test_links_lead_somewhere() -> None:
    text = "".join("".join(cell["source"]) for cell in cells() if cell["cell_type"] == "markdown")
    targets = re.findall(r"\]\(([^)]+)\)", text)
    assert targets and all((NOTEBOOK.parent / target).is_file() for target in targets)


@pytest.mark.slow
def test_it_runs(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", _RUN, NOTEBOOK],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(ROOT), "MPLBACKEND": "Agg"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    top1, tokens, engine, best, right = done.stdout.splitlines()
    assert float(top1.split()[1]) > 90
    assert re.fullmatch(r"tokens \(9, .*\), \d+ % of the classes as before", tokens)
    measured = re.fullmatch(r"engine ([\d.]+) %, PyTorch ([\d.]+) %", engine)
    assert measured and float(measured[1]) > 85 and abs(float(measured[1]) - float(measured[2])) < 1
    assert re.match(r"\d [\d.]+%, \d [\d.]+%", best)
    assert re.fullmatch(r"[5-8] of 8 are right", right)
    for step in ("epoch 3/3", "TSMs fitted", "Exporting to ONNX"):  # progress, on standard error
        assert step in done.stderr
    assert (tmp_path / "sit-deploy-digits/predictions.png").stat().st_size > 5000

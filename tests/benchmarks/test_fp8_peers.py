"""FP8 side by side: the table from recorded rows, what a failing row is, and checkpoints that are refused. No ModelOpt here."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from safetensors.torch import save_file

from benchmarks import documents, fp8_peers
from benchmarks.held_out import ENOUGH, shown

ROWS = {
    "ours": {"title": "**ours**", "sqnr_db": 36.94, "top1": 97.5, "drop": 0.0926, "agreement": 99.81},
    "lost": {"title": "theirs", "failed": "no such kernel"},
}


def case_of(rows: list[dict[str, Any]]) -> dict[str, Any]:
    return {"model": "sit_nano", "data": "digits", "held_out_images": 1080, "top1": 97.5926, "rows": rows}


def test_the_table() -> None:
    found = fp8_peers.table([case_of([ROWS["ours"], ROWS["lost"]])]).splitlines()
    columns = found[0].count("|")
    assert found[2:] == [
        "| sit_nano, digits (1080, 97.59 %) | **ours** | 36.9 | 97.50 | 0.09 | 99.81 |",
        "| sit_nano, digits (1080, 97.59 %) | theirs | failed: no such kernel | | | |",
    ]
    assert [line.count("|") for line in found] == [columns] * 4


def test_the_table_of_the_docs_is_that_of_the_record() -> None:
    cases = json.loads(fp8_peers.RESULTS.read_text(encoding="utf-8"))["cases"]
    page = (documents.DOCS / "quantization.md").read_text(encoding="utf-8")
    part = page.split("<!-- fp8-peers -->\n")[1].split("<!-- /fp8-peers -->")[0]
    assert fp8_peers.table(cases) in part
    assert all(len(case["rows"]) == len(fp8_peers.ROWS) for case in cases)


def test_a_checkpoint_without_a_card(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    save_file({"weight": torch.zeros(1)}, path)
    ended = CliRunner().invoke(fp8_peers.main, [str(tmp_path / "work"), str(path)])
    assert ended.exit_code == 1
    assert ended.output == f"Error: {path} has no model card; take one that `sit-deploy train` wrote\n"
    assert not (tmp_path / "work").exists()


def test_a_row(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A quantizer that fails is a row; a graph that is there is taken as it is, and judged by FP32's logits and the labels."""
    reference = np.eye(4, dtype=np.float32)
    case: Any = SimpleNamespace(
        folder=tmp_path, images=None, reference=reference, labels=np.array([0, 1, 2, 0])
    )

    def fail(*_: Any) -> None:
        raise RuntimeError("it has no wheel")

    monkeypatch.setattr(fp8_peers, "environment", fail)
    lost = fp8_peers.measure(case, "theirs", None, tmp_path)
    assert lost == {"title": "theirs", "quantize": None, "failed": "it has no wheel"}
    monkeypatch.setattr(fp8_peers, "ours", fail)
    assert fp8_peers.measure(case, "ours", "default,attention", tmp_path)["failed"] == "it has no wheel"
    (tmp_path / "fp8-default-attention.onnx").touch()
    logits = reference + 0.1 * reference
    logits[1, 3] = 2
    monkeypatch.setattr(fp8_peers, "run_graph", lambda *_: logits)
    row = fp8_peers.measure(case, "ours", "default,attention", tmp_path)
    assert (row["top1"], row["drop"], row["agreement"]) == (50.0, 25.0, 75.0)
    assert row["sqnr_db"] == pytest.approx(10 * np.log10(4 / 4.04)) and row["quantizations"] == 0


def test_few_pictures_are_shown_in_several_ways() -> None:
    from PIL import Image

    grey = Image.new("L", (8, 8), 99)
    seen = shown([(grey, 3), (grey, 5)])
    assert [label for _, label in seen] == [3, 5] * 3
    assert seen[0][0] is grey and {image.size for image, _ in seen[2:]} == {(112, 112)}
    assert len(shown([(grey, 1)] * ENOUGH)) == ENOUGH

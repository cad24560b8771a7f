"""The table of trained models on OpenVINO; making its rows takes minutes and a peer's environment."""

from __future__ import annotations

from pathlib import Path

import pytest
from click.testing import CliRunner

pytest.importorskip("openvino", reason="needs OpenVINO: pip install '.[openvino]'")
pytest.importorskip("torch", reason="needs PyTorch for its models")

from benchmarks import auto_peers

ROW = {"plan": None, "sqnr_db": 34.56, "top1": 97.5, "drop": -0.09, "agreement": 99.7, "p50_ms": 2.345}
TIMED = {"median": 1.5, "quartiles": [1.45, 1.55], "doubt": None}


def case(*rows: dict) -> dict:
    fields = {"model": "sit_nano", "data": "digits", "calibration_images": 256, "held_out_images": 1080}
    return {**fields, "top1": 97.41, "rows": list(rows)}


def test_what_a_row_says() -> None:
    doubted = {"median": None, "quartiles": None, "doubt": "other programs took 60% of the CPUs"}
    text = auto_peers.table(
        [
            case(
                {"title": "FP32", **ROW, "sqnr_db": 121.0, "over_fp32": {**TIMED, "median": 1.0}},
                {"title": "auto", **ROW, "plan": "default, stem; rest bf16", "over_fp32": TIMED},
                {"title": "NNCF", **ROW, "over_fp32": doubted},
            )
        ]
    )
    head, _, exact, auto, peer = text.splitlines()
    assert head.count("|") == exact.count("|") == auto.count("|")
    about = "| sit_nano, digits (1080, 97.41 %) |"
    assert exact == f"{about} FP32 | 2.35 | 1.00 (1.45–1.55) |  | 97.50 | -0.09 | 99.70 |"
    assert auto.startswith(f"{about} auto: default, stem; rest bf16 | 2.35 | 1.50 (1.45–1.55) | 34.6 |")
    assert "| NNCF | 2.35 | not measurable | 34.6 |" in peer


def test_a_checkpoint_without_a_card(tmp_path: Path) -> None:
    (tmp_path / "model.safetensors").write_bytes(b"")
    done = CliRunner().invoke(auto_peers.main, [str(tmp_path), str(tmp_path / "model.safetensors")])
    assert done.exit_code == 1 and "has no model card" in done.output

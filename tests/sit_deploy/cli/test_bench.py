from __future__ import annotations

from pathlib import Path

from sit_deploy.doctor import versions
from tests.helpers.command_line import CommandLine
from tests.sit_deploy.conftest import Trained


def test_json(trained: Trained, cli: CommandLine) -> None:
    """One real run, for its structure; no figure of it decides anything."""
    words = (
        "bench",
        trained.bundle,
        "--batch-size",
        2,
        "--rounds",
        2,
        "--seconds",
        0.2,
        "--threads",
        1,
        "--json",
    )
    result = cli(*words)
    found = result.json()
    assert (found["bundle"], found["model"], found["precision"]) == (str(trained.bundle), "sit_nano", "fp32")
    assert (found["batch_size"], found["threads"]) == (2, 1)
    assert list(found["results"]) == ["PyTorch", "onnxruntime"]
    for side in found["results"].values():
        stats = side["stats"]
        assert 0 < stats["min_ms"] <= stats["p50_ms"] <= stats["p90_ms"] <= stats["p99_ms"]
        assert stats["iterations"] >= 6 and len(side["round_medians_ms"]) == 2
    speedup = found["speedup"]
    assert (speedup["engine"], speedup["over"], len(speedup["per_round"])) == ("onnxruntime", "PyTorch", 2)
    assert min(speedup["per_round"]) <= speedup["median"] <= max(speedup["per_round"])
    assert found["versions"] == versions()
    assert found["machine"]["usable_cpus"] >= 1
    assert result.complaints == [] and result.err.startswith("Timing (")


def test_refusals(nano_fp32: Path, trained: Trained, cli: CommandLine) -> None:
    assert "takes batches of 1, not 2; pass such" in cli.refuses("bench", nano_fp32, "--batch-size", "2")
    assert "takes batches of 2 to 4, not 5" in cli.refuses("bench", trained.bundle, "--batch-size", "5")
    gone = cli.refuses("bench", trained.bundle, "--checkpoint", "gone.pth")
    assert gone.startswith("the reference needs the weights ") and gone.endswith("pass --checkpoint FILE")
    assert "random weights; leave --checkpoint out" in cli.refuses(
        "bench", nano_fp32, "--checkpoint", "x.pth"
    )
    assert "holds a onnxruntime engine" in cli.refuses("bench", nano_fp32, "--engine", "tensorrt")


def test_usage(nano_fp32: Path, cli: CommandLine) -> None:
    for words in (["--rounds", "0"], ["--seconds", "0"], ["--batch-size", "0"], ["--threads", "0"]):
        assert f"Invalid value for '{words[0]}'" in cli("bench", nano_fp32, *words, status=2).usage_error()

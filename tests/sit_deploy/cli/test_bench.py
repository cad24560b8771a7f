from __future__ import annotations

from pathlib import Path

import pytest

from sit_deploy.doctor import versions
from tests.helpers import held_up
from tests.helpers.command_line import CommandLine
from tests.helpers.idle_call import IdleCall
from tests.sit_deploy.conftest import Trained


@pytest.mark.slow
def test_json(trained: Trained, cli: CommandLine) -> None:
    """A real run with PyTorch in a process of its own, the only one there is; no figure of it decides anything."""
    words = (
        "bench",
        trained.bundle,
        "--batch-size",
        2,
        "--rounds",
        2,
        "--seconds",
        0.02,
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
        assert stats["iterations"] >= 2 and len(side["round_medians_ms"]) == 2
    speedup = found["speedup"]
    assert (speedup["engine"], speedup["over"]) == ("onnxruntime", "PyTorch")
    # two rounds bear nothing out
    assert (speedup["median"], speedup["per_round"], len(speedup["doubted_rounds"])) == (None, [], 2)
    assert found["versions"] == versions()
    assert found["machine"]["usable_cpus"] >= 1
    assert result.complaints == [] and result.err.startswith("Timing (")


def test_throughput(trained: Trained, cli: CommandLine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sit_deploy.validation.bench.TorchCall", IdleCall)
    monkeypatch.setattr("sit_deploy.validation.bench.alternate", held_up.alternate())
    out = cli("bench", trained.bundle, "--performance", "throughput", "--batch-size", 2).out
    assert "onnxruntime, throughput" in out and "Note: run at batch 2, and the engine is tuned for 3." in out
    assert "onnxruntime, throughput (1 at a time) is 1.00× as fast as one at a time" in out
    assert "a batch takes about 2.0 ms from beginning to end" in out
    assert "--streams, or leave" in cli.refuses("bench", trained.bundle, "--streams", "2")
    words = ("bench", trained.bundle, "--performance", "fast")
    assert "'fast' is not one of" in cli(*words, status=2).usage_error()


def test_refusals(nano_fp32: Path, trained: Trained, cli: CommandLine) -> None:
    assert "takes batches of 1, not 2; pass such" in cli.refuses("bench", nano_fp32, "--batch-size", "2")
    assert "takes batches of 1, not 8" in cli.refuses("bench", nano_fp32, "--batch-sizes", "1,8")
    assert "takes batches of 2 to 4, not 5" in cli.refuses("bench", trained.bundle, "--batch-size", "5")
    gone = cli.refuses("bench", trained.bundle, "--checkpoint", "gone.pth")
    assert gone.startswith("the reference needs the weights ") and gone.endswith("pass --checkpoint FILE")
    assert "random weights; leave --checkpoint out" in cli.refuses(
        "bench", nano_fp32, "--checkpoint", "x.pth"
    )
    assert "holds a onnxruntime engine" in cli.refuses("bench", nano_fp32, "--engine", "tensorrt")


def test_every_batch_is_checked_before_the_first_is_timed(
    nano_fp32: Path, trained: Trained, cli: CommandLine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of the teacher too: it may take the first and not the second."""
    monkeypatch.setattr(
        "sit_deploy.validation.bench.bench", lambda *_, **__: pytest.fail("timed before it was refused")
    )
    words = ("bench", trained.bundle, "--batch-sizes")
    assert "takes batches of 2 to 4, not 8" in cli.refuses(*words, "2,8")
    assert f"engine of {nano_fp32} takes batches of 1, not 2" in cli.refuses(
        *words, "2,3", "--teacher", nano_fp32
    )


def test_usage(nano_fp32: Path, cli: CommandLine) -> None:
    for words in (["--rounds", "0"], ["--seconds", "0"], ["--batch-size", "0"], ["--threads", "0"]):
        assert f"Invalid value for '{words[0]}'" in cli("bench", nano_fp32, *words, status=2).usage_error()


@pytest.mark.slow
def test_a_sweep_as_csv(trained: Trained, cli: CommandLine, monkeypatch: pytest.MonkeyPatch) -> None:
    import csv
    import os

    from PIL import Image

    monkeypatch.setattr("sit_deploy.validation.bench.TorchCall", IdleCall)
    cpu = min(os.sched_getaffinity(0))
    quick = ("--rounds", 1, "--seconds", 0.02, "--threads", 1, "--cpus", cpu)
    out = cli("bench", trained.bundle, "--batch-sizes", "2,3", *quick, "--csv", "sweep.csv").out
    assert f"pinned to CPU {cpu}" in out and "decoding" in out and "sweep.csv" in out
    with (cli.folder / "sweep.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [(row["side"], row["batch_size"]) for row in rows] == [
        ("PyTorch", "2"),
        ("onnxruntime", "2"),
        ("PyTorch", "3"),
        ("onnxruntime", "3"),
    ]
    assert all(float(row["p50_ms"]) > 0 and row["cpus"] == str(cpu) for row in rows)
    # one round bears no speed-up out, and says so in the line, in the table and on the plot
    assert out.count("Whether onnxruntime is faster than PyTorch eager is not measurable here now: ") == 2
    assert [row["speedup_over_pytorch"] for row in rows] == [""] * 4
    assert rows[1]["speedup_doubt"] and not rows[0]["speedup_doubt"]
    picture = Image.open(cli.folder / "sweep.png")
    assert (
        picture.size == (1350, 540) and len(picture.convert("RGB").getcolors(1 << 20)) > 20
    )  # something is drawn
    assert {path.name for path in cli.folder.iterdir()} == {"sweep.csv", "sweep.png", "tmp"}
    assert "sweep.csv exists; pass --force" in cli.refuses("bench", trained.bundle, "--csv", "sweep.csv")


def test_a_reference_that_was_held_up(
    trained: Trained, cli: CommandLine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No face prints what it would come to as a ratio."""
    import csv

    monkeypatch.setattr("sit_deploy.validation.bench.TorchCall", IdleCall)
    monkeypatch.setattr("sit_deploy.validation.bench.alternate", held_up.alternate("PyTorch", "teacher"))
    words = ("bench", trained.bundle, "--teacher", trained.bundle)
    out = cli(*words, "--csv", "sweep.csv").out
    for other in ("PyTorch eager", "its teacher sit_nano"):
        assert f"Whether onnxruntime is faster than {other} is not measurable here now: " in out
    assert (
        out.count("close other programs, pin both with --cpus, give fewer --threads than CPUs, or more") == 2
    )
    assert not any(figure in out for figure in held_up.FIGURES)
    with (cli.folder / "sweep.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    for row in rows:
        assert (row["speedup_over_pytorch"], row["speedup_low"], row["speedup_high"]) == ("",) * 3
    assert "below a 100th it was held up" in rows[1]["speedup_doubt"]
    found = cli(*words, "--json").json()
    for gain in (found["speedup"], found["over_teacher"]):
        assert (gain["median"], gain["low"], gain["high"], gain["per_round"]) == (None, None, None, [])
        assert gain["doubt"] and gain["doubted_rounds"] == [pytest.approx(held_up.FACTOR)] * 10
    assert found["gpu_speedup"] is None


def test_csv_and_cpus_that_cannot_be(nano_fp32: Path, cli: CommandLine) -> None:
    assert "must end in .csv" in cli.refuses("bench", nano_fp32, "--csv", "sweep.txt")
    assert "does not exist" in cli.refuses("bench", nano_fp32, "--csv", "nowhere/sweep.csv")
    assert "CPU 4095 cannot be used here; pass --cpus of " in cli.refuses(
        "bench", nano_fp32, "--cpus", "4095"
    )
    for text in ("a", "1-", "3-1", ",", "-1"):
        assert "is not a list of CPUs" in cli("bench", nano_fp32, "--cpus", text, status=2).usage_error()

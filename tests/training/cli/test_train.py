"""`sit-deploy train` as a user meets it: from pictures to a bundle, and every bad input in one line."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from dataclasses import fields
from io import StringIO
from pathlib import Path

import pytest
from rich.console import Console

from sit_deploy.models import get_config
from sit_deploy.models.card_file import read_card
from sit_deploy.models.catalog import title
from tests.helpers.command_line import CommandLine, Result
from tests.helpers.train import CLASSES, log_rows, words
from tests.helpers.train_command import damaged_copy, line
from training.cli.train import show_summary
from training.curves import draw_curves
from training.recipes import Recipe, option_name
from training.summary import Side, Summary

pytestmark = pytest.mark.usefixtures("small_nano", "no_curves")


@pytest.mark.slow
def test_teacher_student_bundle(pictures: Path, teacher: Path, cli: CommandLine) -> None:
    """The weights are enough to deploy: no command after training is told the model, its size or its classes."""
    result = cli(*line(pictures, "--teacher", teacher, "--json", model="sit_nano"))
    summary = result.json()
    assert "Training sit_nano from the teacher's weights" in result.err and "Error" not in result.err
    assert 25 < summary["student"]["top1"] < 100 and summary["images"] == 24
    assert [summary[f"{part}_folder"] for part in ("train", "val")] == [
        str(pictures / "train"),
        str(pictures / "val"),
    ]

    weights, options = "new/run/model.safetensors", ("--engine", "onnxruntime", "--batch-size", 3)
    built = cli("build", "--checkpoint", weights, *options, "-o", "bundle", "--json").json()
    assert built["hops"] and all(hop["passed"] and hop["compared"] for hop in built["hops"])
    manifest = json.loads(Path("bundle/manifest.json").read_text(encoding="utf-8"))
    assert (manifest["model"]["name"], manifest["classes"]) == ("sit_nano", list(CLASSES))
    assert manifest["preprocessing"]["size"] == [48, 48]

    measured = cli("validate", "bundle", "--data", pictures / "val", "--json").json()["accuracy"]
    assert (measured["images"], measured["engine_top1"]) == (24, pytest.approx(summary["student"]["top1"]))
    predicted = cli("predict", "bundle", pictures / "val", "--json").json()
    best = {image["image"]: image["classes"][0]["name"] for image in predicted}
    assert len(best) == 24 and set(best.values()) <= set(CLASSES)
    right = sum(Path(path).parent.name == name for path, name in best.items())
    assert 100 * right / 24 == pytest.approx(summary["student"]["top1"])


@pytest.mark.slow
def test_what_is_said(pictures: Path, cli: CommandLine, monkeypatch: pytest.MonkeyPatch) -> None:
    """On standard error how it goes, on standard output what came of it."""
    monkeypatch.setattr("training.summary.draw_curves", draw_curves)
    result = cli(*line(pictures, "--epochs", 2))
    taken, prepared, *said = result.err.splitlines()
    assert taken == f"training on {pictures / 'train'}, held out: {pictures / 'val'}"
    assert prepared.startswith(
        "Preprocessing: mean 0.485 0.456 0.406, std 0.229 0.224 0.225, shorter side to"
    )
    assert prepared.endswith("turned by EXIF (from the default of sit-deploy train)")
    assert re.fullmatch(
        r"Makes lvvit_nano: 0\.\d\d M parameters, 0\.002 GMACs an image of 48 pixels, tokens 9", said[0]
    )
    assert said[1] == (
        "48 images to train on, 8 a step: 6 steps an epoch; 2 epochs: 12 steps in all; learning rate 0.00156 to 1.56e-07"
    )
    assert said[2].startswith("Warning: 12 steps in all will hardly train anything: pass more --epochs")
    assert said[3] == "Training lvvit_nano from scratch"
    assert re.fullmatch(r"epoch 0/2  top-1 \d+\.\d\d %", said[4])
    assert re.fullmatch(
        r"Expected: \d+ s from here, for 6 steps of \S+ s and 3 validations of \S+ s", said[5]
    )
    kept = r"loss \d\.\d{3}  top-1 \d+\.\d\d %  lr \S+  \d+ images/s  \d+ s"
    assert re.fullmatch(rf"epoch 1/2  {kept}  \d+ s left.*", said[6])
    assert re.fullmatch(rf"epoch 2/2  {kept}.*", said[7]) and len(said) == 8
    assert all(character.isprintable() or character == "\n" for character in result.err)
    assert re.search(r"^ +lvvit_nano +0\.002 +\d+\.\d\d +\d+\.\d\d +9\s*$", result.out, re.MULTILINE)
    assert (
        "✓ new/run/model.safetensors: epoch " in result.out and "curves in new/run/curves.png" in result.out
    )
    assert re.search(
        r"^Next, on this CPU, in (BF16|FP32):\n  sit-deploy build --checkpoint new/run/model.safe",
        result.out,
        re.M,
    )
    found = {path.name for path in Path("new/run").iterdir()}
    assert found == {"model.safetensors", "model.json", "last.pt", "log.jsonl", "summary.json", "curves.png"}
    assert {path.name for path in cli.folder.iterdir()} == {"tmp", "new"}


@pytest.mark.slow
def test_quiet(pictures: Path, cli: CommandLine) -> None:
    """Nothing on the way but warnings; the result is there."""
    result = cli(*line(pictures, "--epochs", 2, "--quiet"))
    assert result.err.startswith("Warning: 12 steps in all") and len(result.err.splitlines()) == 1
    assert "✓ new/run/model.safetensors" in result.out


@pytest.mark.slow
def test_what_is_made_is_said_first_and_the_warm_start_is_a_phase(
    pictures: Path, teacher: Path, cli: CommandLine
) -> None:
    options = ("--teacher", teacher, "--epochs", 20, "--batch-size", 48)
    result = cli(*line(pictures, *options, "--json", model="sit_nano"))
    summary, said = result.json(), result.err.splitlines()
    starts = ("Makes sit_nano: ", "48 images to train on", "Warm start: TSMs are fitted in 80 steps of 48 images",
              "TSMs fitted: 80 steps  loss ", "Training sit_nano from the teacher's weights", "epoch 0/20  top-1 ", "Expected: ")  # fmt: skip
    found = [next(i for i, text in enumerate(said) if text.startswith(start)) for start in starts]
    assert found == sorted(found)
    ratio = summary["teacher"]["macs"] / summary["student"]["macs"]
    assert f"; {ratio:.2f}x fewer MACs than its teacher lvvit_nano; its blocks see " in said[found[0]]
    fit = summary["warm_start"]
    assert fit["steps"] == 80 and fit["seconds"] > 0 and fit["last_loss"] < fit["first_loss"]
    assert json.loads(Path("new/run/summary.json").read_text(encoding="utf-8")) == summary
    again = cli(*line(pictures, *options, "--resume", model="sit_nano"))
    assert "TSMs are fitted in" not in again.err and " of warm start, " in again.out


@pytest.mark.slow
def test_what_is_said_of_a_student(pictures: Path, teacher: Path, cli: CommandLine) -> None:
    summary = cli(*line(pictures, "--teacher", teacher, "--epochs", 1, "--json", model="sit_nano")).json()
    out = cli(*line(pictures, "--teacher", teacher, "--epochs", 1, "--resume", model="sit_nano")).out
    ours, theirs = summary["student"], summary["teacher"]
    assert summary["macs_ratio"] == pytest.approx(theirs["macs"] / ours["macs"])
    assert theirs["parameters"] < ours["parameters"]
    for role, side, tokens in (("teacher", theirs, "9"), ("student", ours, "9/4/2/1")):
        figures = rf"{side['macs'] / 1e9:.3f} +{side['top1']:.2f} +{side['top5']:.2f} +{tokens}"
        assert re.search(rf"^ *{role} +{side['name']} +{figures}\s*$", out, re.MULTILINE)
    retained, ratio = 100 * ours["top1"] / theirs["top1"], theirs["macs"] / ours["macs"]
    assert f"retains {retained:.1f} % of the teacher's accuracy at {ratio:.1f}x fewer MACs" in out
    assert f"agrees with it on {summary['agreement']:.1f} % of the images (KL {summary['kl']:.3f})" in out


def test_overridden_values_reach_the_run(pictures: Path, cli: CommandLine) -> None:
    changed = {
        "epochs": 1, "cooldown_epochs": 1, "lr": 0.0123, "lr_per_step": True, "weight_decay": 0.5, "smoothing": 0.25,
        "rotation": 7.0, "ema_decay": 0.5, "auto_augment": "rand-m3", "erasing": 0.125, "batch_size": 16,
    }  # fmt: skip
    cli(*line(pictures), *words(changed), "--accumulate", 3, "--log-every", 1, "--seed", 5)
    card = read_card("new/run/model.safetensors")
    assert card is not None
    assert {name: card.training["recipe"][name] for name in changed} == changed
    assert card.training["recipe"].keys() == {field.name for field in fields(Recipe)}
    assert (card.training["total_batch"], card.training["seed"], card.training["averaged"]) == (48, 5, True)
    rows = log_rows(Path("new/run"), "step")
    assert rows[0]["lr"] == pytest.approx(0.0123 * 48 / 512) and len(rows) == 2


@pytest.mark.slow
def test_damaged_images_are_counted(pictures: Path, cli: CommandLine) -> None:
    data = damaged_copy(pictures, cli.folder / "data", train=3, val=2)
    for workers in (0, 2):
        options = ("--epochs", 1, "--max-damaged", 3, "--workers", workers, "-o", f"run{workers}")
        result = cli(*line(data), *options, "--json")
        summary = result.json()
        assert (summary["images"], summary["damaged_images"]) == (22, 5)
        assert "5 damaged images skipped" in result.err
        assert "Some images cannot be read or augmented and are skipped, such as " in result.err
    out = cli(*line(data), *options, "--resume").out
    assert (
        "On 22 held-out images" in out and "5 images could not be read or augmented and were skipped" in out
    )


# --------------------------------------------------------------------------------------------------------------- help


def test_help(cli: CommandLine) -> None:
    out = cli("train", "--help").out
    for field in fields(Recipe):
        assert re.search(rf"^  {option_name(field.name)}[ /\n]", out, re.MULTILINE), field.name
    assert "--lr-per-step / --no-lr-per-step" in out
    examples = out.rpartition("Examples:\n")[2].split("\n")
    assert sum(text.strip().startswith("sit-deploy train --model ") for text in examples) >= 2


def test_the_module_is_the_same_command(cli: CommandLine) -> None:
    """A whole training by it is in tests/training/test_processes.py."""
    done = subprocess.run(
        [sys.executable, "-m", "training", "--help"], capture_output=True, text=True, cwd=cli.folder
    )
    assert (done.returncode, done.stdout) == (0, cli("train", "--help").out)
    bad = subprocess.run(
        [sys.executable, "-m", "training", "--model", "lvvit_nano", "--data", "digits", "--epochs", "0"],
        capture_output=True, text=True, cwd=cli.folder,
    )  # fmt: skip
    message = Result(bad.returncode, bad.stdout, bad.stderr).the_error()
    assert message == "--epochs must be at least 1, got 0"
    assert bad.returncode == 2


@pytest.mark.parametrize("method", ["transform", "merge"])
@pytest.mark.parametrize("name", ["train", "slim"])
def test_methods_that_need_no_training(name: str, method: str, cli: CommandLine) -> None:
    """Who types them is told where they are, and who asks for help too."""
    images = "--data" if name == "train" else "--images"
    message = cli.refuses(name, "--model", "sit_nano", images, "nowhere", "--method", method)
    assert message.startswith(f"--method {method} slims without any training, so {name} has nothing to do")
    assert "sit-deploy build or search" in message
    help_text = " ".join(cli(name, "--help").out.split())
    assert (
        "TSMs alone are trained: transform and merge need no training, so `sit-deploy build` and" in help_text
    )


HEAVY = ("torch", "timm", "onnx", "onnxruntime", "sklearn", "matplotlib")


def test_help_is_quick() -> None:
    """It needs none of the packages that take seconds to import."""
    heavy = (*HEAVY, "numpy", "PIL", "rich")
    code = f"import sys, training.cli.train; print([name for name in {heavy} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"


def test_options_out_of_range_are_refused_quickly(cli: CommandLine) -> None:
    code = (
        f"import atexit, sys; atexit.register(lambda: print([n for n in {HEAVY} if n in sys.modules]));"
        "from sit_deploy.cli import main; main()"
    )
    result = cli.process("train", "--model", "sit_s", "--data", "nowhere", "--lr", "0", program=code)
    assert (result.status, result.out) == (2, "[]\n")
    assert "--lr must be above 0" in result.err


def test_a_student_that_has_its_teachers_name_is_told_by_its_stages() -> None:
    name = "deit_tiny_patch16_224"
    teacher = Side(name, 84_000_000, (196,), 75.0, 100.0, 0, title(get_config(name)))
    student = Side(name, 42_000_000, (196, 98), 74.0, 100.0, 0, title(get_config(name, stages=(6, 6))))
    summary = Summary(Path("w"), Path("c"), 40, 1, 1, 1.0, 0, student, teacher=teacher, agreement=99, kl=0.1)
    with StringIO() as out:
        show_summary(Console(file=out, width=120), summary)
        assert re.search(rf"teacher +{name} +0\.084", out.getvalue())
        assert re.search(rf"student +{name} of stages 6,6 +0\.042", out.getvalue())


@pytest.mark.parametrize(("classes", "shown"), [(5, "—"), (6, "100.00"), (None, "100.00")])
def test_the_first_five_of_five_classes_are_no_figure(classes: int | None, shown: str) -> None:
    side = Side("lvvit_nano", 84_000_000, (49,), 75.0, 100.0, 1_430_000)
    summary = Summary(Path("w"), Path("c"), 40, 1, 1, 1.0, 0, student=side, num_classes=classes)
    with StringIO() as out:
        show_summary(Console(file=out, width=100), summary)
        assert re.search(rf"lvvit_nano +0\.084 +75\.00 +{shown} +49", out.getvalue())

"""`sit-deploy train` as a user meets it: from pictures to a bundle, and every bad input in one line."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
import time
from dataclasses import fields
from io import StringIO
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console

from sit_deploy.models import get_config
from sit_deploy.models.card_file import read_card
from sit_deploy.models.catalog import title
from tests.helpers.command_line import CommandLine, Result, snapshot
from tests.helpers.shared import shared
from tests.helpers.train import CLASSES, PLAIN, log_rows, start, start_server, words, write_pictures
from training.cli.train import show_summary
from training.curves import draw_curves
from training.recipes import Recipe, option_name
from training.summary import Side, Summary

pytestmark = pytest.mark.usefixtures("small_nano", "no_curves")

RECIPE = {**PLAIN, "batch_size": 8, "clip_grad": 1.0}


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """48 pictures of 48x48 to train on and 24 held out, of six classes. Do not write into it."""
    return shared(tmp_path_factory, "pictures-48", lambda root: write_pictures(root, train=8, val=4, size=48))


@pytest.fixture(scope="module")
def teacher(teacher: Path) -> Path:
    """Weights of an lvvit_nano trained on the same pictures. Do not write beside them."""
    return teacher / "model.safetensors"


def line(data: Path, *more: object, model: str = "lvvit_nano", size: int = 48) -> list[object]:
    options = ("--model", model, "--data", data, "--image-size", size, "--workers", 0, "-o", "new/run")
    return ["train", *options, *words(RECIPE), *more]


# ------------------------------------------------------------------------------------------ from pictures to a bundle


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


# ---------------------------------------------------------------------------------------------------------- bad input


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--model", "local-dir:nowhere"], "local-dir:nowhere: nowhere is not there; check its path"),
        (["--model", "sit_nano", "--teacher", "local-dir:nowhere"], "nowhere is not there; check its path"),
        (["--pretrained", "--init", "a.pth"], "--pretrained and --init are both of weights; pass one of them"),
        (["--model", "sit_nano", "--pretrained"], "timm has no weights of sit_nano; pass --init FILE"),
        (["--model", "lvvit_nanu"], "unknown model 'lvvit_nanu'; did you mean 'lvvit_nano'?"),
        (["--data", "nowhere"], "nowhere: no such folder; pass --data with a folder, digits, or a data set of timm"),
        (["--val-split", "heldout"], "has no subfolder heldout; check --val-split"),
        (["--num-classes", "7"], "has 6 classes, not 7; leave --num-classes out"),
        (["--epochs", "0"], "--epochs must be at least 1, got 0"),
        (["--epochs", "-1"], "--epochs must be at least 1, got -1"),
        (["--lr", "0"], "--lr must be above 0"),
        (["--lr", "1e5"], "--lr must be above 0 and at most 1000"),
        (["--drop-path", "1"], "--drop-path must be from 0 to below 1, got 1"),
        (["--batch-size", "64"], "48 images are fewer than the 64 of one step; pass a smaller --batch-size"),
        (["--accumulate", "9"], "48 images are fewer than the 72 of one step; pass a smaller --batch-size or --accumulate"),
        (["--batch-size", "7", "--mixup", "0.8"], "--batch-size 7 is odd, and mixup takes images in pairs"),
        (["--image-size", "50"], "50"),
        (["--device", "gpu"], "device 'gpu' is not offered; choose from auto, cpu, cuda"),
        (["--amp", "fp8"], "--amp 'fp8' is not offered; choose from auto, off, bf16, fp16"),
        (["--amp", "fp16", "--device", "cpu"], "--amp fp16 is for GPUs; pass --amp off, or bf16"),
        (["--accumulate", "0"], "--accumulate must be at least 1, got 0"),
        (["--workers", "-1"], "--workers must be at least 0, got -1"),
        (["--auto-augment", "nonsense-m9"], "nonsense-m9"),
        (["--init", "nowhere.pth"], "checkpoint nowhere.pth does not exist"),
        (["--cnn-teacher", "resnet18"], "--cnn-teacher is an extra teacher; pass the first one with --teacher"),
        (["--teacher", "nowhere.pth", "--model", "sit_nano"], "checkpoint nowhere.pth does not exist"),
        (["--teacher", "nowhere.pth"], "lvvit_nano slims nothing, so it has nothing to recover"),
        (["--keeping-ratio", "0.1", "--model", "sit_nano"], "token schedule"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)  # fmt: skip
def test_options(options: list[str], message: str, pictures: Path, cli: CommandLine) -> None:
    assert message in cli.refuses(*line(pictures, "--device", "cpu"), *options)


def test_no_gpu(pictures: Path, cli: CommandLine) -> None:
    if torch.cuda.is_available():
        pytest.skip("there is a GPU here")
    message = cli.refuses(*line(pictures, "--device", "cuda"))
    assert message == "no CUDA device that PyTorch can use; pass --device cpu, or install a driver"


def test_folders_of_images(pictures: Path, cli: CommandLine) -> None:
    data = cli.folder / "data"
    shutil.copytree(pictures, data)
    (data / "val" / "fox").rename(data / "val" / "wolf")
    message = cli.refuses(*line(data))
    assert "the class folders differ: fox only in " in message and "wolf only in " in message
    (data / "val").rename(data / "other")
    assert "holds parts of a data set (train) beside other folders (other)" in cli.refuses(*line(data))
    (data / "train").rename(data / "val")
    assert "holds parts of a data set (val) beside other folders (other)" in cli.refuses(*line(data))
    shutil.rmtree(data)
    write_pictures(data, classes=("ant",))
    assert "has one class only: there is nothing to tell apart" in cli.refuses(*line(data))


def save_model(path: Path, name: str, **options: Any) -> Path:
    from sit_deploy.models import create_model

    torch.manual_seed(0)
    torch.save(create_model(name, **{"img_size": 48, "num_classes": 6, **options}).state_dict(), path)
    return path


@pytest.mark.slow
def test_teachers(pictures: Path, teacher: Path, cli: CommandLine) -> None:
    def refuses(path: Path, **change: Any) -> str:
        return cli.refuses(*line(pictures, "--teacher", path, model="sit_nano", **change))

    wide = save_model(cli.folder / "wide.pth", "lvvit_micro")
    assert "wide.pth does not fit lvvit_nano" in refuses(wide)
    slimmed = save_model(cli.folder / "slimmed.pth", "sit_nano")
    assert re.search("slimmed.pth (is slimmed itself|does not fit lvvit_nano)", refuses(slimmed))
    seven = save_model(cli.folder / "seven.pth", "lvvit_nano", num_classes=7)
    message = refuses(seven)
    assert (
        "seven.pth has 7 classes and " in message and "first train it on these: sit-deploy train" in message
    )
    cli.folder.joinpath("text.pth").write_text("no weights")
    assert "text.pth" in refuses(Path("text.pth"))
    others = cli.folder / "others"
    write_pictures(others, train=2, val=1, size=48, classes=(*CLASSES[:5], "gnu"))
    message = cli.refuses(*line(others, "--teacher", teacher, model="sit_nano"))
    assert "was trained on other classes: its class 5 is 'fox', here it is 'gnu'" in message
    # as the card tells: another width, and one that is slimmed
    cli(*line(pictures, "--teacher", teacher, "--epochs", 1, model="sit_nano"), "-o", "student")
    assert "model.safetensors is slimmed itself; give the unslimmed " in refuses(
        Path("student/model.safetensors")
    )
    message = cli.refuses(*line(pictures, "--teacher", teacher, model="sit_t"))
    assert "does not fit sit_t: it has width 64, not 320" in message


def test_where_it_starts(pictures: Path, cli: CommandLine) -> None:
    wide = save_model(cli.folder / "wide.pth", "lvvit_micro")
    message = cli.refuses(*line(pictures, "--init", wide))
    assert (
        "wide.pth does not fit lvvit_nano: " in message and "give one of the same width and depth" in message
    )


def test_places(pictures: Path, cli: CommandLine) -> None:
    (cli.folder / "file").write_text("precious")
    for place, reason in (("file", "File exists"), ("file/below", "Not a directory"), ("/proc/x/run", "")):
        message = cli.refuses(*line(pictures), "-o", place)
        assert message.startswith(f"cannot write to {place} ({reason}") and "choose another -o" in message
    cli(*line(pictures, "--epochs", 1))
    assert cli.refuses(*line(pictures, "--epochs", 1)) == (
        "new/run holds a training run; pass --resume to go on with it, or choose another -o"
    )
    (cli.folder / "new" / "run" / "last.pt").unlink()
    assert cli.refuses(*line(pictures)) == "new/run holds a trained model; choose another -o"


def test_resumed_as_another_run(pictures: Path, cli: CommandLine) -> None:
    cli(*line(pictures, "--epochs", 1))
    for change, what in (
        (("--lr", 0.05), "lr was 0.1 and is 0.05"),
        (("--epochs", 2), "epochs was 1 and is 2"),
        (("--model", "sit_nano"), 'model was "lvvit_nano" and is "sit_nano"'),
        (("--batch-size", 16), "total_batch was 8 and is 16"),
        (("--seed", 1), "seed was 0 and is 1"),
    ):
        message = cli.refuses(*line(pictures, "--epochs", 1), *change, "--resume")
        assert message.startswith("new/run/last.pt is of another run: ") and what in message
        assert "resume with the options it was started with, or choose another -o" in message
    state = Path("new/run/last.pt").read_bytes()
    for damaged in (b"", b"no state", state[:-1000], state[: len(state) // 2]):
        Path("new/run/last.pt").write_bytes(damaged)
        message = cli.refuses(*line(pictures, "--epochs", 1, "--resume"))
        assert message.startswith("new/run/last.pt is not the state of a training run")
        assert message.endswith("; remove it to start anew")


# -------------------------------------------------------------------------------------------- what goes wrong on the way


def in_a_process(
    cli: CommandLine, *words_: object, file_limit: int | None = None
) -> tuple[Result, list[str]]:
    """Run a command in a process of its own; return what came of it, and what it left behind of files and folders."""
    start_server()  # whose own files are none of the command's
    before = snapshot(cli.folder)
    place = {"TMPDIR": str(cli.folder / "tmp")}
    result = start(cli.folder / "tmp", *words_, environment=place, file_limit=file_limit).wait()
    after = snapshot(cli.folder)
    assert after.keys() >= before.keys()
    return result, sorted(after.keys() - before.keys() - {"tmp/out", "tmp/err"})


def refused_late(result: Result) -> str:
    """Return the message of a run that started and failed: the last line, after those of its progress."""
    *before, last = result.err.splitlines()
    assert (result.status, result.out) == (2, "")
    assert "Traceback" not in result.err and last.startswith("Error: ")
    assert all(
        re.match(
            r"[Tt]raining |Preprocessing: |Makes |Expected: |Some images |Going on |epoch |\d+ images to train on, |Warning: \d+ steps in all",
            text,
        )
        for text in before
    ), before
    return last.removeprefix("Error: ")


def damaged_copy(pictures: Path, root: Path, train: int, val: int) -> Path:
    """Copy the pictures and break the first `train` and `val` of them."""
    shutil.copytree(pictures, root)
    for part, count in (("train", train), ("val", val)):
        for path in sorted((root / part).rglob("*.png"))[:count]:
            path.write_bytes(path.read_bytes()[:100])
    return root


@pytest.mark.slow
@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize(("train", "val"), [(4, 0), (0, 4)], ids=["train", "val"])
def test_too_many_damaged_images(
    train: int, val: int, workers: int, pictures: Path, cli: CommandLine
) -> None:
    data = damaged_copy(pictures, cli.folder / "data", train, val)
    result, left = in_a_process(cli, *line(data, "--max-damaged", 3, "--workers", workers, "--log-every", 1))
    expected = r"4 images cannot be read, more than --max-damaged 3; the last: .*\.png: .*; mend or"
    assert re.match(expected, refused_late(result))
    assert left == []


@pytest.mark.slow
@pytest.mark.parametrize("workers", [0, 2])
def test_no_held_out_image_can_be_read(workers: int, pictures: Path, cli: CommandLine) -> None:
    data = damaged_copy(pictures, cli.folder / "data", 0, 24)
    result, left = in_a_process(cli, *line(data, "--workers", workers))
    assert refused_late(result) == "no held-out image could be read; check the validation images"
    assert left == []


def test_an_absurd_learning_rate(pictures: Path, cli: CommandLine) -> None:
    result = cli(
        *line(pictures, "--lr", 1000, "--clip-grad", 0, "--epochs", 4, "--weight-decay", 1e6), status=2
    )
    message = refused_late(result)
    assert re.match(
        r"(the loss|a weight) is not finite at step \d of epoch \d; "
        r"(the last good state is new/run/last\.pt|there is no earlier state); start again with a smaller --lr, or ",
        message,
    )


@pytest.mark.slow
@pytest.mark.parametrize(
    ("limit", "reason"),
    [(400_000, "cannot write new/run/model.safetensors"), (1_500_000, "cannot write new/run/last.pt")],
    ids=["the weights", "the state"],
)
def test_disk_full(limit: int, reason: str, pictures: Path, cli: CommandLine) -> None:
    """As a limit on the size of files has it: 0.8 MB of weights, 3 MB of state."""
    result, left = in_a_process(cli, *line(pictures, "--epochs", 1), file_limit=limit)
    assert refused_late(result).startswith(reason) and "free some space" in result.err
    assert left == []


def rest_after_saving() -> None:
    """Let a run do nothing more once it has saved a state."""
    from training import run

    save = run.save_state

    def saved(*arguments: Any) -> None:
        save(*arguments)
        time.sleep(60)

    run.save_state = saved


@pytest.mark.slow
def test_disk_full_later(pictures: Path, cli: CommandLine) -> None:
    """The state before stays whole, and the run goes on from it when there is room again."""
    cli(*line(pictures, "--epochs", 2, "-o", "whole"))
    output = cli.folder / "run"
    words_ = (*line(pictures, "--epochs", 2, "-o", output, "--save-every", 2), "--resume")
    child = start(cli.folder / "tmp", *words_, prepare=rest_after_saving)
    child.wait_for("epoch 0/")
    while not (output / "last.pt").exists():
        assert child.process.is_alive()
        time.sleep(0.01)
    child.kill()
    state = (output / "last.pt").read_bytes()
    result = start(cli.folder / "tmp", *words_, file_limit=1_500_000).wait()
    assert refused_late(result).startswith(f"cannot write {output / 'last.pt'} (")
    assert "go on with --resume" in result.err
    assert (output / "last.pt").read_bytes() == state
    cli(*words_)
    assert (output / "model.safetensors").read_bytes() == Path("whole/model.safetensors").read_bytes()


def test_interrupted_before_the_first_step(
    pictures: Path, cli: CommandLine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """While the models are made there is nothing to save yet."""
    import signal

    monkeypatch.setattr("training.set_up.make_optimiser", lambda *_: signal.raise_signal(signal.SIGTERM))
    assert cli.refuses(*line(pictures)) == "interrupted; nothing was left half-written"


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

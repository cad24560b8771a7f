"""What `sit-deploy train` refuses: every bad input in one line."""

from __future__ import annotations

import re
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.helpers.command_line import CommandLine
from tests.helpers.train import CLASSES, write_pictures
from tests.helpers.train_command import line

pytestmark = pytest.mark.usefixtures("small_nano", "no_curves")


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

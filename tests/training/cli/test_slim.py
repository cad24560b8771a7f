"""`sit-deploy slim` as a user meets it: from a teacher and a folder of images to a bundle, and every bad input in one line."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import pytest
import torch
from PIL import Image

from sit_deploy.models.card_file import read_card, save_weights
from sit_deploy.models.load import load_model
from tests.helpers.command_line import CommandLine, snapshot

pytestmark = pytest.mark.usefixtures("small_nano")


def line(teacher: Path, images: Path, *more: object, model: str = "sit_nano") -> list[object]:
    options = ("--checkpoint", teacher, "--images", images, "--batch-size", 8, "--device", "cpu")
    return ["slim", "--model", model, *options, *more]


@pytest.mark.slow
def test_a_bundle_needs_no_more_than_the_file(wide_pictures: Path, teacher: Path, cli: CommandLine) -> None:
    result = cli(
        *line(
            teacher,
            wide_pictures / "train",
            "--steps",
            10,
            "--val-data",
            wide_pictures,
            "-o",
            "s.safetensors",
        )
    )
    assert result.status == 0 and "top-1 % of 29" in result.out and "10 steps in" in result.out
    assert "sit-deploy build --checkpoint s.safetensors" in result.out
    fitted = re.search(r"fitted +([0-9.]+) +([0-9.]+) to ([0-9.]+) ", result.out)
    same, low, high = map(float, fitted.groups())
    assert 0 <= low <= same <= high <= 100 and high - low > 10  # of a handful of images
    kept = ("--kept", "9,7,3,3", "--json")
    told = cli(*line(teacher, wide_pictures / "train", "--steps", 2, "-o", "t.safetensors", *kept)).json()
    assert (told["fit"]["steps"], told["top1"], told["weights"]) == (2, None, "t.safetensors")
    card = read_card(cli.folder / "t.safetensors")
    assert card is not None and (card.kept, tuple(told["tokens"])) == ((9, 7, 3, 3), (9, 7, 3, 3))
    assert load_model("sit_nano", cli.folder / "t.safetensors", 48, kept=card.kept).model.kept == card.kept
    built = cli(
        "build", "--checkpoint", "s.safetensors", "--engine", "onnxruntime", "-o", "b", "--json"
    ).json()
    assert all(hop["passed"] for hop in built["hops"])


@pytest.mark.slow
def test_bad_input_is_one_line_and_leaves_nothing(
    wide_pictures: Path, teacher: Path, cli: CommandLine
) -> None:
    images = wide_pictures / "train"
    for name in ("empty", "texts", "few", "broken"):
        (cli.folder / name).mkdir()
    (cli.folder / "texts" / "a.txt").write_text("no image")
    for i in range(5):
        shutil.copy(next((images / "ant").iterdir()), cli.folder / "few" / f"{i}.png")
    for i in range(20):
        (cli.folder / "broken" / f"{i}.png").write_bytes(b"\x89PNG\r\n\x1a\n cut short")
    card = read_card(teacher)
    assert card is not None
    model = load_model("lvvit_nano", teacher, 48).model
    with torch.no_grad():
        model.norm.weight[0] = float("nan")
    save_weights(cli.folder / "nan.safetensors", model.state_dict(), card)
    Image.new("RGB", (48, 48)).save(cli.folder / "there.png")
    (cli.folder / "there.safetensors").write_bytes(b"mine")
    before = snapshot(cli.folder)

    for arguments, message in (
        (line(teacher, Path("nowhere")), "nowhere: no such file or folder"),
        (line(teacher, Path("empty")), "empty: no images in this folder"),
        (line(teacher, Path("texts")), "no images in this folder (1 other file, .txt 1)"),
        (line(teacher, Path("few")), "5 images are fewer than the 8 of one step and 1 to check on"),
        (line(teacher, Path("broken")), "none of the 2 images can be read"),
        (
            line(teacher, Path("broken"), "--max-damaged", 1),
            "2 images cannot be read, more than --max-damaged 1",
        ),
        (line(teacher, images, "--seconds", 0), "--seconds must be above 0"),
        (line(teacher, images, "--seconds", -3), "--seconds must be above 0"),
        (line(teacher, images, "--seconds", 1e8), "--seconds must be above 0 and at most 86400"),
        (line(teacher, images, "--steps", 0), "--steps must be at least 1"),
        (line(teacher, images, "--steps", 5, "--seconds", 5), "leave one out"),
        (line(teacher, images, "--lr", 0), "--lr must be above 0"),
        (line(teacher, images, "--batch-size", 0), "--batch-size must be at least 1"),
        (line(teacher, images, "-o", "there.safetensors"), "exists; pass --force"),
        (line(teacher, images, "-o", "student.pth"), "must be a file that ends in .safetensors"),
        (line(teacher, images, "-o", "no/such/s.safetensors"), "does not exist; make it"),
        (line(teacher, images, model="lvvit_nano"), "slims nothing; say after how many of its 4 blocks"),
        (line(teacher, images, "--stages", "1,1"), "must add up to its depth"),
        (line(teacher, images, model="sit_n"), "unknown model"),
        (line(Path("nan.safetensors"), images), "NaN"),
        (["slim", "--model", "sit_nano", "--images", images], "pass its weights with --checkpoint"),
        (line(teacher, images, "--val-data", "texts"), "texts"),
        (line(teacher, images, "--device", "tpu"), "choose from auto, cpu, cuda"),
    ):
        result = cli(*arguments, status=2)
        said = result.err.splitlines()[-1]
        assert said.startswith("Error: ") and message in said, (arguments, result.err)
        assert snapshot(cli.folder) == before, arguments


@pytest.mark.slow
def test_a_checkpoint_that_is_slimmed_already(wide_pictures: Path, teacher: Path, cli: CommandLine) -> None:
    images = wide_pictures / "train"
    cli(*line(teacher, images, "--steps", 1, "-o", "s.safetensors"))
    error = cli(*line(Path("s.safetensors"), images), status=2).the_error()
    assert "is a sit_nano of 9/4/2/1 tokens, slimmed already; give that of the unslimmed lvvit_nano" in error
    weights = load_model("sit_nano", "s.safetensors", 48).model.state_dict()
    torch.save(weights, cli.folder / "s.pth")
    assert "slimmed already" in cli(*line(Path("s.pth"), images), status=2).the_error()
    error = cli(*line(teacher, images, "--force", "-o", teacher), status=2).the_error()
    assert "is the checkpoint itself" in error

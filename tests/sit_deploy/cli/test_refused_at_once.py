"""What is wrong with files, folders and data sets is said before PyTorch is imported, whatever the command."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from safetensors.numpy import save_file

from tests.helpers.command_line import CommandLine, snapshot

# runs each of some command lines, and prints what it said and which of the slow modules are there then
_PROGRAM = """
import contextlib, io, json, sys
from sit_deploy.cli import main
for words in json.loads(sys.argv[1]):
    said = io.StringIO()
    with contextlib.redirect_stderr(said), contextlib.suppress(SystemExit):
        main(words)
    print(json.dumps([said.getvalue(), sorted({"torch", "timm", "sklearn"} & set(sys.modules))]))
"""

BUILD = ("build", "--model", "sit_nano", "--engine", "onnxruntime")
SEVEN = ("--model", "sit_nano", "--checkpoint", "seven.safetensors")
SEARCH = ("search", "--model", "lvvit_nano", "--latency", "5", "-o", "found")
TRAIN = ("train", "--model", "lvvit_nano")
NO_FOLDER, NO_CLASSES = "nowhere: no such folder", "empty: no class folders"
CASES: list[tuple[tuple[str, ...], str]] = [
    ((*BUILD, "--val-data", "nowhere"), NO_FOLDER),
    ((*BUILD, "--val-data", "empty"), NO_CLASSES),
    ((*BUILD, "--val-data", "hollow"), "hollow: no images for 2 of 2 classes"),
    ((*BUILD, "--val-data", "torch/cifar11"), "torch/cifar11 is no data set of torchvision that timm opens; did you mean 'cifar10'?"),
    ((*BUILD, "--val-data", "wds/shards"), "wds/shards can only be streamed"),
    ((*BUILD, "--val-data", "two"), "two has 2 classes, the model 1000 classes"),
    ((*BUILD, "--val-data", "digits"), "digits has 10 classes, the model 1000 classes"),
    ((*BUILD, "--val-data", "two", "--image-key", "x"), "--image-key and --label-key are for hfds/"),
    ((*BUILD, "--num-classes", "5", "--val-data", "two"), "two has 2 classes, the model 5 classes"),
    ((*BUILD, "--labels", "gone.txt"), "gone.txt: cannot read the class names"),
    ((*BUILD, "--labels", "three.txt"), "three.txt: 3 class names for a model of 1000 classes"),
    ((*BUILD, "--calib-data", "nowhere"), "nowhere: no such file or folder"),
    ((*BUILD, "--outputs", "features", "--val-data", "two"), "--val-data needs classes, and what is built gives features"),
    (("build", *SEVEN, "--val-data", "two"), "two has 2 classes, the model 7 classes"),
    (("build", *SEVEN, "--labels", "three.txt"), "three.txt: 3 class names for a model of 7 classes"),
    # of timm's models the number of classes is timm's to tell, and whether there are any is not
    (("build", "--model", "deit_tiny_patch16_224", "--val-data", "nowhere"), NO_FOLDER),
    (("build", "--model", "deit_tiny_patch16_224", "--val-data", "hollow"), "hollow: no images for 2 of 2 classes"),
    (("export", "--model", "sit_nano", "--calib-data", "nowhere"), "nowhere: no such file or folder"),
    (("calibrate", "--model", "sit_nano", "--calib-data", "empty", "-o", "c.json"), "empty: no images in this folder"),
    (("slim", *SEVEN, "--images", "two", "--batch-size", "2", "--val-data", "nowhere"), NO_FOLDER),
    (("slim", *SEVEN, "--images", "nowhere"), "nowhere: no such file or folder"),
    (("slim", *SEVEN, "--images", "two"), "4 images are fewer than the 64 of one step"),
    (("slim", *SEVEN, "--images", "two", "--batch-size", "2", "--val-data", "two"), "two has 2 classes, the model 7 classes"),
    (("slim", *SEVEN, "--images", "two", "--batch-size", "2", "-o", "gone/s.safetensors"), "gone does not exist; make it, or choose another -o"),
    (("slim", *SEVEN, "--images", "two", "--seconds", "0"), "--seconds must be above 0"),
    (("slim", *SEVEN, "--images", "two", "--seconds", "5", "--steps", "5"), "--seconds and --steps both say"),
    ((*SEARCH, "--data", "nowhere"), "nowhere: no such file or folder"),
    ((*SEARCH, "--data", "empty"), "empty: no images in this folder"),
    ((*SEARCH, "--data", "two"), "two has 2 classes, the model 1000 classes"),
    ((*SEARCH, "--data", "torch/cifar11"), "torch/cifar11 is no data set of torchvision"),
    ((*SEARCH, "--calib-data", "nowhere"), "nowhere: no such file or folder"),
    ((*SEARCH, "--finalists", "0"), "--finalists must be"),
    ((*SEARCH, "--speedup", "2"), "pass --latency MS or --speedup X, not both"),
    ((*SEARCH, "--max-accuracy-drop", "1"), "--max-accuracy-drop needs images with labels"),
    ((*SEARCH, "--batch-size", "0"), "batch size must be at least 1"),
    ((*TRAIN, "--data", "nowhere"), NO_FOLDER),
    ((*TRAIN, "--data", "torch/cifar11"), "torch/cifar11 is no data set of torchvision"),
    ((*TRAIN, "--data", "two"), "two has no subfolder train"),
    (("validate", "BUNDLE", "--data", "nowhere"), NO_FOLDER),
    (("validate", "BUNDLE", "--data", "two"), "two has 2 classes, the model 1000 classes"),
    (("report", "BUNDLE", "--data", "nowhere"), NO_FOLDER),
    (("visualize", "BUNDLE", "two/kiwi", "-o", "three.txt/below"), "three.txt/below (Not a directory); choose another -o"),
    (("visualize", "BUNDLE", "two/kiwi", "-o", "/proc/pictures"), "cannot write to /proc/pictures"),
]  # fmt: skip


@pytest.fixture
def folder(cli: CommandLine, make_image_folder: Callable[..., Path]) -> Path:
    """The folder that the commands run in, with what their words name."""
    make_image_folder(("kiwi", "plum"), per_class=2).rename(cli.folder / "two")
    for name in ("empty", "hollow/kiwi", "hollow/plum"):
        (cli.folder / name).mkdir(parents=True)
    (cli.folder / "three.txt").write_text("a\nb\nc\n")
    save_file({"head.weight": np.zeros((7, 128), np.float32)}, cli.folder / "seven.safetensors")
    return cli.folder


def test_before_pytorch_is_imported(folder: Path, cli: CommandLine, nano_fp32: Path) -> None:
    (cli.folder / "tmp").mkdir(exist_ok=True)
    before = snapshot(folder)
    words = [[str(nano_fp32) if word == "BUNDLE" else word for word in line] for line, _ in CASES]
    done = cli.process(json.dumps(words), program=_PROGRAM)
    assert done.status == 0, done.err
    found = [json.loads(line) for line in done.out.splitlines()]
    for (line, message), (said, slow) in zip(CASES, found, strict=True):
        assert message in said, (line, said)
        assert said.startswith("Error: ") and said.count("\n") == 1, (line, said)
        assert slow == [], line
    assert snapshot(folder) == before


def test_a_number_of_classes_that_cannot_be_told_yet_refuses_nothing(
    folder: Path, cli: CommandLine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Heads that differ, or that the header does not show, are for those who load the weights: nothing good is refused."""
    from sit_deploy.models.card_file import head_outputs

    def outputs(**shapes: tuple[int, ...]) -> int | None:
        path = folder / "w.safetensors"
        save_file(
            {name.replace("__", "."): np.zeros(shape, np.float32) for name, shape in shapes.items()}, path
        )
        return head_outputs(path)

    assert outputs(head__weight=(7, 8), aux_head__weight=(9, 8)) == 7
    assert outputs(module__head__fc__weight=(7, 8), head_dist__weight=(9, 8)) == 7
    assert outputs(classifier__weight=(3, 8), decoder__classifier__weight=(4, 8)) is None
    assert outputs(cls_classifier__weight=(3, 8)) is None
    assert outputs(head__weight=(7, 8, 1, 1)) is None
    Image.new("RGB", (8, 8)).save(folder / "no.safetensors", "png")
    assert head_outputs(folder / "no.safetensors") is None

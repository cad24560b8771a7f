"""The extra teacher of a dist token: what it sees, what is said of it, and what is refused."""

from __future__ import annotations

from argparse import Namespace
from pathlib import Path
from typing import Any

import pytest
import timm
import torch

from sit_deploy.errors import InputError
from sit_deploy.models.trainer_config import from_checkpoint
from sit_deploy.preprocessing import Preprocessing
from tests.helpers.train import PLAIN, log_rows
from training import TrainRequest, train
from training.cnn_teacher import load_cnn_teacher
from training.reporter import Silent

IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))


def save_cnn(folder: Path, name: str = "test_resnet", num_classes: int = 3, **more: Any) -> Path:
    torch.manual_seed(3)
    state = timm.create_model(name, num_classes=num_classes).state_dict()
    torch.save({"model": state, **more}, folder / "cnn.pth")
    return folder / "cnn.pth"


def load(path: Path, name: str = "test_resnet", size: int = 48, **options: Any) -> Any:
    return load_cnn_teacher(name, path, 3, Preprocessing.for_model(size), from_checkpoint(path), **options)


def refusal(*args: Any, **options: Any) -> str:
    with pytest.raises(InputError) as caught:
        load(*args, **options)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def seen(normalisation: tuple[torch.Tensor, torch.Tensor], pixels: torch.Tensor) -> torch.Tensor:
    """What the extra teacher gets of pixels that the student sees normalised as ImageNet's."""
    mean, std = (torch.tensor(v).view(1, 3, 1, 1) for v in IMAGENET)
    gain, offset = normalisation
    return (pixels - mean) / std * gain + offset


def test_it_sees_pixels_as_its_own_trainer_says_or_else_as_timm_does(tmp_path: Path) -> None:
    pixels = torch.rand(2, 3, 8, 8)
    by_name = load(save_cnn(tmp_path)).normalisation
    torch.testing.assert_close(seen(by_name, pixels), (pixels - 0.5) / 0.5)
    path = save_cnn(tmp_path, args=Namespace(mean=[0.1, 0.2, 0.3], std=[0.4, 0.5, 0.6]))
    mean, std = (torch.tensor(v).view(1, 3, 1, 1) for v in ((0.1, 0.2, 0.3), (0.4, 0.5, 0.6)))
    torch.testing.assert_close(seen(load(path).normalisation, pixels), (pixels - mean) / std)


def test_the_regnet_of_deit_sees_what_its_students_see(monkeypatch: pytest.MonkeyPatch) -> None:
    """timm's regnety_160, at the normalisation and size of SiT; its 83 million weights are left out."""
    monkeypatch.setattr("training.cnn_teacher.read_checkpoint", lambda path, names: Namespace(state=names))
    for name in ("regnety_160", "regnety_160.deit_in1k"):
        with torch.device("meta"):
            model = timm.create_model(name, num_classes=3)
        with monkeypatch.context() as patch:
            patch.setattr("training.cnn_teacher.timm.create_model", lambda *_, model=model, **__: model)
            extra = load_cnn_teacher(name, Path("r.pth"), 3, Preprocessing.for_model(224), [])
        assert sum(p.numel() for p in extra.model.parameters()) > 80e6 and extra.notes == ()
        gain, offset = extra.normalisation
        assert torch.equal(gain, torch.ones(1, 3, 1, 1)) and not offset.any()


def test_pictures_of_another_size_are_said(tmp_path: Path) -> None:
    path = save_cnn(tmp_path)
    own = timm.data.resolve_model_data_config(timm.create_model("test_resnet"))["input_size"][1]
    assert load(path, size=own).notes == ()
    (note,) = load(path, size=48).notes
    assert "48x48 pixels" in note and f"{own}x{own}" in note


def test_what_cannot_teach(tmp_path: Path) -> None:
    path = save_cnn(tmp_path)
    assert "cannot be used on images of 48x48 pixels" in refusal(path, "vit_tiny_patch16_224")
    assert "cannot be used" in refusal(path, "regnety_160.no_such_tag")
    assert "no_such_tag" in refusal(path, "regnety_160.no_such_tag")
    assert "unknown CNN teacher 'regnety_16'" in refusal(path, "regnety_16")
    assert "does not fit test_resnet with 3 classes" in refusal(save_cnn(tmp_path, num_classes=4))


class Recorder(Silent):
    """Keeps what is said."""

    def __init__(self) -> None:
        self.notes: list[str] = []
        self.warnings: list[str] = []

    def note(self, text: str) -> None:
        self.notes.append(text)

    def warn(self, text: str) -> None:
        self.warnings.append(text)


@pytest.mark.slow
@pytest.mark.usefixtures("small_nano", "no_curves")
def test_a_whole_run_says_how_good_it_is_and_learns_from_it(
    wide_pictures: Path, teacher: Path, tmp_path: Path
) -> None:
    """One that knows nothing is a warning: its classes would be learnt all the same."""
    weights = save_cnn(tmp_path, num_classes=6)
    overrides = tuple({**PLAIN, "epochs": 1, "batch_size": 8}.items())
    reporter = Recorder()
    request = TrainRequest(
        "sit_nano", str(wide_pictures), tmp_path / "run", teacher=teacher / "model.safetensors", cnn_teacher="test_resnet",
        cnn_checkpoint=weights, overrides=overrides, workers=0, log_every=1, device="cpu",
    )  # fmt: skip
    train(request, reporter)
    start = log_rows(request.output, "epoch")[0]
    said = f"Extra teacher test_resnet: top-1 {start['cnn_top1']:.2f} % on the images held out"
    assert start["cnn_top1"] < 50 and any(note.startswith(said) for note in reporter.notes)
    assert any("extra teacher test_resnet is wrong about most images" in text for text in reporter.warnings)
    assert any("48x48 pixels" in note for note in reporter.notes)
    hard = [row["hard"] for row in log_rows(request.output, "step")]
    assert len(hard) > 4 and all(0 < value < 10 for value in hard)

"""What a run leaves behind: weights that suffice to deploy, the best ones, and figures that hold."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, safe_open
from torchvision import transforms

from sit_deploy.graph.deploy_form import to_deploy_form
from sit_deploy.graph.export import export_onnx
from sit_deploy.graph.inspect import count_macs as graph_macs
from sit_deploy.models import create_model, get_config
from sit_deploy.models.card_file import read_card
from sit_deploy.models.cost import cost
from sit_deploy.models.count import count_macs
from sit_deploy.preprocessing import Preprocessing
from tests.helpers.models import whole_model
from tests.helpers.train import CLASSES, PLAIN, log_rows, read_parts
from training import Summary, TrainRequest, train
from training.augment import make_mixing
from training.curves import draw_curves
from training.reporter import Silent

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("small_nano", "no_curves")]

RECIPE = {**PLAIN, "epochs": 3, "batch_size": 8, "lr": 0.03, "clip_grad": 1.0, "token_weight": 1.5}


@pytest.fixture(scope="module")
def student(
    wide_pictures: Path, teacher: Path, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, Summary]:
    """A sit_nano distilled from the teacher; its folder and what the run returned. Do not write into it."""
    output = tmp_path_factory.mktemp("student") / "run"
    request = TrainRequest(
        "sit_nano", str(wide_pictures), output,
        image_size=48, teacher=teacher / "model.safetensors", overrides=tuple(RECIPE.items()), workers=0, seed=3,
    )  # fmt: skip
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("training.summary.draw_curves", draw_curves)
        return output, train(request)


@torch.no_grad()
def independent_logits(name: str, weights: Path, root: Path) -> tuple[torch.Tensor, torch.Tensor]:
    """Return logits and labels of the held-out images, by torchvision's transforms and a bare model."""
    prepare = transforms.Compose(
        [
            transforms.Resize(int(48 / 0.875), transforms.InterpolationMode.BICUBIC),
            transforms.CenterCrop(48),
            transforms.ToTensor(),
            transforms.Normalize((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
        ]
    )
    files = [
        (file, label) for label, c in enumerate(CLASSES) for file in sorted((root / "val" / c).iterdir())
    ]
    images = torch.stack([prepare(Image.open(file).convert("RGB")) for file, _ in files])
    model = create_model(name, img_size=48, num_classes=len(CLASSES))
    state = load_file(weights)
    missing, unexpected = model.load_state_dict(state, strict=False)
    assert not unexpected and all(key.startswith("aux_head.") for key in missing)
    return model.eval()(images), torch.tensor([label for _, label in files])


def top(k: int, logits: torch.Tensor, labels: torch.Tensor) -> float:
    hits = (logits.topk(k, dim=1).indices == labels[:, None]).any(1)
    return 100 * hits.double().mean().item()


# ----------------------------------------------------------------------------------------------------------- figures


def test_the_summary_against_plain_pytorch(
    student: tuple[Path, Summary], teacher: Path, wide_pictures: Path
) -> None:
    folder, summary = student
    ours, labels = independent_logits("sit_nano", folder / "model.safetensors", wide_pictures)
    theirs, _ = independent_logits("lvvit_nano", teacher / "model.safetensors", wide_pictures)
    assert summary.teacher is not None
    assert (summary.images, len(labels)) == (29, 29)
    assert summary.student.top1 == pytest.approx(top(1, ours, labels))
    assert summary.student.top5 == pytest.approx(top(5, ours, labels))
    assert summary.teacher.top1 == pytest.approx(top(1, theirs, labels))
    assert summary.teacher.top5 == pytest.approx(top(5, theirs, labels))
    # figures that say something: neither chance nor all, and not the same on both sides
    assert 30 < summary.student.top1 < 100 and 30 < summary.teacher.top1 < 100
    assert summary.student.top5 != summary.student.top1
    agreement = (ours.argmax(1) == theirs.argmax(1)).double().mean().item()
    assert summary.agreement == pytest.approx(100 * agreement) != 100
    p, q = theirs.double().softmax(1), ours.double().softmax(1)
    assert summary.kl == pytest.approx((p * (p.log() - q.log())).sum(1).mean().item(), rel=1e-4)
    assert summary.retained == pytest.approx(100 * summary.student.top1 / summary.teacher.top1)


def test_the_summary_names_sizes_and_costs(student: tuple[Path, Summary], teacher: Path) -> None:
    folder, summary = student
    assert summary.teacher is not None
    for side, name, tokens in (
        (summary.student, "sit_nano", (9, 4, 2, 1)),
        (summary.teacher, "lvvit_nano", (9,)),
    ):
        assert (side.name, side.tokens) == (name, tokens)
        assert side.macs == cost(get_config(name), 48, len(CLASSES)).macs
    assert summary.student.macs < summary.teacher.macs
    assert (summary.epochs, summary.damaged_images) == (3, 0)
    assert summary.weights == folder / "model.safetensors" and summary.curves == folder / "curves.png"
    assert json.loads((folder / "summary.json").read_text(encoding="utf-8")) == json.loads(
        json.dumps(summary.to_dict())
    )
    with Image.open(summary.curves) as curves:
        assert curves.width > 600
    single = json.loads((teacher / "summary.json").read_text(encoding="utf-8"))
    assert [single[name] for name in ("teacher", "agreement", "kl", "retained")] == [None] * 4


def test_the_log_agrees_with_the_summary(student: tuple[Path, Summary]) -> None:
    folder, summary = student
    epochs = log_rows(folder, "epoch")
    assert [row["epoch"] for row in epochs] == [0, 1, 2, 3]
    best = max(epochs[1:], key=lambda row: (row["top1"], -row["loss"], -row["epoch"]))
    assert (summary.best_epoch, summary.student.top1) == (best["epoch"], best["top1"])
    assert all(row["step"] == 6 * row["epoch"] and row["images"] == 29 for row in epochs)


# ----------------------------------------------------------------------------------------------------------- weights


def test_the_weights_have_what_inference_needs_and_no_more(
    student: tuple[Path, Summary], teacher: Path
) -> None:
    folder, _ = student
    saved = load_file(folder / "model.safetensors")
    assert not [key for key in saved if key.startswith(("rtsm.", "aux_head."))]
    bare = create_model("sit_nano", img_size=48, num_classes=len(CLASSES)).state_dict()
    assert {key for key in bare if not key.startswith("aux_head.")} == saved.keys()
    trained = read_parts(folder)["model"]
    assert [key for key in trained if key.startswith("rtsm.")], "or there was nothing to leave out"
    # it has learnt: what it started from is the teacher
    before = load_file(teacher / "model.safetensors")
    assert not torch.equal(saved["blocks.0.attn.qkv.weight"], before["blocks.0.attn.qkv.weight"])


def test_the_card(student: tuple[Path, Summary], teacher: Path, wide_pictures: Path) -> None:
    folder, summary = student
    card = read_card(folder / "model.safetensors")
    assert card is not None and summary.teacher is not None
    assert (card.name, card.stages, card.keeping_ratio) == ("sit_nano", (1, 1, 1, 1), 0.5)
    assert (card.tokens, card.image_size, card.num_classes) == ((9, 4, 2, 1), 48, 6)
    assert (card.classes, card.dist_token) == (CLASSES, False)
    assert card.preprocessing == Preprocessing.for_model(48, orientation="exif")
    assert (card.metrics["top1"], card.metrics["top5"]) == (summary.student.top1, summary.student.top5)
    assert (card.metrics["images"], card.metrics["epoch"]) == (29, summary.best_epoch)
    assert (card.metrics["teacher_top1"], card.metrics["retained"]) == (
        summary.teacher.top1,
        summary.retained,
    )
    assert (card.metrics["agreement"], card.metrics["kl"]) == (summary.agreement, summary.kl)
    training = card.training
    assert (training["data"], training["seed"], training["averaged"]) == (str(wide_pictures), 3, False)
    assert (training["teacher"], training["teacher_model"]) == (
        str(teacher / "model.safetensors"),
        "lvvit_nano",
    )
    assert {name: training["recipe"][name] for name in RECIPE} == RECIPE
    assert training["total_batch"] == 8
    with safe_open(folder / "model.safetensors", "pt") as file:
        inside = json.loads(file.metadata()["sit_deploy"])
    assert json.loads((folder / "model.json").read_text(encoding="utf-8")) == inside == card.to_dict()


class KeepWeights(Silent):
    """Takes the weights of each epoch as they are on disk when it is over."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.weights, self.top1 = folder, [], []

    def epoch(self, row: dict[str, Any], *_: Any) -> None:
        if row["epoch"]:
            self.weights.append(load_file(self.folder / "model.safetensors"))
            self.top1.append(row["top1"])


@pytest.mark.parametrize("ema_decay", [0.0, 0.05])
def test_the_best_epoch_is_kept_and_not_the_last(
    ema_decay: float, wide_pictures: Path, teacher: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A trained model that after its first epoch is taught wrong classes, fast."""
    passes = 0

    def make(*arguments: Any) -> Any:
        mix = make_mixing(*arguments)

        def mixed(images: torch.Tensor, labels: torch.Tensor) -> Any:
            nonlocal passes
            passes += 1
            return mix(images, labels if passes <= 6 else (labels + 1) % 6)

        return mixed

    monkeypatch.setattr("training.set_up.make_mixing", make)
    recipe = {**RECIPE, "epochs": 5, "ema_decay": ema_decay}
    del recipe["token_weight"]
    reporter = KeepWeights(tmp_path)
    request = TrainRequest(
        "lvvit_nano", str(wide_pictures), tmp_path, image_size=48, init=teacher / "model.safetensors",
        overrides=tuple(recipe.items()), workers=0,
    )  # fmt: skip
    summary = train(request, reporter)
    assert reporter.top1[0] > reporter.top1[-1] + 20, "the lesson was not learnt"
    assert (summary.best_epoch, summary.student.top1) == (1, max(reporter.top1))
    card = read_card(tmp_path / "model.safetensors")
    assert card is not None and (card.metrics["epoch"], card.metrics["top1"]) == (1, reporter.top1[0])
    kept = load_file(tmp_path / "model.safetensors")
    assert all(torch.equal(kept[key], value) for key, value in reporter.weights[0].items())
    last = read_parts(tmp_path)["ema" if ema_decay else "model"]
    assert not torch.equal(kept["head.weight"], last["head.weight"])
    logits, labels = independent_logits("lvvit_nano", tmp_path / "model.safetensors", wide_pictures)
    assert top(1, logits, labels) == pytest.approx(summary.student.top1)


def test_of_epochs_as_accurate_the_one_of_less_loss(pictures: Path, tmp_path: Path) -> None:
    """Where every image is right already, the loss still falls."""
    only = tmp_path / "data"  # two classes far apart
    for part in ("train", "val"):
        for name in CLASSES[::3]:
            shutil.copytree(pictures / part / name, only / part / name)
    recipe = {**PLAIN, "epochs": 4, "batch_size": 4, "clip_grad": 1.0}
    request = TrainRequest("lvvit_nano", str(only), tmp_path / "run", image_size=32, workers=0)
    summary = train(replace(request, overrides=tuple(recipe.items())))
    epochs = log_rows(tmp_path / "run", "epoch")[1:]
    most = max(row["top1"] for row in epochs)
    assert sum(row["top1"] == most for row in epochs) > 1, "no two epochs are as accurate"
    best = min((row for row in epochs if row["top1"] == most), key=lambda row: row["loss"])
    assert summary.best_epoch == best["epoch"]


def test_the_averaged_weights_are_the_ones_that_count(pictures: Path, tmp_path: Path) -> None:
    recipe = {**PLAIN, "epochs": 1, "ema_decay": 0.5}
    request = TrainRequest("lvvit_nano", str(pictures), tmp_path, image_size=32, workers=0)
    train(replace(request, overrides=tuple(recipe.items())))
    kept, parts = load_file(tmp_path / "model.safetensors"), read_parts(tmp_path)
    assert all(torch.equal(value, parts["ema"][key]) for key, value in kept.items())
    assert not torch.equal(parts["ema"]["head.weight"], parts["model"]["head.weight"])
    card = read_card(tmp_path / "model.safetensors")
    assert card is not None and card.training["averaged"]


def test_a_teacher_stays_as_it_was(student: tuple[Path, Summary], teacher: Path) -> None:
    """Its accuracy in the summary of its student is that of its own run: nothing has trained or moved it."""
    own = json.loads((teacher / "summary.json").read_text(encoding="utf-8"))["student"]
    assert student[1].teacher is not None
    assert (own["top1"], own["top5"]) == (student[1].teacher.top1, student[1].teacher.top5)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["CaiT", "NaFlex"])
def test_the_work_of_a_model_that_is_taken_whole_is_counted(name: str) -> None:
    """CaiT's class token is a view of a parameter when it first meets a block."""
    model = whole_model(name)
    graph = export_onnx(to_deploy_form(model), model.img_size)
    counted = count_macs(get_config("cait_xxs24_224"), model)
    assert counted == pytest.approx(graph_macs(graph), rel=0.02)
    assert all(p.requires_grad for p in model.parameters())

"""Whole runs of quantization-aware training: figures are those of the deployed graph, and a plain checkpoint is left."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from sit_deploy.errors import InputError
from sit_deploy.models import load_model, read_card
from sit_deploy.models.card_file import save_weights
from sit_deploy.processes import World
from tests.helpers.rounding import rounded_deploy_form
from tests.helpers.train import (
    PLAIN,
    RICH,
    Stopper,
    assert_same_run,
    log_rows,
    read_parts,
    start,
    start_world,
    words,
)
from training import Summary, TrainRequest, qat, qat_calibration, train
from training.loop import StoppedError
from training.metrics import evaluate
from training.recipes import DIGITS_STUDENT, STUDENTS, recipe_for
from training.reporter import Silent
from training.set_up import set_up

pytestmark = pytest.mark.usefixtures("small_nano", "no_curves")

HERE = World(0, 1, torch.device("cpu"))
RECIPE = {**PLAIN, "epochs": 2, "batch_size": 8, "lr": 0.003, "min_lr": 1e-6, "clip_grad": 1.0}


@pytest.fixture(scope="module")
def student(wide_pictures: Path, teacher: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A sit_nano distilled from the teacher. Do not write into it."""
    output = tmp_path_factory.mktemp("student") / "run"
    overrides = {**RECIPE, "lr": 0.03, "crop_pct": 1.0}
    run_request(wide_pictures, output, teacher, qat=False, image_size=48, overrides=tuple(overrides.items()))
    return output / "model.safetensors"


def make_request(
    pictures: Path, output: Path, teacher: Path | None, init: Path | None = None, **options: Any
) -> TrainRequest:
    own = {"qat": True, "qat_images": 16, "overrides": tuple(RECIPE.items()), "workers": 0, "log_every": 1}
    frozen = teacher / "model.safetensors" if teacher else None
    return TrainRequest("sit_nano", str(pictures), output, teacher=frozen, init=init, **{**own, **options})


def run_request(*args: Any, stop: Silent | None = None, **options: Any) -> Summary:
    return train(make_request(*args, **options), stop)


@pytest.fixture(scope="module")
def recovered(
    wide_pictures: Path, teacher: Path, student: Path, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, Summary]:
    """The student after quantization-aware FRD; every layer rounds, and clips so much that it shows. Do not write into it."""
    output = tmp_path_factory.mktemp("recovered") / "run"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(qat_calibration, "_on_scale", lambda limit: limit / 2)
        return output, run_request(wide_pictures, output, teacher, student, qat_skip=())


@pytest.mark.slow
def test_what_is_left_is_a_plain_checkpoint_with_thresholds_in_its_card(
    recovered: tuple[Path, Summary], student: Path
) -> None:
    from safetensors.torch import load_file

    path = recovered[0] / "model.safetensors"
    before, after = load_file(student), load_file(path)
    assert before.keys() == after.keys()
    moved = {name for name in after if not torch.equal(after[name], before[name])}
    assert {"blocks.0.attn.qkv.weight", "tsm.0.scale", "patch_embed.bn1.weight", "head.bias"} <= moved
    assert not any("running" in name or "tracked" in name for name in moved)  # the statistics are frozen
    card, old = read_card(path), read_card(student)
    assert card is not None and old is not None and old.quantization is None
    assert (card.image_size, card.preprocessing) == (
        48,
        old.preprocessing,
    )  # as it was trained, by crop_pct 1
    model = load_model("sit_nano", path, 48).model
    nodes = {node for names in qat.deployed_layers(model).values() for node in names}
    assert card.quantization is not None and card.quantization["grid"] == "int8"
    assert card.quantization["thresholds"].keys() == nodes
    assert card.training["qat_images"] == 16 and card.training["qat_skip"] == []


@pytest.mark.slow
def test_the_figures_are_those_of_the_quantized_deploy_form(
    recovered: tuple[Path, Summary], student: Path, wide_pictures: Path, teacher: Path
) -> None:
    """Of the file that is left, as a build would read it."""
    folder, summary = recovered
    path = folder / "model.safetensors"
    card = read_card(path)
    run = set_up(make_request(wide_pictures, folder.parent / "x", teacher, student), HERE, Silent())
    form = rounded_deploy_form(load_model("sit_nano", path, 48).model, card.quantization["thresholds"])
    ours = evaluate(form.float(), run.loaders.val, HERE)
    assert summary.student.top1 == ours.top1
    assert card.metrics["loss"] == pytest.approx(ours.loss, rel=5e-3)
    in_float = evaluate(load_model("sit_nano", path, 48).model, run.loaders.val, HERE)
    assert abs(in_float.loss - ours.loss) > 10 * abs(card.metrics["loss"] - ours.loss)


@pytest.mark.slow
def test_the_log_begins_with_the_float_model(recovered: tuple[Path, Summary], student: Path) -> None:
    folder, summary = recovered
    rows = log_rows(folder, "epoch")
    assert rows[0]["epoch"] == 0
    assert rows[0]["float_top1"] == read_card(student).metrics["top1"]
    assert not any("float_top1" in row for row in rows[1:])
    best = max(rows, key=lambda row: (row["top1"], -row["loss"]))
    assert (summary.best_epoch, summary.student.top1) == (best["epoch"], best["top1"])
    assert {"tokens", "logits"} <= log_rows(folder, "step")[0].keys()


@pytest.mark.slow
def test_a_start_that_nothing_betters_is_kept(wide_pictures: Path, student: Path, tmp_path: Path) -> None:
    """Without a teacher, too: the classification loss alone."""
    overrides = tuple({**RECIPE, "lr": 30.0, "epochs": 1}.items())
    summary = run_request(wide_pictures, tmp_path / "run", None, student, overrides=overrides)
    rows = log_rows(tmp_path / "run", "epoch")
    assert rows[1]["top1"] < rows[0]["top1"] == summary.student.top1
    assert summary.best_epoch == 0
    card = read_card(tmp_path / "run" / "model.safetensors")
    assert (
        "stem/conv1" not in card.quantization["thresholds"] and "head" not in card.quantization["thresholds"]
    )
    assert card.training["qat_skip"] == ["stem/*", "head"]


@pytest.mark.slow
def test_a_resumed_run_is_the_uninterrupted_one(
    wide_pictures: Path, teacher: Path, student: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With averaged weights; and it does not calibrate again."""
    few = {"epochs": 1, "warmup_epochs": 0, "cooldown_epochs": 0, "batch_size": 12}
    overrides = tuple({**RICH, "lr": 0.003, **few}.items())

    def go(name: str, **options: Any) -> Summary:
        return run_request(wide_pictures, tmp_path / name, teacher, student, overrides=overrides, **options)

    go("whole")
    with pytest.raises(StoppedError):
        go("parts", stop=Stopper("steps", 3))
    monkeypatch.setattr("training.set_up.calibrate", None)
    go("parts", resume=True)
    assert_same_run(tmp_path / "parts", tmp_path / "whole")
    parts = read_parts(tmp_path / "whole")
    limits = {name: value for name, value in parts["model"].items() if name.endswith(qat.THRESHOLD)}
    assert len(limits) == 22
    assert all(torch.equal(parts["ema"][name], value) for name, value in limits.items())


@pytest.mark.slow
@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"init": None}, "--qat starts from a trained model; pass its weights with --init"),
        ({"qat_images": 0}, "--qat-images must be at least 1, got 0"),
        ({"qat_images": 49}, "48 images to train on, fewer than --qat-images 49; pass fewer"),
        ({"qat_skip": ("neck",)}, "no quantized layer is called 'neck'"),
    ],
)
def test_what_a_run_refuses(
    changes: dict[str, Any], message: str, wide_pictures: Path, student: Path, tmp_path: Path
) -> None:
    with pytest.raises(InputError) as error:
        run_request(wide_pictures, tmp_path / "run", None, **{"init": student, **changes})
    assert message in str(error.value) and "\n" not in str(error.value)
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
def test_it_starts_from_a_trained_student_only(
    wide_pictures: Path, teacher: Path, student: Path, tmp_path: Path
) -> None:
    with pytest.raises(InputError) as error:
        run_request(wide_pictures, tmp_path / "run", teacher, teacher / "model.safetensors")
    words = str(error.value)
    assert words.startswith("--qat starts from a trained sit_nano, and ")
    assert "lacks or does not fit 21 of its weights (tsm.0.scale, tsm.0.weight.0.weight, " in words
    other = tmp_path / "other.safetensors"
    from safetensors.torch import load_file

    card = replace(read_card(student), classes=("ant", "bee", "cat", "dog", "eel", "gnu"))
    save_weights(other, load_file(student), card)
    with pytest.raises(
        InputError, match="was trained on other classes: its class 5 is 'gnu', here it is 'fox'"
    ):
        run_request(wide_pictures, tmp_path / "run", None, other)


def test_another_calibration_is_another_run(tmp_path: Path) -> None:
    (tmp_path / "init").write_bytes(b"weights")
    base = TrainRequest("sit_s", "imagenet/", Path("runs/x"), init=tmp_path / "init", qat=True)
    base.check()
    same = base.identity(512)
    assert json.loads(json.dumps(same)) == same
    for changes in ({"qat": False}, {"qat_images": 64}, {"qat_skip": ()}):
        assert replace(base, **changes).identity(512) != same


def test_recovering_takes_a_small_part_of_the_training() -> None:
    for data, before in (("imagenet/", STUDENTS["sit_s"]), ("digits", DIGITS_STUDENT)):
        after = recipe_for("sit_s", distils=True, from_checkpoint=True, data=data, qat=True)
        after.check()
        assert (
            after.lr == before.lr / 10 and after.epochs < before.epochs / 2 and after.min_lr < after.lr / 10
        )
        assert (after.token_weight, after.repeats) == (before.token_weight, before.repeats)
    request = TrainRequest("sit_s", "imagenet/", Path("x"), qat=True, overrides=(("epochs", 7),))
    assert request.recipe.epochs == 7


@pytest.mark.slow
def test_two_processes_and_one(wide_pictures: Path, teacher: Path, student: Path, tmp_path: Path) -> None:
    """Their thresholds are the same to the bit, and so is what they train, within the rounding of sums."""
    recipe = {**RECIPE, "epochs": 1, "repeats": 2}

    def line(name: str, batch_size: int) -> tuple[object, ...]:
        files = ("--init", student, "--teacher", teacher / "model.safetensors", "--data", wide_pictures)
        options = (
            "--qat",
            "--qat-images",
            11,
            "--qat-skip",
            "",
            "--log-every",
            1,
            "--workers",
            0,
            "--device",
            "cpu",
        )
        recipe_words = words({**recipe, "batch_size": batch_size})
        return ("train", "--model", "sit_nano", *files, *options, "-o", tmp_path / name, *recipe_words)

    children = [
        *start_world(tmp_path / "streams", 2, *line("two", 12)),
        start(tmp_path / "alone", *line("one", 24)),
    ]
    results = [child.wait() for child in children]
    assert [r.status for r in results] == [0, 0, 0], [r.err for r in results]
    two, one = (read_card(tmp_path / name / "model.safetensors").quantization for name in ("two", "one"))
    assert two == one and len(two["thresholds"]) == 28
    for ours, theirs in zip(*(log_rows(tmp_path / name) for name in ("two", "one")), strict=True):
        assert ours.pop("kind") == theirs.pop("kind")
        assert ours == pytest.approx(theirs, rel=2e-3)

"""A student's start: when TSMs are fitted before FRD, that a run resumes with them to the bit, and what it says of them."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from sit_deploy.data.datasets import open_data
from sit_deploy.errors import InputError
from sit_deploy.models.card_file import read_card
from tests.helpers.train import PLAIN, Stopper, assert_same_run, log_rows
from training import TrainRequest, train
from training.loop import StoppedError
from training.recipes import Recipe
from training.warm_start import WarmStart


def request(data: Path | str, output: Path, **options: Any) -> TrainRequest:
    return TrainRequest("sit_nano", str(data), output, **options)


def test_four_times_as_many_images_as_the_run_looks_at() -> None:
    digits = open_data("digits")
    wanted = request("digits", Path("run"), teacher=Path("t.pth"))
    assert WarmStart.of(wanted, Recipe(epochs=3), digits) == WarmStart(4 * 3 * 1437 // 64, 64)
    assert WarmStart.of(wanted, Recipe(epochs=1000), digits).steps == 400
    assert WarmStart.of(wanted, Recipe(epochs=1), digits).steps == 89
    few = SimpleNamespace(train=range(30), streamed=False)
    assert WarmStart.of(wanted, Recipe(epochs=3), few) == WarmStart(12, 30)  # type: ignore[arg-type]
    assert WarmStart.of(wanted, Recipe(epochs=2), few).steps == 0  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("options", "why"),
    [
        ({"teacher": None}, None),
        ({"warm_start": False}, None),
        ({"qat": True, "init": Path("i.pth")}, None),
        ({"init": Path("i.pth")}, "--init"),
        ({"cnn_teacher": "regnety_002", "cnn_checkpoint": Path("c.pth")}, "--cnn-teacher"),
    ],
)
def test_none_where_there_is_nothing_to_fit_to(options: dict[str, Any], why: str | None) -> None:
    wanted = request("digits", Path("run"), **{"teacher": Path("t.pth"), **options})
    start = WarmStart.of(wanted, Recipe(epochs=8), open_data("digits"))
    assert (
        start.steps == 0 and (why is None) == (start.why_not is None) and (why or "") in (start.why_not or "")
    )
    streamed = SimpleNamespace(train=range(3000), streamed=True)
    plain = request("digits", Path("run"), teacher=Path("t.pth"))
    assert "streamed" in str(WarmStart.of(plain, Recipe(), streamed).why_not)  # type: ignore[arg-type]


def test_a_run_of_an_older_version_is_resumed(tmp_path: Path, teacher: Path) -> None:
    """The identity of a run has nothing of a warm start that is on, and says where it is off."""
    file = teacher / "model.safetensors"
    warm = request("digits", tmp_path, teacher=file).identity(64)
    cold = request("digits", tmp_path, teacher=file, warm_start=False).identity(64)
    assert cold == {**warm, "warm_start": False} and "warm_start" not in warm
    assert "warm_start" not in request("digits", tmp_path, warm_start=False).identity(64)


@pytest.mark.slow
@pytest.mark.usefixtures("small_nano", "no_curves")
def test_resumed_to_the_bit_and_said(
    wide_pictures: Path, teacher: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("training.warm_start._LEAST_STEPS", 1)
    recipe = {**PLAIN, "epochs": 4, "batch_size": 16, "lr": 1e-3, "ema_decay": 0.5}

    def run(name: str, stop: Any = None, **options: Any) -> Path:
        wanted = request(
            wide_pictures,
            tmp_path / name,
            teacher=teacher / "model.safetensors",
            overrides=tuple(recipe.items()),
            **{"workers": 0, "resume": True, "log_every": 1, **options},
        )
        train(wanted, stop)
        return tmp_path / name

    whole = run("whole")
    with pytest.raises(StoppedError):
        run("resumed", Stopper("evaluating", 1))
    monkeypatch.setattr("training.set_up.warm_start", lambda *_: pytest.fail("fitted twice"))
    assert_same_run(run("resumed"), whole)
    cold = run("cold", warm_start=False)

    starts = [
        card.training["start"]
        for card in map(read_card, (whole / "model.safetensors", cold / "model.safetensors"))
        if card
    ]
    assert starts[0] == f"{starts[1]}; TSMs fitted in 16 steps (--warm-start)"
    first, other = (log_rows(folder, "epoch")[0] for folder in (whole, cold))
    assert (first["epoch"], other["epoch"]) == (0, 0) and first["loss"] != other["loss"]
    with pytest.raises(InputError, match="warm_start was null and is false"):
        run("whole", warm_start=False)
    state = torch.load(whole / "last.pt", weights_only=True)
    assert state["position"]["fitted"] == 16

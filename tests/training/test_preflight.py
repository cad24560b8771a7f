"""What can fail at the end of a long run is found before its first step."""

from __future__ import annotations

import os
import shutil
from collections import namedtuple
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from engines.install import pip_install
from sit_deploy.data.datasets import ArrayImages, Data, open_data
from sit_deploy.errors import InputError
from sit_deploy.models.card import ModelCard
from sit_deploy.preprocessing import Preprocessing
from tests.helpers.models import tiny_model
from tests.helpers.train import PLAIN, log_rows, read_parts
from training import TrainRequest, train
from training.loop import DivergedError
from training.preflight import (
    check_card,
    check_space,
    warn_of_one_class,
    warn_of_threads,
    warn_of_training_images,
)
from training.reporter import Silent

pytestmark = pytest.mark.usefixtures("small_nano", "no_curves")


def request(pictures: Path | str, output: Any, **options: Any) -> TrainRequest:
    overrides = tuple({**PLAIN, "epochs": 1}.items())
    wanted = {"image_size": 32, "overrides": overrides, "workers": 0, **options}
    return TrainRequest("lvvit_nano", str(pictures), output, **wanted)


class Untrained(Silent):
    """A reporter that fails where anything is trained or evaluated."""

    def steps(self, *_: Any) -> None:
        raise AssertionError("it has started")

    evaluating = epoch = steps


def refusal(wanted: TrainRequest) -> str:
    with pytest.raises(InputError) as error:
        train(wanted, Untrained())
    message = str(error.value)
    assert "\n" not in message and not Path(wanted.output).exists()
    return message


# ------------------------------------------------------------------------------------------------------------ the end


def test_a_class_whose_name_no_card_can_hold() -> None:
    card = ModelCard("sit_nano", (5, 1, 1, 1), 0.5, (9, 4, 2, 1), 48, 2, Preprocessing.for_model(48))
    check_card(replace(card, classes=("ant", "föx")))
    with pytest.raises(InputError) as error:
        check_card(replace(card, classes=("ant", os.fsdecode(b"f\xf6x"))))
    assert "class 'f\\udcf6x' is no UTF-8" in str(error.value) and "rename its folder" in str(error.value)
    with pytest.raises(InputError, match="the model card cannot be written"):
        check_card(replace(card, training={"data": os.fsdecode(b"d\xe4ta")}))


def test_a_name_that_is_no_utf8_is_refused_before_any_work(pictures: Path, tmp_path: Path) -> None:
    assert "no UTF-8" in refusal(request(pictures, tmp_path / os.fsdecode(b"r\xfcn")))


Usage = namedtuple("Usage", ("total", "used", "free"))


def test_a_disk_without_room(pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda _: Usage(10**12, 10**12, 2_000_000))
    message = refusal(request(pictures, tmp_path / "run"))
    assert message.startswith(
        f"{tmp_path / 'run'} has 2.0 MB free, and the weights and the state of this run take about "
    )


def test_what_is_there_already_needs_no_room(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny_model()
    plain = sum(t.numel() * 4 for t in model.state_dict().values())
    monkeypatch.setattr(shutil, "disk_usage", lambda _: Usage(0, 0, 5 * plain))
    with pytest.raises(InputError, match="free some space"):
        check_space(tmp_path, model, averaged=False)  # about twice 1 + 3 of them
    (tmp_path / "last.pt").write_bytes(bytes(4 * plain))
    check_space(tmp_path, model, averaged=False)

    def unknown(_: object) -> None:
        raise OSError

    monkeypatch.setattr(shutil, "disk_usage", unknown)
    check_space(tmp_path / "nowhere", model, averaged=True)


@pytest.mark.parametrize("package", ["matplotlib", "tensorboard"])
def test_packages_of_the_end(
    package: str, pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("training.request.find_spec", lambda name: None if name == package else object())
    assert f"needs the package {package}; run {pip_install(package)}" in refusal(
        request(pictures, tmp_path / "run", tensorboard=True)
    )


def test_curves_that_cannot_be_drawn_take_nothing_from_a_run(
    pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(*_: object) -> None:
        raise RuntimeError("no font\nof that name")

    class Warned(Silent):
        said = ""

        def warn(self, text: str) -> None:
            self.said += text

    monkeypatch.setattr("training.summary.draw_curves", fails)
    reporter = Warned()
    train(request(pictures, tmp_path / "run"), reporter)
    assert "the curves could not be drawn (no font of that name)" in reporter.said
    assert (tmp_path / "run" / "summary.json").exists()


def test_a_loss_on_held_out_images_that_is_not_finite(
    pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from training import loop

    def evaluate(*args: Any, **options: Any) -> Any:
        return replace(original(*args, **options), loss=float("nan"))

    original = loop.evaluate
    with monkeypatch.context() as patched:
        patched.setattr(loop, "evaluate", evaluate)
        with pytest.raises(
            DivergedError, match="the loss on held-out images is not finite after step 0 of epoch 1"
        ):
            train(request(pictures, tmp_path / "run"))
    train(request(pictures, tmp_path / "run", resume=True))
    assert len(log_rows(tmp_path / "run", "epoch")) == 2


# ------------------------------------------------------------------------------------------------- states and measures


def test_a_state_with_a_nan_is_named(pictures: Path, tmp_path: Path) -> None:
    train(request(pictures, tmp_path / "run"))
    last = tmp_path / "run" / "last.pt"
    content = torch.load(last, weights_only=True)
    content["parts"]["model"]["blocks.3.mlp.fc1.weight"][0, 0] = float("nan")
    torch.save(content, last)
    with pytest.raises(InputError) as error:
        train(request(pictures, tmp_path / "run", resume=True), Untrained())
    assert "blocks.3.mlp.fc1.weight" in str(error.value) and str(last) in str(error.value)


def test_parts_of_one_class_are_said() -> None:
    pixels = np.zeros((3, 8, 8), np.uint8)
    two, one = ArrayImages(pixels, np.array([0, 1, 0])), ArrayImages(pixels, np.array([1, 1, 1]))
    assert warn_of_one_class(Data("d", two, two, ["a", "b"], 2)) == []
    assert warn_of_one_class(Data("d", two, one, ["a", "b"], 2)) == [
        "all 3 images held out are of one class, b: accuracy says nothing"
    ]
    assert len(warn_of_one_class(Data("d", one, one, None, 2))) == 2


CPU = torch.device("cpu")


def test_more_threads_than_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0, 1, 2, 3}, raising=False)
    monkeypatch.setattr("engines.cpu.quota", lambda: None)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 4)
    assert warn_of_threads(CPU, 3) == []  # what one process takes by default
    assert warn_of_threads(torch.device("cuda"), 8) == []
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")
    [warning] = warn_of_threads(CPU, 1)
    assert warning == (
        "8 threads of 2 processes compute on 4 CPUs, which can take many times as long; start again with OMP_NUM_THREADS=2 in the "
        "environment"
    )
    monkeypatch.setattr(torch, "get_num_threads", lambda: 2)
    assert warn_of_threads(CPU, 1) == []
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "8")
    assert warn_of_threads(CPU)[0].endswith("start again with --nproc-per-node 4")
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")
    assert warn_of_threads(torch.device("cuda"), 5) == [
        "10 workers of 2 processes decode images on 4 CPUs; pass --workers 2"
    ]


def test_a_limit_of_the_container_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    """PyTorch takes as many threads as there are CPUs, whatever the container may use of them."""
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(64)), raising=False)
    monkeypatch.delenv("LOCAL_WORLD_SIZE", raising=False)
    monkeypatch.setattr("engines.cpu.quota", lambda: 3.5)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 64)
    [warning] = warn_of_threads(CPU)
    assert warning.startswith(
        "64 threads compute on 4 CPUs (the limit of this container or control group; 64 are there), which"
    )
    assert "OMP_NUM_THREADS=4 in the environment" in warning
    monkeypatch.setattr(torch, "get_num_threads", lambda: 4)
    assert warn_of_threads(CPU) == []


# ------------------------------------------------------------------------------------------------------------- types


def test_natural_types_are_taken(pictures: Path, tmp_path: Path) -> None:
    """A path as text, numbers of NumPy, lists."""
    overrides = [*({**PLAIN, "epochs": np.int64(1), "lr": np.float32(0.125)}).items()]
    wanted = request(
        str(pictures), str(tmp_path / "run"), overrides=overrides, image_size=np.int32(32), seed=np.uint8(3)
    )
    assert wanted.output == tmp_path / "run" and (wanted.recipe.epochs, wanted.recipe.lr) == (1, 0.125)
    assert train(wanted).weights == tmp_path / "run" / "model.safetensors"
    assert read_parts(tmp_path / "run")


@pytest.mark.parametrize(
    "options",
    [{"workers": "4"}, {"seed": 1.5}, {"teacher": 7}, {"stages": "9,3"}, {"resume": "yes"}, {"overrides": 3}, {"data_dir": [1]}],
)  # fmt: skip
def test_other_types_are_refused_in_a_line(options: dict[str, Any], tmp_path: Path) -> None:
    with pytest.raises(InputError) as error:
        request("x", tmp_path, **options)
    assert next(iter(options)).replace("_", " ") in str(error.value) and "\n" not in str(error.value)


def test_what_is_no_request() -> None:
    with pytest.raises(
        InputError, match=r"^train\(\): missing a required argument: 'data'; .* or one TrainRequest"
    ):
        train({"model": "sit_s"})


def test_held_out_files_that_are_trained_on_too_are_counted(tmp_path: Path) -> None:
    for part, name, color in (
        ("train", "a/1.png", 1), ("train", "b/1.png", 2), ("train", "b/3.png", 3),
        ("val", "a/1.png", 1), ("val", "b/1.png", 9), ("val", "b/4.png", 3),
    ):  # fmt: skip
        path = tmp_path / part / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (8, 8), (color, 0, 0)).save(path)
    assert warn_of_training_images(open_data(str(tmp_path))) == [
        f"1 of 3 images held out are trained on too ({tmp_path}/val/a/1.png, ...): accuracy says little; hold out others"
    ]
    (tmp_path / "val/a/1.png").unlink()
    Image.new("RGB", (8, 8), (7, 0, 0)).save(tmp_path / "val/a/1.png")
    assert warn_of_training_images(open_data(str(tmp_path))) == []
    (tmp_path / "val/b/3.png").symlink_to(tmp_path / "train/b/3.png")
    assert "1 of 4" in warn_of_training_images(open_data(str(tmp_path)))[0]
    assert warn_of_training_images(open_data("digits")) == []

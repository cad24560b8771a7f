"""Pictures that carry a turn which the model does not apply are counted, in every command that looks at pictures."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from sit_deploy.bundle import load_bundle
from sit_deploy.data.ignored_orientation import ignored_orientation_note
from sit_deploy.errors import InputError
from sit_deploy.inference import load
from sit_deploy.preprocessing import Preprocessing, load_image
from tests.helpers.command_line import CommandLine
from tests.helpers.noise_pictures import picture
from tests.sit_deploy.conftest import CLASSES, Trained
from tests.sit_deploy.test_preprocessing import turned

STORED = Preprocessing.for_model(32)


@pytest.fixture
def phone(tmp_path: Path) -> Path:
    """A picture of each class, two of them with a turn."""
    for i in range(len(CLASSES)):
        name = str(i)
        (tmp_path / "phone" / name).mkdir(parents=True)
        turned(picture(90, 60), (6, 1, 3, 1, 0, 9, 1)[i], tmp_path / "phone" / name / "a.jpg")
    return tmp_path / "phone"


@pytest.mark.parametrize("ending", ["jpg", "png", "webp", "avif", "mpo"])
def test_turns_are_read_from_the_heads_of_files(ending: str, tmp_path: Path) -> None:
    lying, upright = (turned(picture(20, 10), o, tmp_path / f"{o}.{ending}") for o in (8, 1))
    note = ignored_orientation_note([lying, upright, lying], STORED, "build it with")
    assert note is not None and note.startswith(
        "EXIF: 2 of 3 pictures carry an EXIF orientation that is not applied"
    )
    assert "build it with --orientation exif" in note
    assert ignored_orientation_note([(upright, 3)], STORED, "") is None
    exif = Preprocessing.for_model(32, orientation="exif")
    assert ignored_orientation_note([lying], exif, "") is None


def test_what_decoding_turns_or_cannot_read_is_not_counted(tmp_path: Path) -> None:
    tiff = turned(picture(20, 10), 6, tmp_path / "a.tif")
    (tmp_path / "no.jpg").write_bytes(b"no image")
    os.mkfifo(tmp_path / "pipe.jpg")
    paths = [tiff, tmp_path / "no.jpg", tmp_path / "pipe.jpg", tmp_path / "gone.jpg", tmp_path, picture(3, 4)]
    assert ignored_orientation_note(paths, STORED, "") is None


def test_a_data_set_without_files_has_some_of_its_pictures_looked_at(tmp_path: Path) -> None:
    lying = load_image(turned(picture(20, 10), 6, tmp_path / "a.jpg"))

    class Pictures(Sequence):
        def __len__(self) -> int:
            return 1000

        def __getitem__(self, index: Any) -> tuple[Image.Image, int]:
            if index == 0:
                raise InputError("damaged")
            return lying, 0

    note = ignored_orientation_note(Pictures(), STORED, "")
    assert note is not None and note.startswith("EXIF: 63 of 63 pictures")


@pytest.mark.slow
def test_commands_say_it_once(trained: Trained, phone: Path, cli: CommandLine) -> None:
    bundle = trained.bundle
    for words in (
        ("predict", bundle, phone),
        ("validate", bundle, "--data", phone),
        ("visualize", bundle, phone / "0", "-o", "drawn"),
    ):
        result = cli(*words, "--checkpoint", trained.checkpoint) if words[0] != "predict" else cli(*words)
        count = "1 of 1 picture" if words[0] == "visualize" else f"2 of {len(CLASSES)} pictures"
        told = " ".join((result.out + result.err).split())
        assert told.count("EXIF orientation that is not applied") == 1 and f"EXIF: {count}" in told


@pytest.mark.slow
def test_validate_turns_them_where_it_is_asked_to(trained: Trained, phone: Path, cli: CommandLine) -> None:
    words = ("validate", trained.bundle, "--data", phone)
    plain = cli(*words, "--json").json()["accuracy"]
    assert plain["turned"].startswith("EXIF: 2 of") and not plain["preprocessing_overridden"]
    found = cli(*words, "--orientation", "exif", "--crop-pct", 1, "--json").json()["accuracy"]
    assert found["turned"] is None and found["preprocessing_overridden"]
    ours = load_bundle(trained.bundle).preprocessing().to_dict()
    assert found["preprocessing"] == {**ours, "orientation": "exif", "resize": 112}
    assert found["preprocessing_source"]["orientation"] == "the options, against the bundle"
    assert found["preprocessing_source"]["mean"] == plain["preprocessing_source"]["mean"]
    loud = cli(*words, "--mean", "0.5").out
    assert "not those of the bundle as it stands" in " ".join(loud.split())
    message = cli.refuses(*words, "--mean", "0.5", "--max-accuracy-drop", 1)
    assert "--max-accuracy-drop is for the bundle as it is" in message
    assert "pass --data DIR" in cli.refuses("validate", trained.bundle, "--mean", "0.5")
    assert "write for example 0.485,0.456,0.406" in cli(*words, "--mean", "0.5,0.5", status=2).err


def test_old_bundles_do_not_say_who_chose(
    trained: Trained, cli: CommandLine, monkeypatch: pytest.MonkeyPatch
) -> None:
    manifest = load_bundle(trained.bundle).manifest
    told = cli("inspect", trained.bundle).out
    assert "preprocessing: mean 0.485 0.456 0.406" in told and "(from " in told
    assert set(manifest.preprocessing_source) == {
        "mean",
        "std",
        "crop_mode",
        "crop_pct",
        "interpolation",
        "orientation",
    }
    from sit_deploy.report.view import preprocessing_words

    assert "from" not in preprocessing_words(manifest.preprocessing, None)
    with load(trained.bundle) as classify:
        assert classify.bundle.preprocessing().orientation == "stored"

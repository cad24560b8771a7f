from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from sit_deploy.validation import report as module
from tests.helpers.command_line import CommandLine
from tests.sit_deploy.conftest import Trained
from tests.sit_deploy.report.conftest import Page

pytestmark = pytest.mark.slow

NO_TIMING = ("--rounds", 0)


@pytest.fixture(autouse=True)
def few_images(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where no images are given."""
    monkeypatch.setattr("sit_deploy.validation.stages.SYNTHETIC", 4)


def test_a_bundle_with_images(trained: Trained, cli: CommandLine) -> None:
    words = ("report", trained.bundle, "--data", trained.images, *NO_TIMING)
    result = cli(*words, "-o", "out.html", "-o", "out.md", "-o", "out.json", "--json")
    found = result.json()
    assert found["reports"] == ["out.html", "out.md", "out.json"]
    (row,) = found["bundles"]
    assert row["accuracy"]["images"] == 11 and row["verdict"]["outcome"] == "not enough evidence"
    page = Page((cli.folder / "out.html").read_text())
    assert row["verdict"]["headline"] in page.text and "11 labelled images" in page.text
    assert json.loads((cli.folder / "out.json").read_text())["bundles"] == [row]
    assert {path.name for path in cli.folder.iterdir()} == {"out.html", "out.md", "out.json", "tmp"}


def test_a_folder_of_bundles_and_an_earlier_report(
    trained: Trained, nano_fp32: Path, cli: CommandLine
) -> None:
    """The page of both is made of one that is measured, and of what a JSON file says of the other."""
    shutil.copytree(trained.bundle, cli.folder / "bundles" / "mine")
    (cli.folder / "bundles" / "notes").mkdir()
    cli("report", "bundles", *NO_TIMING, "-o", "mine.json")
    out = cli("report", "mine.json", "-o", "again.html").out
    assert "mine: Do not ship it." in out or "mine: Not enough evidence" in out
    assert "deploy form" in out and "again.html" in out
    refused = cli("report", "mine.json", nano_fp32, *NO_TIMING, "-o", "both.html", status=2)
    assert "tell other classes apart (7 and 1000)" in refused.the_error()
    assert (
        len(refused.err.splitlines()) == 1 and not (cli.folder / "both.html").exists()
    )  # nothing was measured
    assert "is there twice" in cli("report", "mine.json", "mine.json", "-o", "both.md", status=2).the_error()


def test_limits(trained: Trained, cli: CommandLine) -> None:
    words = ("report", trained.bundle, "--data", trained.images, *NO_TIMING, "-o", "out.md")
    result = cli(*words, "--max-accuracy-drop", 1, status=1)
    assert result.complaints[-1].startswith("Error: bundle: not enough evidence: PyTorch has 45.45 % top-1")
    assert (cli.folder / "out.md").exists()  # the page says why


def test_bad_input(trained: Trained, cli: CommandLine, monkeypatch: pytest.MonkeyPatch) -> None:
    def never(*_: Any, **__: Any) -> None:
        raise AssertionError("work was begun")

    monkeypatch.setattr("sit_deploy.validation.report.gather", never)
    (cli.folder / "empty").mkdir()
    (cli.folder / "taken.html").write_text("mine")
    assert "empty has no bundle in it; make one with `sit-deploy build" in cli.refuses("report", "empty")
    assert "no such folder" in cli.refuses("report", "nowhere")
    assert "gone.json cannot be read" in cli.refuses("report", "gone.json")
    for output, words in (
        ("out.pdf", "must end in .html, .md or .json"),
        ("taken.html", "exists; pass --force to replace it"),
        ("nowhere/out.html", "nowhere does not exist"),
    ):
        assert words in cli.refuses("report", trained.bundle, "-o", output)
    assert "--images is for images with labels" in cli.refuses("report", trained.bundle, "--images", 3)


def test_images_left_out_are_no_images_measured(trained: Trained, cli: CommandLine) -> None:
    images = Path(shutil.copytree(trained.images, cli.folder / "images"))
    next(images.rglob("*.png")).write_bytes(b"no picture")
    cli("report", trained.bundle, "--data", images, "--max-damaged", 1, *NO_TIMING, "-o", "less.md")
    page = (cli.folder / "less.md").read_text()
    assert "Every hop on the same 10 labelled images" in page and "10 images of" in page
    assert "timed turn about" not in page  # nothing was timed


def test_files_that_are_no_images_are_told_before_any_work(
    trained: Trained, cli: CommandLine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It prepared every hop first, for twenty seconds."""
    images = Path(shutil.copytree(trained.images, cli.folder / "images"))
    broken = next(images.rglob("*.png"))
    broken.write_bytes(b"no picture")
    monkeypatch.setattr(
        "sit_deploy.validation.report.gather", lambda *_, **__: pytest.fail("it was measured first")
    )
    refused = cli.refuses("report", trained.bundle, "--data", images, *NO_TIMING, "-o", "less.html")
    assert "more than --max-damaged 0" in refused and broken.name in refused


def test_nothing_is_left_of_a_report_that_failed(
    trained: Trained, cli: CommandLine, make_image_folder: Callable[..., Path]
) -> None:
    other = make_image_folder(("kiwi", "plum"))
    message = cli.refuses("report", trained.bundle, "--data", other, *NO_TIMING)
    assert "2 classes, the model 7 classes" in message


def test_every_form_has_its_ending() -> None:
    assert set(module._FORMS.values()) == {"html", "md", "json"}


def test_a_bundle_that_gives_embeddings(nano_embeddings: Path, trained: Trained, cli: CommandLine) -> None:
    """Random weights are no model, however near the engine is; what was measured is told all the same."""
    words = ("report", nano_embeddings, "--data", trained.images, *NO_TIMING, "-o", "out.html")
    told = " ".join(cli(*words).out.split())
    assert "Do not ship it." in told and "nearest right %" in told and "cosine" in told
    images = Path(shutil.copytree(trained.images, cli.folder / "images"))
    next(images.rglob("*.png")).write_bytes(b"no picture")
    refused = cli.refuses("report", nano_embeddings, "--data", images, *NO_TIMING, "-o", "less.html")
    assert "more than --max-damaged 0" in refused
    less = cli("report", nano_embeddings, "--data", images, "--max-damaged", 1, *NO_TIMING, "-o", "less.md")
    for text in (less.out, (cli.folder / "less.md").read_text()):
        assert "1 image cannot be read and was left out" in " ".join(text.split())
    assert "and of PyTorch is 1.000000 at the least" in told and "SQNR" not in told
    assert "its weights are random" in cli(*words, "--force", "--max-accuracy-drop", 1, status=1).err.lower()

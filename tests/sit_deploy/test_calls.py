"""Functions of a request take its fields as keywords too, and show their progress where that is asked for."""

from __future__ import annotations

import inspect
import re
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import pytest

import sit_deploy
from sit_deploy.calls import show_progress, shows, takes_options
from sit_deploy.embeddings import EmbedRequest
from sit_deploy.pipeline.request import BuildRequest
from sit_deploy.validation.report import ReportRequest
from sit_deploy.validation.validate import ValidateRequest

REQUESTS = {
    "build": BuildRequest, "export": BuildRequest, "calibrate": BuildRequest, "validate": ValidateRequest, "embed": EmbedRequest,
    "write_report": ReportRequest, "train": "TrainRequest", "slim": "SlimRequest",
}  # fmt: skip


@dataclass(frozen=True)
class Order:
    """What to cook.

    Attributes:
        dish: its name.
    """

    dish: str
    plates: int = 1


Tell = Callable[[str, int, int], None]


@takes_options(Order, progress=lambda shown: shown.step)
def cook(order: Order, progress: Tell | None = None) -> list[Any]:
    """Cook."""
    inner = serve(1)
    if progress:
        progress(f"Cooking {order.dish}", 1, 1)
    return [order, progress is not None, inner]


@shows(progress=lambda shown: shown.step)
def serve(plates: int, *, progress: Tell | None = None) -> bool:
    if progress:
        progress("Serving", plates, plates)
    return progress is not None


@pytest.fixture(autouse=True)
def silent_again() -> Iterator[None]:
    with show_progress(False):
        yield


def test_a_request_or_its_options() -> None:
    for found in (
        cook(Order("soup", 2)),
        cook("soup", 2),
        cook("soup", plates=2),
        cook(plates=2, dish="soup"),
    ):
        assert found == [Order("soup", 2), False, False]


def test_options_that_there_are_not() -> None:
    call: Any = cook
    for words, options, message in (
        ((), {"dihs": "soup"}, r"^cook\(\) has no option 'dihs'; did you mean 'dish'\?$"),
        (("soup",), {"wwwww": 1}, r"^cook\(\) has no option 'wwwww'; help\(sit_deploy\.Order\) lists them$"),
        (
            (),
            {},
            r"^cook\(\): missing a required argument: 'dish'; pass the options of Order as keywords, or one Order",
        ),
        (("soup", 1, 2), {}, r"^cook\(\): too many positional arguments; pass"),
        (("soup",), {"dish": "tea"}, r"^cook\(\): multiple values for argument 'dish'; pass"),
    ):
        with pytest.raises(sit_deploy.InputError, match=message):
            call(*words, **options)


def test_a_value_of_the_recipe_is_told_its_place() -> None:
    train: Any = sit_deploy.train
    with pytest.raises(
        sit_deploy.InputError,
        match=r"'epochs', which is a value of the recipe; pass overrides=\{'epochs': VALUE\}",
    ):
        train("lvvit_nano", "digits", epochs=1)
    request = sit_deploy.TrainRequest("lvvit_nano", "digits", overrides={"epochs": 1, "lr": 1e-4})
    assert request.overrides == (("epochs", 1), ("lr", 1e-4))


def test_progress_is_shown_where_that_is_asked_for(capsys: pytest.CaptureFixture[str]) -> None:
    assert cook("soup")[1:] == [False, False] and serve(1) is False
    assert capsys.readouterr().err == ""
    assert (
        repr(show_progress()) == "progress is shown" and repr(show_progress(False)) == "progress is not shown"
    )
    with show_progress():
        assert cook("soup")[1:] == [True, False]  # what it calls says nothing of its own
        assert cook(Order("tea"))[1:] == [True, False]
        assert serve(3) is True
        with show_progress(False):
            assert cook("soup")[1:] == [False, False]
        assert serve(1) is True
    said = re.sub(r"\d\.\d s", "N s", capsys.readouterr().err)
    assert said == "Cooking soup (N s)\nCooking tea (N s)\nServing (N s)\nServing (N s)\n"
    assert serve(1) is False


def test_who_watches_by_himself_is_shown_nothing_else(capsys: pytest.CaptureFixture[str]) -> None:
    steps: list[Any] = []
    show_progress()
    cook(Order("soup"), lambda *step: steps.append(step))
    cook(Order("tea"), progress=lambda *step: steps.append(step))
    serve(2, progress=lambda *step: steps.append(step))
    call: Any = cook
    call("rice", progress=lambda *step: steps.append(step))
    assert [step[0] for step in steps] == ["Cooking soup", "Cooking tea", "Serving", "Cooking rice"]
    assert capsys.readouterr().err == ""


def test_one_of_two_threads_is_shown() -> None:
    inside, done = threading.Event(), threading.Event()
    found: list[bool] = []

    @shows(progress=lambda shown: shown.step)
    def waits(*, progress: Tell | None = None) -> None:
        found.append(progress is not None)
        inside.set()
        done.wait(10)

    show_progress()
    thread = threading.Thread(target=waits)
    thread.start()
    assert inside.wait(10)
    assert serve(1) is False
    done.set()
    thread.join()
    assert found == [True] and serve(1) is True


@pytest.mark.parametrize("name", REQUESTS)
def test_help_lists_the_options(name: str) -> None:
    function = getattr(sit_deploy, name)
    request = REQUESTS[name]
    request = getattr(sit_deploy, request) if isinstance(request, str) else request
    parameters = inspect.signature(function).parameters
    assert {field.name for field in fields(request)} < set(parameters)
    assert {"progress", "reporter"} & set(parameters)
    assert "Attributes:" in function.__doc__ and f"or in one `{request.__name__}`" in function.__doc__


def test_a_bundle_stands_for_its_path(nano_fp32: Path, tmp_path: Path) -> None:
    bundle: Any = sit_deploy.load_bundle(nano_fp32)
    validate: Any = sit_deploy.validate
    assert validate(bundle).golden == validate(str(nano_fp32)).golden
    assert sit_deploy.ReportRequest(bundle).sources == (nano_fp32,)
    assert sit_deploy.load_bundle(bundle).path == nano_fp32
    with pytest.raises(sit_deploy.InputError, match="--max-accuracy-drop and --min-agreement need images"):
        validate(bundle, min_agreement=99)


def test_a_step_of_a_real_one_is_shown(
    nano_fp32: Path, tmp_path: Path, trained: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    embed: Any = sit_deploy.embed
    with sit_deploy.show_progress():
        embed(nano_fp32, trained.images, tmp_path / "a.npz")
    err = capsys.readouterr().err
    assert "11 images: logits" in err and re.search(r"embedding images \(\d+\.\d s\)\n", err)

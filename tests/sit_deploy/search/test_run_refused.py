"""Searches that are refused: what contradicts itself, models that slim already, and too few images."""

import pytest
from click.testing import CliRunner
from PIL import Image

from sit_deploy.cli.search import command
from sit_deploy.data.damaged import DamagedImages
from sit_deploy.data.synthetic import synthetic_images
from sit_deploy.errors import InputError
from sit_deploy.pipeline.request import BuildRequest
from sit_deploy.preprocessing import Preprocessing
from sit_deploy.search.images import open_images
from sit_deploy.search.request import SearchRequest
from sit_deploy.search.run import search
from tests.helpers.damaged import add_damaged
from tests.helpers.searches import search_request


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"latency": None}, "pass --latency MS or --speedup X"),
        ({"speedup": 2.0}, "not both"),
        ({"latency": 0.0}, "above 0 ms"),
        ({"latency": float("nan")}, "above 0 ms"),
        ({"latency": None, "speedup": 1.0}, "asks for nothing"),
        ({"latency": None, "speedup": 0.5}, "asks for nothing"),
        ({"latency": None, "speedup": 1e9}, "at most 1000"),
        ({"method": "tsm"}, "needs training"),
        ({"method": "prune"}, "choose transform or merge"),
        ({"max_accuracy_drop": 1.0}, "needs images with labels"),
        ({"seconds": 0.0}, "--seconds must be 1 to"),
        ({"finalists": 0}, "--finalists must be 1 to"),
        ({"most_stages": 1}, "--max-stages must be 2 to"),
        ({"most_stages": 9}, "--max-stages must be 2 to 8, got 9"),
    ],
)
def test_what_contradicts_itself_is_refused(tmp_path, changes, words):
    with pytest.raises(InputError, match=words):
        search_request(tmp_path / "found", **changes)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("option", ["split", "image_key", "label_key"])
def test_what_is_said_of_labels_needs_some(tmp_path, photos, option):
    build = BuildRequest("lvvit_nano", None, **{option: "val"})
    with pytest.raises(
        InputError, match=f"--{option.replace('_', '-')} says which labelled images.*pass --data"
    ):
        search_request(tmp_path / "found", photos, build=build)


def test_stages_are_what_is_searched_for(tmp_path):
    with pytest.raises(InputError, match="--stages is what is searched for"):
        SearchRequest(build=BuildRequest("lvvit_nano", None, stages=(4, 4)), output=tmp_path, latency=1.0)


@pytest.mark.slow
def test_a_model_that_slims_already_is_refused(tmp_path):
    build = BuildRequest("sit_nano", None, engine="onnxruntime")
    with pytest.raises(InputError, match="sit_nano slims already"):
        search(SearchRequest(build=build, output=tmp_path / "found", latency=1.0))


@pytest.mark.slow
def test_few_images_tell_nothing(tmp_path):
    (tmp_path / "few").mkdir()
    for i in range(3):
        Image.new("RGB", (32, 32), (i, 0, 0)).save(tmp_path / "few" / f"{i}.png")
    with pytest.raises(InputError, match="3 images, from which nothing can be told"):
        search(search_request(tmp_path / "found", data=str(tmp_path / "few")))
    assert not (tmp_path / "found").exists()


def test_the_command_says_what_it_needs(tmp_path):
    result = CliRunner().invoke(command, ["--model", "lvvit_nano", "-o", str(tmp_path / "found")])
    assert isinstance(result.exception, InputError) and "pass --latency MS" in str(result.exception)


def test_what_is_interrupted_says_that_it_goes_on(tmp_path, monkeypatch):
    def stopped(request, _):
        request.output.mkdir()
        raise KeyboardInterrupt

    monkeypatch.setattr("sit_deploy.search.run.search", stopped)
    words = ["--model", "lvvit_nano", "--latency", "1", "-o", str(tmp_path / "found")]
    error = CliRunner().invoke(command, words).exception
    assert str(error).endswith("found keeps what was measured and tried: the same command goes on from there")


def test_too_few_images_are_left(tmp_path):
    for i, image in enumerate(synthetic_images(7, 32)):
        image.save(tmp_path / f"{i}.png")
    add_damaged(tmp_path)
    with pytest.raises(InputError, match=r"has 7 images that can be read, from which nothing can be told"):
        open_images(tmp_path, None, Preprocessing.for_model(32), DamagedImages())

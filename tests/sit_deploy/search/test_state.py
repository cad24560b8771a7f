"""The file of scores: what is written is what is read, and nothing else is taken for it."""

import json

import pytest

from sit_deploy.errors import InputError
from sit_deploy.latency.schedule import Schedule
from sit_deploy.search.scored import Score
from sit_deploy.search.state import ScoreFile

SCORES = {
    (Schedule((2, 6), (49, 24)), 0): Score(0.123456789012345, 0.5, 16),
    (Schedule((2, 6), (49, 24)), 2): Score(0.1, 0.75, 64, 88.5),
}


def test_what_was_saved_is_known_again(tmp_path):
    path = tmp_path / "scores.json"
    ScoreFile(path, "k").save((16, 32, 64), SCORES)
    again = ScoreFile(path, "k")
    assert again.scores == SCORES and again.counts == (16, 32, 64)


def test_a_new_file_knows_nothing(tmp_path):
    fresh = ScoreFile(tmp_path / "scores.json", "k")
    assert fresh.scores == {} and fresh.counts == ()


def test_scores_of_something_else_are_refused(tmp_path):
    path = tmp_path / "scores.json"
    ScoreFile(path, "k").save((16, 32, 64), SCORES)
    with pytest.raises(InputError, match="other weights, images or options; delete it"):
        ScoreFile(path, "other")


@pytest.mark.parametrize(
    "change",
    [
        {"schema": 99},
        {"counts": [0]},
        {"counts": []},
        {"counts": [16, 32]},
        {"scores": [{"stages": [1], "kept": [4], "level": 0}]},
        {"scores": [{"stages": [1], "kept": [-4], "level": 0, "divergence": 0, "agreement": 1, "images": 3}]},
        {"scores": [{"stages": [1], "kept": [4], "level": 0, "divergence": 0, "agreement": 2, "images": 3}]},
        {"key": 3},
    ],
)
def test_a_damaged_file_is_refused_with_what_to_do(tmp_path, change):
    path = tmp_path / "scores.json"
    ScoreFile(path, "k").save((16, 32, 64), SCORES)
    path.write_text(json.dumps({**json.loads(path.read_text()), **change}))
    with pytest.raises(InputError, match="delete it"):
        ScoreFile(path, "k")


@pytest.mark.parametrize("text", ["", "{", "[]", "NaN", "\x00"])
def test_no_json_is_refused(tmp_path, text):
    path = tmp_path / "scores.json"
    path.write_text(text)
    with pytest.raises(InputError, match="delete it"):
        ScoreFile(path, "k")

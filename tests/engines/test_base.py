from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import pytest

from engines import EngineError, EngineInputError, Runner, TensorSpec
from engines.files import atomic_path

SPEC = TensorSpec("images", (None, 3), "float32")


class Doubler(Runner):
    def __init__(self) -> None:
        super().__init__((SPEC,), (TensorSpec("doubled", (None, 3), "float32"),))
        self.closes = 0

    def _infer(self, feeds: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        return {"doubled": 2 * feeds["images"]}

    def _close(self) -> None:
        self.closes += 1


@pytest.mark.parametrize("batch", [1, 5])
def test_good_input_reaches_the_hook(batch: int):
    images = np.ones((batch, 3), np.float32)
    np.testing.assert_array_equal(Doubler().infer({"images": images})["doubled"], 2 * images)


@pytest.mark.parametrize(
    ("feeds", "message"),
    [
        ({}, "expected inputs images, got none"),
        ({"image": np.ones((1, 3), np.float32)}, "expected inputs images, got image"),
        (
            {"images": np.ones((1, 3), np.float32), "more": np.ones(1)},
            "expected inputs images, got images, more",
        ),
        ({"images": np.ones((1, 3))}, "input images: expected dtype float32, got float64"),
        (
            {"images": np.ones((1, 3), np.dtype("f4").newbyteorder())},
            "input images: expected dtype float32, got byte-swapped float32",
        ),
        (
            {"images": np.ones((1, 4), np.float32)},
            "input images: expected shape (N, 3), got (1, 4)",
        ),
        ({"images": np.ones(3, np.float32)}, "input images: expected shape (N, 3), got (3)"),
        (
            {"images": np.ones((0, 3), np.float32)},
            "input images: expected shape (N, 3), got (0, 3)",
        ),
        (
            {"images": [[1.0, 2.0, 3.0]]},
            "input images: expected a numpy array of float32 (N, 3), got list",
        ),
    ],
)
def test_bad_input_is_named_on_one_line(feeds: dict, message: str):
    with pytest.raises(EngineInputError) as caught:
        Doubler().infer(feeds)
    assert str(caught.value) == message


def test_closed_runner_refuses_to_run_and_closes_once():
    with Doubler() as runner:
        pass
    runner.close()
    assert runner.closes == 1
    with pytest.raises(EngineInputError, match="closed"):
        runner.infer({"images": np.ones((1, 3), np.float32)})


def test_atomic_path_keeps_the_old_file_on_failure(tmp_path):
    target = tmp_path / "engine.plan"
    target.write_text("old")
    with pytest.raises(KeyboardInterrupt), atomic_path(target) as temporary:
        temporary.write_text("half of the n")
        raise KeyboardInterrupt
    assert target.read_text() == "old"
    assert list(tmp_path.iterdir()) == [target]


def test_atomic_path_replaces_on_success(tmp_path):
    target = tmp_path / "engine.plan"
    target.write_text("old")
    with atomic_path(target) as temporary:
        temporary.write_text("new")
        assert target.read_text() == "old"
    assert target.read_text() == "new"
    assert list(tmp_path.iterdir()) == [target]


def test_atomic_path_names_a_missing_folder(tmp_path):
    with (
        pytest.raises(EngineError, match=r"folder .*missing does not exist"),
        atomic_path(tmp_path / "missing" / "engine.plan"),
    ):
        pass

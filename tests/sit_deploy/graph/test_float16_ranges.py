from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from calibration.ranges import observe_ranges
from sit_deploy.graph.float16_ranges import BATCH, observe_float16_ranges
from sit_deploy.graph.write import write_graph
from tests.helpers.graphs import exported, images_for


@pytest.mark.slow
@pytest.mark.parametrize("batch", [1, 3, "batch"])
def test_ranges_of_any_batch_are_those_of_all_images(batch: int | str) -> None:
    graph = exported("sit", batch)
    images = np.concatenate(images_for(graph, BATCH + 2))
    largest = 64 if batch == "batch" else int(batch)
    arrays: list[int] = []
    found = observe_float16_ranges(graph, images, largest, lambda _, done, total: arrays.append(total))
    wanted = observe_ranges(graph, [images])
    assert found.keys() == wanted.keys()
    for name, seen in wanted.items():
        assert found[name].absmax == pytest.approx(seen.absmax, rel=1e-5)
    assert set(arrays) == {-(-len(images) // min(largest, BATCH))} and len(arrays) == arrays[0]


def test_a_graph_is_written_as_the_same_bytes(tmp_path: Path) -> None:
    for name in ("a.onnx", "b.onnx"):
        write_graph(exported("sit"), tmp_path / name)
    written = (tmp_path / "a.onnx").read_bytes()
    assert written == (tmp_path / "b.onnx").read_bytes()
    read = type(exported("sit")).FromString(written)
    assert read == exported("sit")

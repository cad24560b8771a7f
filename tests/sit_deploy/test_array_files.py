"""Arrays written row by row are what NumPy reads, and nothing else."""

from __future__ import annotations

import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from sit_deploy.array_files import archive, single, size_of, space_for_archive

SHAPES = {"features": (7, 3), "patches": (7, 5, 3), "cls": (7, 3)}


def values() -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    return {name: rng.normal(size=shape).astype(np.float32) for name, shape in SHAPES.items()}


PATHS = np.array([*"abcdef", "größer"])


def write_archive(path: Path, arrays: dict[str, np.ndarray], step: int = 3) -> None:
    with archive(path, SHAPES, lambda: {"paths": PATHS}) as write:
        for start in range(0, 7, step):
            write({name: array[start : start + step] for name, array in arrays.items()})


def test_an_archive_is_as_numpys(tmp_path: Path) -> None:
    path, wanted = tmp_path / "a.npz", values()
    write_archive(path, wanted)
    with np.load(path) as found:
        assert set(found.files) == {*SHAPES, "paths"}
        assert found["paths"].tolist() == PATHS.tolist()
        for name, array in wanted.items():
            assert found[name].dtype == np.float32
            np.testing.assert_array_equal(found[name], array)
    assert zipfile.ZipFile(path).testzip() is None
    assert [p.name for p in tmp_path.iterdir()] == ["a.npz"]


def test_the_same_arrays_give_the_same_bytes(tmp_path: Path) -> None:
    """In whatever batches they come."""
    write_archive(tmp_path / "a.npz", values())
    write_archive(tmp_path / "b.npz", values(), step=2)
    assert (tmp_path / "a.npz").read_bytes() == (tmp_path / "b.npz").read_bytes()


def test_a_single_array_can_be_mapped(tmp_path: Path) -> None:
    path, wanted = tmp_path / "a.npy", values()["patches"]
    with single(path, "patches", wanted.shape) as write:
        write({"patches": wanted[:4].astype(np.float64)})
        write({"patches": wanted[4:][::-1][::-1], "others": wanted})
    np.testing.assert_array_equal(np.load(path, mmap_mode="r"), wanted)
    assert path.stat().st_size <= size_of(wanted.shape)


def test_the_space_is_not_told_too_small(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """At its fullest: when an array has been copied and is still there beside."""
    fullest: list[int] = []
    unlink = Path.unlink

    def measure(path: Path, *args: Any) -> None:
        fullest.append(sum(p.stat().st_size for p in tmp_path.iterdir()))
        unlink(path, *args)

    monkeypatch.setattr(Path, "unlink", measure)
    write_archive(tmp_path / "a.npz", values())
    assert len(fullest) == 2 and max(fullest) <= space_for_archive(SHAPES, 1024)
    assert space_for_archive({"features": (7, 3)}, 10) == size_of((7, 3)) + 10


@pytest.mark.parametrize("most", [8, 99, 1_000_000_007])
def test_fewer_rows_than_there_might_have_been(most: int, tmp_path: Path) -> None:
    """The files are to the byte those of so many rows: headers, checksums, and the list of entries."""
    wanted = values()
    write_archive(tmp_path / "a.npz", wanted)
    shapes = {name: (most, *shape[1:]) for name, shape in SHAPES.items()}
    with archive(tmp_path / "b.npz", shapes, lambda: {"paths": PATHS}) as write:
        write({name: array[:5] for name, array in wanted.items()})
        write({name: array[5:] for name, array in wanted.items()})
    assert (tmp_path / "a.npz").read_bytes() == (tmp_path / "b.npz").read_bytes()
    assert zipfile.ZipFile(tmp_path / "b.npz").testzip() is None
    with single(tmp_path / "c.npy", "cls", (most, 3)) as write:
        write({"cls": wanted["cls"]})
    np.testing.assert_array_equal(np.load(tmp_path / "c.npy", mmap_mode="r"), wanted["cls"])


@pytest.mark.parametrize("rows", [0, 8])
def test_no_rows_or_too_many_are_noticed(rows: int, tmp_path: Path) -> None:
    with (
        pytest.raises(ValueError, match="rows written"),
        single(tmp_path / "a.npy", "cls", (7, 3)) as write,
    ):
        write({"cls": np.zeros((rows, 3))})


def test_arrays_of_unlike_counts_are_noticed(tmp_path: Path) -> None:
    rows = {name: array[: 6 if name == "cls" else 7] for name, array in values().items()}
    with (
        pytest.raises(ValueError, match="rows written"),
        archive(tmp_path / "a.npz", SHAPES, lambda: {}) as write,
    ):
        write(rows)
    with (
        pytest.raises(ValueError, match="paths: 7 rows beside 6"),
        archive(tmp_path / "a.npz", SHAPES, lambda: {"paths": PATHS}) as write,
    ):
        write({name: array[:6] for name, array in values().items()})


def test_rows_of_another_shape_are_noticed(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"rows of \(2,\)"), single(tmp_path / "a", "cls", (7, 3)) as write:
        write({"cls": np.zeros((7, 2))})

"""Every field of a manifest, made wrong in every way and sealed again: told by name, or harmless to whoever reads it."""

from __future__ import annotations

import contextlib
import copy
import json
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from sit_deploy.bundle import Bundle, load_bundle
from sit_deploy.errors import InputError
from sit_deploy.golden import read_golden
from sit_deploy.manifest import digest
from sit_deploy.outputs import Output
from sit_deploy.preprocessing import Preprocessing
from tests.helpers.bundles import load_manifest, seal_again

WRONG: tuple[Any, ...] = (
    [], {}, None, -1, 0, 1e308, "x", "", True, 2**63, 10**30, [[]], {"x": {}}, [None], "../x", "\x1b[31m\n",
)  # fmt: skip


def places(value: Any, at: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Give the way to every field of a JSON value; of a list, to its first member."""
    pairs = (
        value.items() if isinstance(value, dict) else enumerate(value[:1]) if isinstance(value, list) else ()
    )
    for key, member in pairs:
        yield (*at, key)
        yield from places(member, (*at, key))


def changed(value: Any, at: tuple[Any, ...], to: Any) -> Any:
    """Return a copy with one field changed, or without it where `to` is Ellipsis."""
    made = copy.copy(value)  # and copies of what leads to the field: all of it takes long
    holder = made
    for key in at[:-1]:
        holder[key] = copy.copy(holder[key])
        holder = holder[key]
    if to is ...:
        del holder[at[-1]]
    else:
        holder[at[-1]] = to
    return made


def seal(folder: Path, manifest: dict[str, Any]) -> None:
    manifest = {**manifest, "digest": digest(manifest)}
    (folder / "manifest.json").write_text(json.dumps(manifest), encoding="utf-8")


@pytest.fixture(scope="module")
def small(nano_fp32: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The manifest of a real bundle over files of a few bytes, so that opening it takes no time."""
    manifest = load_manifest(nano_fp32)
    manifest["model"] |= {"image_size": [16, 16], "num_classes": 2}
    manifest |= {"classes": ["a", "b"], "preprocessing": {**manifest["preprocessing"], "size": [16, 16]}}
    folder = tmp_path_factory.mktemp("small")
    for name in ("model.onnx", "engine.onnx", "report.json"):
        (folder / name).write_text("{}")
    golden(folder)
    seal_again(folder, manifest)
    return folder


def golden(folder: Path, n: int = 2, **changes: Any) -> None:
    rng = np.random.default_rng(0)
    arrays = {"images": rng.random((n, 3, 16, 16), "f4"), "logits": rng.random((n, 2), "f4"), **changes}
    np.savez(folder / "golden.npz", **{k: v for k, v in arrays.items() if v is not None})


def read_all(bundle: Bundle) -> None:
    """Read what every reader of a bundle reads before it opens the engine."""
    from sit_deploy.measure.baseline import expected_top1
    from sit_deploy.validation.reference import reference_weights

    low, high = bundle.batch_range
    assert 1 <= low <= bundle.batch_size <= high <= 65536
    assert len(bundle.classes) == bundle.manifest.model.num_classes
    assert all(isinstance(name, str) for name in bundle.classes)
    assert bundle.engine_path.parent == bundle.path
    assert bundle.origin.compute_capabilities and isinstance(bundle.origin.rebuild, str)
    images, logits = bundle.golden()
    assert np.isfinite(bundle.preprocessing().normalise(np.full((2, 2, 3), 255, np.uint8))).all()
    assert len(images) == len(logits)
    expected_top1(bundle.manifest.weights, bundle.manifest.model)
    assert bundle.manifest.bytes >= bundle.manifest.engine_bytes
    with contextlib.suppress(InputError):  # the weights of a manifest that was changed are not there
        reference_weights(bundle)


@pytest.mark.slow
def test_every_field_of_a_manifest_is_checked(small: Path) -> None:
    manifest = json.loads((small / "manifest.json").read_text(encoding="utf-8"))
    taken = refused = 0
    try:
        for place in places({k: v for k, v in manifest.items() if k != "digest"}):
            for to in (..., *WRONG):
                seal(small, changed(manifest, place, to))
                try:
                    bundle = load_bundle(small)
                except InputError as error:
                    assert "\n" not in str(error), (place, to)
                    refused += 1
                    continue
                except Exception as error:
                    raise AssertionError(f"{place} = {to!r}: {error!r}") from error
                try:
                    read_all(bundle)
                except Exception as error:
                    raise AssertionError(f"{place} = {to!r} was taken: {error!r}") from error
                taken += 1
    finally:
        seal(small, manifest)
    assert refused > 500 and taken > 100, (refused, taken)


LIES = {
    "images": {"preprocessing": {"size": [16, 32], "resize": 64}},
    "tokens": {"model": {"stages": [1, 1, 1], "tokens": [1, 1]}},
    "classes": {"classes": ["a", "b", "c"]},
    "batch in parts": {"batch": {"min": 1, "opt": 2}},
    "batch both ways": {"batch": {"size": 1, "min": 1, "opt": 2, "max": 3}},
    "batch backwards": {"batch": {"min": 4, "opt": 2, "max": 8}},
    "weights without a hash": {"weights": {"source": "/w.pth"}},
    "an engine that is no file of it": {"engine": {"file": "other.plan"}},
    "golden of other classes": {"model": {"num_classes": 3}, "classes": None},
    "golden of other pixels": {"preprocessing": {"layout": "NHWC", "dtype": "uint8"}},
}


@pytest.mark.parametrize("lie", LIES)
def test_fields_that_do_not_fit_each_other(lie: str, small: Path) -> None:
    manifest = json.loads((small / "manifest.json").read_text(encoding="utf-8"))
    told = copy.deepcopy(manifest)
    for name, value in LIES[lie].items():
        told[name] = told[name] | value if isinstance(value, dict) and name != "batch" else value
    try:
        seal(small, told)
        with pytest.raises(InputError, match=r"^[^\n]+; (copy|build) [^\n]+$"):
            load_bundle(small)
    finally:
        seal(small, manifest)


# ----------------------------------------------------------------------------------------------------------- golden


def npy(shape: str, data: bytes, descr: str = "'<f4'", fortran: bool = False) -> bytes:
    header = f"{{'descr': {descr}, 'fortran_order': {fortran}, 'shape': {shape}, }}".encode()
    return b"\x93NUMPY\x01\x00" + len(header).to_bytes(2, "little") + header + data


PIXELS = bytes(2 * 3 * 16 * 16 * 4)
GOLDEN: dict[str, dict[str, Any]] = {
    "no image": {"images": np.zeros((0, 3, 16, 16), "f4"), "logits": np.zeros((0, 2), "f4")},
    "other counts": {"logits": np.zeros((3, 2), "f4")},
    "other classes": {"logits": np.zeros((2, 3), "f4")},
    "other pixels": {"images": np.zeros((2, 3, 16, 32), "f4")},
    "one image": {"images": np.zeros((3, 16, 16), "f4")},
    "doubles": {"logits": np.zeros((2, 2))},
    "big-endian": {"logits": np.zeros((2, 2), ">f4")},
    "integers": {"images": np.zeros((2, 3, 16, 16), "u1")},
    "columns first": {"images": np.asfortranarray(np.ones((2, 3, 16, 16), "f4"))},
    "objects": {"images": np.array([{"an": "object"}], object)},
    "names": {"logits": np.array(["a", "b"])},
    "NaN": {"logits": np.array([[0, 1], [np.nan, 1]], "f4")},
    "infinity": {"images": np.full((2, 3, 16, 16), np.inf, "f4")},
    "none of one": {"logits": None},
    "a product that wraps": {"images": npy(f"({2**61 + 2}, 3, 16, 16)", PIXELS)},
    "a count that wraps": {"images": npy(f"({2**64}, 3, 16, 16)", b"")},
    "a negative count": {"images": npy("(-1, 3, 16, 16)", PIXELS)},
    "less than it says": {"images": npy("(2, 3, 16, 16)", PIXELS[:-1])},
    "more than it says": {"images": npy("(2, 3, 16, 16)", PIXELS + b"x")},
    "a shape that is none": {"images": npy("'many'", PIXELS)},
    "a type that is none": {"images": npy("(2, 3, 16, 16)", PIXELS, "[]")},
    "a header that is none": {"images": npy("(" * 5000, PIXELS)},
    "no array": {"images": b"hello"},
}


@pytest.mark.parametrize("damage", GOLDEN)
def test_golden_that_does_not_fit(damage: str, tmp_path: Path) -> None:
    golden(tmp_path)
    arrays = dict(np.load(tmp_path / "golden.npz")) | GOLDEN[damage]
    with zipfile.ZipFile(tmp_path / "golden.npz", "w") as archive:
        for name, array in arrays.items():
            if isinstance(array, np.ndarray):
                with archive.open(f"{name}.npy", "w") as file:
                    np.lib.format.write_array(file, array)
            elif array is not None:
                archive.writestr(f"{name}.npy", array)
    refused(tmp_path)


def refused(folder: Path) -> None:
    with pytest.raises(
        InputError, match=r"^[^\n]+golden\.npz: does not fit the manifest \([^\n]+\); copy [^\n]+$"
    ):
        read_golden(folder / "golden.npz", Preprocessing.for_model(16), (Output("logits", (2,)),))


def test_golden_in_other_wrappings(tmp_path: Path) -> None:
    golden(tmp_path)
    file, arrays = tmp_path / "golden.npz", dict(np.load(tmp_path / "golden.npz"))
    whole = file.read_bytes()
    read_golden(file, Preprocessing.for_model(16), (Output("logits", (2,)),))
    for damaged in (b"", b"PK", whole[:1000], whole[:-30], whole[:500] + b"\xff" * 9 + whole[509:]):
        file.write_bytes(damaged)
        refused(tmp_path)
    np.savez_compressed(file, **arrays)  # a few bytes may be gigabytes
    refused(tmp_path)
    np.save(tmp_path / "golden.npy", arrays["logits"])
    (tmp_path / "golden.npy").rename(file)
    refused(tmp_path)
    file.unlink()
    refused(tmp_path)


def test_golden_bytes_turned_over(tmp_path: Path) -> None:
    """Whatever byte of the archive's own structure is another: read as before, or refused."""
    golden(tmp_path)
    file = tmp_path / "golden.npz"
    whole = file.read_bytes()
    ends = [*range(180), *range(len(whole) - 260, len(whole))]
    for place in ends:
        for value in (0, 0xFF, whole[place] ^ 0x20):
            file.write_bytes(whole[:place] + bytes([value]) + whole[place + 1 :])
            with contextlib.suppress(InputError):
                read_golden(file, Preprocessing.for_model(16), (Output("logits", (2,)),))

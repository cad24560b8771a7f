from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from calibration.cache import Calibration, CalibrationImages, TensorCalibration, digest
from calibration.errors import CalibrationError
from calibration.thresholds import METHODS, METHODS_OF
from tests.sit_deploy.test_manifest import changed, places

GRAPH, IMAGES = "ab" * 32, "cd" * 32


def calibration(grid: str = "int8") -> Calibration:
    thresholds = {method: 0.1 + index for index, method in enumerate(METHODS_OF[grid])}
    return Calibration(
        tool="sit-deploy 1.2",
        graph=GRAPH,
        images=CalibrationImages(IMAGES, 512, "photos/käfer"),
        preprocessing={"size": [224, 224], "mean": [0.485, 0.456, 0.406], "interpolation": "bicubic"},
        method="mse",
        grid=grid,
        percentile=99.99,
        tensors={
            "blocks.0/norm1": TensorCalibration(-3.1, 4.7, 4.7, thresholds),
            "blocks.0/norm2": TensorCalibration(0.0, 0.0, 0.0, dict.fromkeys(thresholds, 0.0)),
        },
        migration={"blocks.0/norm1": [0, -1, 3]},
    )


def rewrite(path: Path, change: Callable[[dict[str, Any]], None], sign: bool = True) -> None:
    """Change the file's fields, with a digest that matches or with the old one."""
    fields = json.loads(path.read_text(encoding="utf-8"))
    change(fields)
    if sign:
        fields["digest"] = digest(fields)
    path.write_text(json.dumps(fields), encoding="utf-8")


def refusal(path: Path) -> str:
    with pytest.raises(CalibrationError) as raised:
        Calibration.load(path)
    assert "\n" not in str(raised.value)
    return str(raised.value)


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    path = tmp_path / "calibration.json"
    calibration().save(path)
    return path


@pytest.mark.parametrize("grid", ["int8", "fp8"])
def test_saved_and_loaded(tmp_path: Path, grid: str) -> None:
    made = calibration(grid)
    made.save(tmp_path / "c.json")
    assert Calibration.load(tmp_path / "c.json") == made
    bare = replace(made, migration={}, tensors={})
    bare.save(tmp_path / "c.json")
    assert Calibration.load(tmp_path / "c.json") == bare


@given(st.lists(st.floats(0, 3.4028234663852886e38), min_size=5, max_size=5))
@settings(max_examples=20)
def test_numbers_survive_to_the_last_bit(
    tmp_path_factory: pytest.TempPathFactory, values: list[float]
) -> None:
    made = calibration()
    thresholds = dict(zip(METHODS, values, strict=True))
    made.tensors["x"] = TensorCalibration(-values[0], values[1], values[2], thresholds)
    path = tmp_path_factory.mktemp("cache") / "c.json"
    made.save(path)
    assert Calibration.load(path) == made


def test_the_same_calibration_is_the_same_file(tmp_path: Path) -> None:
    for name in "ab":
        calibration().save(tmp_path / name)
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


def test_a_person_can_read_it(saved: Path) -> None:
    lines = saved.read_text(encoding="utf-8").splitlines()
    (line,) = [line for line in lines if "blocks.0/norm1" in line and "absmax" in line]
    assert '"absmax": 4.7' in line
    assert '"mse": 4.1' in line
    assert any("käfer" in line for line in lines)


def test_threshold_by_the_method_chosen_or_another() -> None:
    made = calibration()
    assert made.threshold("blocks.0/norm1") == 4.1
    assert made.threshold("blocks.0/norm1", "minmax") == 0.1
    with pytest.raises(CalibrationError, match="no tensor 'head'"):
        made.threshold("head")
    with pytest.raises(CalibrationError, match="no method 'max'; choose one of minmax"):
        made.threshold("blocks.0/norm1", "max")


def leaves(value: Any, path: tuple = ()) -> list[tuple]:
    """Paths to everything in the JSON that is no container."""
    if isinstance(value, dict | list):
        items = value.items() if isinstance(value, dict) else enumerate(value)
        return [leaf for key, member in items for leaf in leaves(member, (*path, key))]
    return [path]


def test_no_leaf_can_be_changed_by_hand(saved: Path) -> None:
    original = saved.read_text(encoding="utf-8")
    paths = leaves(json.loads(original))
    assert len(paths) > 30
    for path in paths:
        fields = json.loads(original)
        owner = fields
        for key in path[:-1]:
            owner = owner[key]
        old = owner[path[-1]]
        owner[path[-1]] = old + "0" if isinstance(old, str) else old + 1
        saved.write_text(json.dumps(fields), encoding="utf-8")
        if path not in (("kind",), ("schema",)):
            assert "was changed by hand" in refusal(saved), path
        else:
            refusal(saved)
    saved.write_text(json.dumps(json.loads(original), indent=4), encoding="utf-8")
    assert Calibration.load(saved) == calibration()  # layout is no content


@pytest.mark.parametrize(
    ("change", "sign", "message"),
    [
        (lambda f: f.pop("digest"), False, "was changed by hand"),
        (lambda f: f["tensors"].pop("blocks.0/norm2"), False, "was changed by hand"),
        (lambda f: f.pop("method"), True, "it has no field 'method'"),
        (lambda f: f.update(colour=1), True, "it has an unknown field 'colour'"),
        (lambda f: f.update(schema=2), True, "newer version (schema 2, this one reads 1)"),
        (lambda f: f.update(schema=0), True, "has schema 0, which this version does not read"),
        (lambda f: f.update(schema=True), True, "has schema True"),
        (lambda f: f.pop("schema"), True, "has schema None"),
        (lambda f: f.update(kind="recipe"), True, "is not a calibration cache; calibrate again"),
        (lambda f: f.update(graph=7), True, "field 'graph' is not as it should be"),
        (lambda f: f.update(grid="int4"), True, "field 'grid'"),
        (lambda f: f.update(grid=["int8"]), True, "field 'grid'"),
        (lambda f: f.update(grid="fp8"), True, "has not the threshold of every method"),
        (lambda f: f.update(method="max"), True, "int8 has no method 'max'"),
        (lambda f: f.update(percentile=True), True, "field 'percentile'"),
        (lambda f: f.update(percentile=10**300), True, "field 'percentile'"),
        (lambda f: f.update(preprocessing=[]), True, "field 'preprocessing'"),
        (lambda f: f["images"].update(count=0), True, "field 'images'"),
        (lambda f: f["images"].pop("key"), True, "field 'images'"),
        (lambda f: f["tensors"]["blocks.0/norm1"].update(absmax=-1.0), True, "field 'tensors'"),
        (lambda f: f["tensors"]["blocks.0/norm1"].update(extra=1.0), True, "field 'tensors'"),
        (
            lambda f: f["tensors"]["blocks.0/norm1"]["thresholds"].update(mse=float("nan")),
            True,
            "is not JSON",
        ),
        (lambda f: f["tensors"]["blocks.0/norm1"]["thresholds"].pop("mse"), True, "every method"),
        (lambda f: f["migration"].update(x=[0.5]), True, "field 'migration'"),
    ],
)
def test_refused_when_loaded(
    saved: Path, change: Callable[[dict[str, Any]], None], sign: bool, message: str
) -> None:
    rewrite(saved, change, sign)
    assert message in refusal(saved)
    assert str(saved) in refusal(saved)


@pytest.mark.parametrize("content", [b"", b"{", b"\xff\xfe\x00", b"[1]", b"null", b"{}", b"[" * 200_000])
def test_other_files_are_refused(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "other.json"
    path.write_bytes(content)
    assert "is not a calibration cache" in refusal(path)


def test_a_missing_file_is_refused(tmp_path: Path) -> None:
    assert "cannot read calibration cache" in refusal(tmp_path / "none.json")
    assert "sit-deploy calibrate" in refusal(tmp_path / "none.json")
    assert "cannot read calibration cache" in refusal(tmp_path)


def test_what_matches_is_taken() -> None:
    made = calibration()
    made.require()
    made.require(graph=GRAPH, images=IMAGES, preprocessing=dict(made.preprocessing), grid="int8")
    made.require(method="entropy")
    made.require(method="percentile", percentile=99.99)
    made.require(percentile=50.0)  # mse was chosen: it has no percentile
    made.require(preprocessing=made.preprocessing | {"size": (224, 224)})  # a tuple is a list in JSON


@pytest.mark.parametrize(
    ("wanted", "message"),
    [
        ({"graph": "0" * 64}, "made for another graph (abababababab…, this one is 000000000000…)"),
        ({"images": "0" * 64}, "made from other images (512 from photos/käfer)"),
        ({"preprocessing": {"size": [224, 224]}}, "other preprocessing (interpolation was bicubic, is None)"),
        (
            {"preprocessing": calibration().preprocessing | {"size": [96, 96]}},
            "(size was [224, 224], is [96, 96])",
        ),
        ({"preprocessing": {}}, "other preprocessing"),
        ({"grid": "fp8"}, "made for int8, not for fp8"),
        ({"method": "max"}, "no method 'max'; choose one of minmax, average, percentile, entropy, mse"),
        ({"method": "percentile", "percentile": 99.0}, "made with percentile 99.99, not 99;"),
    ],
)
def test_what_does_not_match_is_refused_with_the_reason(wanted: dict[str, Any], message: str) -> None:
    with pytest.raises(CalibrationError) as raised:
        calibration().require(**wanted)
    assert message in str(raised.value)
    assert "\n" not in str(raised.value)
    assert "calibrate again" in str(raised.value) or "choose one" in str(raised.value)


@pytest.mark.parametrize(
    "change",
    [
        {"percentile": float("inf")},
        {"preprocessing": {"mean": {1, 2}}},
        {"preprocessing": {"mean": float("nan")}},
        {"method": "max"},
        {"images": CalibrationImages(IMAGES, 1, "\udcff")},
        {"migration": {"x": [0.5]}},
    ],
)
def test_what_cannot_be_saved_leaves_the_old_file(saved: Path, change: dict[str, Any]) -> None:
    before = saved.read_bytes()
    with pytest.raises(CalibrationError, match="cannot be saved"):
        replace(calibration(), **change).save(saved)
    assert saved.read_bytes() == before
    assert [path.name for path in saved.parent.iterdir()] == [saved.name]


def test_saving_to_no_folder(tmp_path: Path) -> None:
    with pytest.raises(CalibrationError, match=r"does not exist; choose another place"):
        calibration().save(tmp_path / "none" / "c.json")


@pytest.mark.skipif(os.name != "posix", reason="needs a limit on the size of files")
def test_a_disk_that_fills_up_leaves_the_old_file(saved: Path) -> None:
    """A limit on the size of files stops the write half way, as a full disk would."""
    before = saved.read_bytes()
    program = f"""
import resource, signal
from pathlib import Path
from calibration.cache import Calibration
from calibration.errors import CalibrationError
path = Path({str(saved)!r})
made = Calibration.load(path)
made.tool = "x" * 100_000
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (5_000, 5_000))
try:
    made.save(path)
except CalibrationError as error:
    print(error)
"""
    root = Path(__file__).resolve().parents[2]
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=root, capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0, done.stderr
    assert "File too large; choose another place for the calibration cache" in done.stdout
    assert saved.read_bytes() == before
    assert [path.name for path in saved.parent.iterdir()] == [saved.name]


def test_public_names_load_and_only_when_asked_for() -> None:
    program = (
        "import sys, calibration; assert 'numpy' not in sys.modules and 'onnx' not in sys.modules; "
        "[getattr(calibration, name) for name in calibration.__all__]; "
        "assert callable(calibration.threshold); "
        "assert not hasattr(calibration, 'nothing')"
    )
    root = Path(__file__).resolve().parents[2]
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=root, capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0, done.stderr


def test_every_field_is_checked(tmp_path: Path) -> None:
    """Sealed again with a digest that fits: what is taken is what a build can use."""
    path = tmp_path / "c.json"
    calibration().save(path)
    whole = json.loads(path.read_text())
    del whole["digest"]
    taken = refused = 0
    for place in places(whole):
        for to in (..., [], {}, None, -1, 0, 1e308, "x", True, 10**30, [[]], {"x": {}}, [None]):
            fields = changed(whole, place, to)
            path.write_text(json.dumps({**fields, "digest": digest(fields)}))
            try:
                found = Calibration.load(path)
            except CalibrationError as error:
                assert "\n" not in str(error)
                refused += 1
                continue
            taken += 1
            assert all(0 <= t <= 3.5e38 for seen in found.tensors.values() for t in seen.thresholds.values())
            assert all(abs(power) < 127 for powers in found.migration.values() for power in powers)
            found.save(path)
    assert refused > 200 and taken > 20, (refused, taken)


@pytest.mark.parametrize(
    "text", ["[" * 100_000, "9" * 5000, '{"a": NaN}', '{"kind": 1, "kind": 2}', '["\\udcff"]']
)
def test_json_that_means_two_things_or_none(text: str, tmp_path: Path) -> None:
    (tmp_path / "c.json").write_text(text)
    with pytest.raises(CalibrationError, match=r"is not JSON \([^\n]*\); calibrate again"):
        Calibration.load(tmp_path / "c.json")

"""What each release offers, by its recorded names, and that the docs say the same."""

from __future__ import annotations

from pathlib import Path

import pytest

from engines.tensorrt.features import Features
from tests.helpers import trt_api

RECORDS = sorted(path.stem for path in (Path(__file__).parents[1] / "api").glob("*.json"))
DOCS = Path(__file__).parents[3] / "docs" / "gpu.md"


def features(release: str) -> Features:
    return Features.of(trt_api.load(release))


def test_there_are_records_of_every_generation():
    assert [name.split("-")[-1].split(".")[0] for name in RECORDS] == ["10", "10", "11", "11", "8", "1"]


@pytest.mark.parametrize("release", RECORDS)
def test_every_recorded_release_has_a_path(release: str):
    found = features(release)
    assert found.unsupported is None
    assert found.strong_typing == (release != "tensorrt-8.6.0")
    assert found.compute_capabilities == found.runtime_cache == found.engine_validity == ("rtx" in release)
    # 10.14 is the first release whose notes have it
    assert found.attention == (release not in ("tensorrt-8.6.0", "tensorrt-10.0.1"))
    assert found.progress_monitor == found.strip_plan == found.bf16 == (release != "tensorrt-8.6.0")


def test_weak_typing_is_told_from_strong():
    assert features("tensorrt-8.6.0").explicit_batch_flag
    assert not features("tensorrt-8.6.0").typing_flag
    # 10 keeps the flags of weak typing beside the strong; 11 has dropped them
    assert hasattr(trt_api.load("tensorrt-10.16.1").BuilderFlag, "FP16")
    assert not hasattr(trt_api.load("tensorrt-11.0.0").BuilderFlag, "FP16")
    assert features("tensorrt-10.16.1").strong_typing and features("tensorrt-11.0.0").strong_typing


def test_a_library_with_neither_flag_is_strongly_typed():
    module = trt_api.load("tensorrt-11.4.0")
    del module.NetworkDefinitionCreationFlag
    found = Features.of(module)
    assert found.strong_typing and not found.typing_flag


@pytest.mark.parametrize(
    ("owner", "name", "sentence"),
    [
        ("IExecutionContext", "execute_async_v3", "has no execute_async_v3"),
        ("INetworkDefinition", "add_normalization", "has no LayerNormalization"),
    ],
)
def test_what_cannot_be_done_without(owner: str, name: str, sentence: str):
    module = trt_api.load("tensorrt-8.6.0")
    delattr(getattr(module, owner), name)
    assert Features.of(module).unsupported == sentence


def test_the_installed_library_is_the_recorded_one():
    trt = pytest.importorskip("tensorrt_rtx")
    record = trt_api.load("tensorrt-rtx-1.7.1")
    if trt.__version__ != record.__version__:
        pytest.skip(f"recorded is {record.__version__}, installed {trt.__version__}")
    assert Features.of(trt) == Features.of(record)
    for name in ("IExecutionContext", "ICudaEngine", "Runtime"):
        assert set(getattr(record, name).signatures) <= set(dir(getattr(trt, name)))


def test_the_table_in_the_docs():
    text = DOCS.read_text(encoding="utf-8")
    columns = [
        "tensorrt-8.6.0",
        "tensorrt-10.0.1",
        "tensorrt-10.16.1",
        "tensorrt-11.4.0",
        "tensorrt-rtx-1.7.1",
    ]
    rows = [features(release).rows() for release in columns]
    for key in rows[0]:
        line = f"| `{key}` | " + " | ".join(row[key] for row in rows) + " |"
        assert line in text, f"docs/gpu.md lacks the row\n{line}"

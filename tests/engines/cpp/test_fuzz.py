"""Parsers and entry points of the C++ library with random changes of the corpus, under AddressSanitizer and
UndefinedBehaviorSanitizer.

The corpus has seeds and whatever once was found; with clang, libFuzzer goes deeper: CONTRIBUTING says how.
"""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from tests.engines.cpp.conftest import Programs

CORPUS = Path(__file__).parent / "corpus"
# how many changed inputs, always the same: a third of a second's worth; sit_fuzz takes any number, and a seed to make others
MUTATIONS = {
    "bundle": 400,
    "classify": 7_000,
    "exif": 50_000,
    "json": 10_000,
    "npz": 20_000,
    "picture": 10_000,
    "pixels": 7_000,
    "prepare": 7_000,
    "resize": 3_000,
}


def test_every_target_has_a_corpus_and_is_run() -> None:
    assert sorted(path.name for path in CORPUS.iterdir()) == sorted(MUTATIONS)
    assert sum(path.stat().st_size for path in CORPUS.rglob("*") if path.is_file()) < 100_000


@pytest.mark.parametrize("target", MUTATIONS)
def test_nothing_but_error_leaves_the_library(target: str, checked: Programs, tmp_path: Path) -> None:
    done: subprocess.CompletedProcess[bytes] = checked.run(
        "sit_fuzz", target, CORPUS / target, MUTATIONS[target], cwd=tmp_path
    )
    kept = tmp_path / f"{target}.input"
    assert done.returncode == 0, f"{kept.read_bytes()!r}\n{done.stderr.decode(errors='replace')[-3000:]}"
    assert done.stdout.endswith(b" inputs\n")

"""Names of any bytes: below a folder they work, and where a manifest has to hold them they are refused before any work."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path

import pytest

from sit_deploy.errors import InputError
from sit_deploy.pipeline.request import BuildRequest
from sit_deploy.pipeline.request_check import check_request
from sit_deploy.text import is_utf8, require_utf8, shown
from training.request import TrainRequest

LATIN = os.fsdecode(b"caf\xe9")


@pytest.mark.parametrize(
    ("name", "said"),
    [
        (LATIN, r"caf\xe9"), ("café 猫 🐈", "café 猫 🐈"), ("\x1b[31mred", r"\x1b[31mred"), ("two\nlines", r"two\nlines"),
        ("\u202egpj.exe", r"\u202egpj.exe"), (Path("a") / LATIN, r"a/caf\xe9"),
    ],
)  # fmt: skip
def test_names_are_shown_on_one_line(name: object, said: str) -> None:
    assert shown(name) == said and is_utf8(shown(name))


@pytest.mark.parametrize(
    "field", ["checkpoint", "calib_data", "labels", "val_data", "calib_cache", "output", "timing_cache"]
)
def test_a_build_refuses_paths_that_its_manifest_cannot_hold(field: str) -> None:
    request = replace(BuildRequest("sit_nano", Path("out")), **{field: Path(LATIN)})
    with pytest.raises(
        InputError, match=rf"--{field.replace('_', '-')} caf\\xe9 has a name that is no UTF-8; rename it, or"
    ):
        check_request(request)


@pytest.mark.parametrize("field", ["teacher", "init", "output", "data_dir"])
def test_a_training_does_too(field: str) -> None:
    request = replace(TrainRequest("sit_nano", "digits", Path("out")), **{field: Path(LATIN) / "x"})
    with pytest.raises(InputError, match="has a name that is no UTF-8"):
        request.check()


def test_a_folder_above_counts_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / LATIN).mkdir()
    monkeypatch.chdir(tmp_path / LATIN)
    with pytest.raises(InputError, match=r"--output out lies below .*caf\\xe9, whose name is no UTF-8"):
        require_utf8(output=Path("out"), count=3)

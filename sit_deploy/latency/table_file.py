"""The file of latency tables: what was timed of which model, on what; tables of others stay in it beside."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

from msgspec import Meta, Struct, to_builtins

from engines.files import atomic_path
from sit_deploy.errors import InputError
from sit_deploy.latency.target import What, Where
from sit_deploy.schema import decode

SCHEMA = 1
_MOST = 1_000_000_000
_Ms = Annotated[float, Meta(gt=0, le=_MOST)]
_Ratio = Annotated[float, Meta(gt=0, le=1000)]
_Share = Annotated[float, Meta(ge=0, le=10)]
_Count = Annotated[int, Meta(ge=1, le=1_000_000)]
MEASURE_AGAIN = "delete it, and what it held is measured again"


class Probe(Struct, frozen=True, kw_only=True):
    """A schedule that was timed.

    Attributes:
        stage_blocks: blocks of each stage.
        kept: patch tokens of each stage.
        ratio: times that it takes as long as the reference.
        spread: half the distance of the rounds' quartiles, as a share of the ratio.
        reference_ms: of the reference in the same rounds.
    """

    stage_blocks: tuple[_Count, ...]
    kept: tuple[_Count, ...]
    ratio: _Ratio
    spread: _Share
    reference_ms: _Ms

    def __post_init__(self) -> None:
        if not self.kept or len(self.stage_blocks) != len(self.kept):
            raise ValueError("stage_blocks and kept need a number for every stage each")


class Section(Struct, kw_only=True):
    """A table.

    Attributes:
        what: is timed.
        where: it is timed.
        date: of the last measurement.
        rounds: of a timing.
        probes: that were timed, in order.
    """

    what: What
    where: Where
    date: str
    rounds: _Count
    probes: list[Probe]


class _File(Struct):
    schema: int
    tables: list[Section]


def read_sections(path: Path, remedy: str = MEASURE_AGAIN) -> list[Section]:
    """Return the tables of a file.

    Args:
        path: of the file.
        remedy: what to do about a wrong one, for the end of a message.

    Raises:
        InputError: it is damaged, no such file, or of another release.
    """
    found = decode(path, _File, remedy)
    if found.schema != SCHEMA:
        raise InputError(
            f"{path} is no file of latency tables that this release reads (schema {found.schema}); {remedy}"
        )
    return found.tables


def write_section(path: Path, section: Section) -> None:
    """Write a table into a file, in place of the one of the same circumstances; the others stay.

    Raises:
        InputError: the file is there, and damaged.
        engines.EngineError: it cannot be written.
    """
    tables = read_sections(path) if path.exists() else []
    others = [one for one in tables if (one.what, one.where) != (section.what, section.where)]
    text = json.dumps(to_builtins(_File(SCHEMA, [*others, section])), indent=1, allow_nan=False) + "\n"
    with atomic_path(path) as temporary:
        temporary.write_text(text, encoding="utf-8")

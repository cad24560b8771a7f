"""The file of timings: what was measured where, kept so that a build that was stopped, or is made again, need not measure it again.

Times hold for one CPU, runtime, number of threads, batch and graph, and errors for one calibration; those of others stay in the
file beside them.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from contextlib import nullcontext
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

from msgspec import Meta, Struct, to_builtins

from engines.errors import EngineError
from engines.files import atomic_path, held
from sit_deploy.errors import InputError
from sit_deploy.schema import decode
from sit_deploy.tune.measured import Candidate, LogitsError, Measured, Timing

SCHEMA = 1
_MOST = 1_000_000_000
_Above = Annotated[float, Meta(gt=0, le=_MOST)]
_Ratio = Annotated[float, Meta(gt=0, le=1000)]  # times as fast as float32: no plan comes near
_Power = Annotated[float, Meta(ge=0, le=_MOST)]
_Key = Annotated[str, Meta(pattern=r"^[^|]*\|[^|]+\|[^|]*$")]  # `Candidate.key`


class Circumstances(Struct, frozen=True, kw_only=True):
    """What times hold for.

    Attributes:
        cpu: its name.
        cpus: how many of them the process may use.
        tool: release of sit-deploy, which rewrites graphs for engines.
        engine: kind and release.
        threads: of the engine; None for the runtime's own number.
        batch: images a run.
        dynamic: smallest, usual and largest batch of an engine whose batch is open: its kernels are others; None of a fixed one.
        graph: SHA-256 of the float32 graph (`sit_deploy.quantize.calibrate.graph_key`), which is the same for any batch.
        instructions: of the CPU, that matrices are multiplied by: under a hypervisor, CPUs of several generations have one name.
        limit: what keeps the runtime from some of them, as it is set in the environment.
    """

    cpu: str
    cpus: int
    tool: str
    engine: str
    threads: int | None
    batch: int
    graph: str
    dynamic: tuple[int, int, int] | None = None
    instructions: str = ""
    limit: str = ""

    @property
    def machine(self) -> str:
        """What a person tells machines apart by."""
        return f"{self.cpu}, {self.limit}" if self.limit else self.cpu

    def is_other_cpu(self, here: Circumstances) -> bool:
        """Whether they are of another CPU than these, or of other instructions of the same one."""
        return any(getattr(self, name) != getattr(here, name) for name in ("cpu", "instructions", "limit"))


class _Entry(Struct, kw_only=True):
    """A candidate's measures; `calibration` is what the error holds for."""

    ratio: _Ratio
    low: _Ratio
    high: _Ratio
    ms: _Above
    calibration: str = ""
    power: _Power | None = None
    tolerated: bool = True

    def __post_init__(self) -> None:
        if not self.low <= self.ratio <= self.high:
            raise ValueError(
                f"ratio {self.ratio:g} is not between its quartiles {self.low:g} and {self.high:g}"
            )


class _Section(Struct):
    where: Circumstances
    measured: dict[_Key, _Entry]


class _File(Struct):
    schema: int
    sections: list[_Section]


class Timings:
    """What a file of timings says of one set of circumstances.

    Args:
        where: the circumstances.
        calibration: what errors hold for.
        path: of the file, which is written after every measure; None to keep them in memory.
        before: files of which the first that is there is read.

    Raises:
        InputError: a file is damaged.
    """

    def __init__(
        self, where: Circumstances, calibration: str, path: Path | None, before: Iterable[Path] = ()
    ) -> None:
        self._where, self._calibration, self._path = where, calibration, path
        source = next((one for one in (*([path] if path else []), *before) if one.exists()), None)
        sections = [] if source is None else load_timings(source).sections
        mine = [section for section in sections if section.where == where]
        self._others = [section for section in sections if section.where != where]
        self._measured = {name: entry for section in mine for name, entry in section.measured.items()}
        # what is not in the file of `path`, or is otherwise there: all of another file's, and then what is measured here
        self._brought = [] if source == path else self._others
        self._own = set() if source == path else set(self._measured)
        self._dropped: dict[str, _Entry] = {}
        #: why the file could not be written, after which times are kept in memory alone; None as long as it could
        self.lost: str | None = None
        #: names of other CPUs that the file has times of, where it has none of this one
        self.foreign = (
            ()
            if mine
            else tuple(dict.fromkeys(s.where.machine for s in self._others if s.where.is_other_cpu(where)))
        )

    def timing(self, key: str) -> Timing | None:
        """Return the time of a candidate, by its key."""
        entry = self._measured.get(key)
        if entry is None:
            return None
        return Timing(entry.ratio, entry.low, entry.high, entry.ms)

    def error(self, key: str) -> LogitsError | None:
        """Return the error of a candidate, by its key."""
        entry = self._measured.get(key)
        if entry is None or entry.power is None or entry.calibration != self._calibration:
            return None
        return LogitsError(entry.power, entry.tolerated)

    def known(self) -> list[Measured]:
        """Return all whose time and error hold here."""
        found = []
        for key in self._measured:
            candidate = Candidate.of(key)
            if (timing := self.timing(key)) and (error := self.error(key)):
                found.append(Measured(candidate, timing, error))
        return found

    def forget(self) -> None:
        """Drop the times of these circumstances: they do not hold any more."""
        for key in tuple(self._measured):
            self.drop(key)

    def drop(self, key: str) -> None:
        """Drop what is known of a candidate, by its key; it leaves the file when that is written next."""
        if (entry := self._measured.pop(key, None)) is not None:
            self._own.discard(key)
            self._dropped[key] = entry

    def keep(self, measured: Iterable[Measured]) -> None:
        """Take in measures, those that say nothing left out, and write the file; where that fails `lost` says why, and the work goes on."""
        for one in measured:
            if one.timing.usable and one.candidate != Candidate():  # which is what all others are measured by
                self._take(one)
        if self._path is None or self.lost is not None:
            return
        folder = self._path.parent
        try:
            # so that what another build writes between reading and writing is not lost; a folder that is gone is told by writing
            with held(folder) if folder.is_dir() else nullcontext():
                self._write(self._path, self._with_others(self._path))
        except (EngineError, OSError) as error:
            self.lost = str(error)

    def _take(self, one: Measured) -> None:
        key = one.candidate.key
        if one.error is None and self.timing(key) == one.timing:
            return  # its error may be known all the same
        entry = _entry(one, self._calibration)
        if entry != self._measured.get(key):
            self._measured[key] = entry
            self._own.add(key)

    def _with_others(self, path: Path) -> dict[str, _Entry]:
        """Return what the file should have of these circumstances, and take in its other sections.

        Builds may share the file: what others have written since stays, but for what was measured anew or found wrong here.
        """
        if not path.exists():
            return self._measured
        try:
            sections = load_timings(path).sections
        except InputError:  # whatever it is now, it was good before this build
            return self._measured
        theirs = {
            name: entry
            for one in sections
            if one.where == self._where
            for name, entry in one.measured.items()
        }
        stay = {name: entry for name, entry in theirs.items() if self._dropped.get(name) != entry}
        others = {one.where: one for one in self._brought}
        for one in sections:
            if one.where != self._where:
                known = others[one.where].measured if one.where in others else {}
                others[one.where] = _Section(one.where, {**known, **one.measured})
        self._others = list(others.values())
        return {**stay, **{name: entry for name, entry in self._measured.items() if name in self._own}}

    def save(self, path: Path) -> None:
        """Write the file, whole or not at all.

        Raises:
            engines.EngineError: it cannot be written.
        """
        self._write(path, self._measured)

    def _write(self, path: Path, measured: dict[str, _Entry]) -> None:
        sections = [*self._others, _Section(self._where, measured)]
        text = json.dumps(to_builtins(_File(SCHEMA, sections)), indent=1, allow_nan=False) + "\n"
        with atomic_path(path) as temporary:
            temporary.write_text(text, encoding="utf-8")


def _entry(one: Measured, calibration: str) -> _Entry:
    timing = {name: value for name, value in asdict(one.timing).items() if name != "noise"}
    if one.error is None:
        return _Entry(**timing)
    return _Entry(**timing, calibration=calibration, power=one.error.power, tolerated=one.error.tolerated)


def load_timings(path: Path) -> _File:
    """Read a file of timings.

    Raises:
        InputError: it is damaged, or of a later release.
    """
    remedy = "delete it, and what it held is measured again"
    found = decode(path, _File, remedy)
    if found.schema != SCHEMA:
        raise InputError(
            f"{path} is no file of timings that this release reads (schema {found.schema}); {remedy}"
        )
    return found

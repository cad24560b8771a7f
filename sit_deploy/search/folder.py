"""The folder of a search: what it has done so far, and in the end what it found.

scores.json · latency-PRECISION.json      what another run of the same search goes on from
search.json · search.html · search.md     the front and the choice
bundle/                                   the engine that was chosen
"""

from __future__ import annotations

import contextlib
import json
import shutil
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from engines.files import atomic_path
from sit_deploy.errors import InputError
from sit_deploy.files import remove_empty, scratch, uninterrupted
from sit_deploy.report.search_page import render_search
from sit_deploy.report.search_record import BUNDLE, RECORD, SearchRecord

if TYPE_CHECKING:
    from typing_extensions import Self

PAGE, MARKDOWN = "search.html", "search.md"
SCORES = "scores.json"
_TABLE = "latency-{}.json"


class SearchFolder:
    """The folder of a search. `open` makes it.

    Attributes:
        path: of the folder.
        work: a folder for bundles on the way, gone at the end.
    """

    def __init__(self, path: Path, work: Path) -> None:
        self.path, self.work = path, work

    @classmethod
    @contextlib.contextmanager
    def open(cls, path: Path, force: bool, given: Collection[Path] = ()) -> Iterator[Self]:
        """Give the folder of a search, to be begun or to go on.

        Args:
            path: of the folder.
            force: remove what a search in it has found and measured before.
            given: tables that are read, and so stay, wherever they lie.

        Raises:
            InputError: it holds a finished search, or something else; or it cannot be written.
        """
        path = path.absolute()
        check_folder(path, force)
        made = [place for place in (path, *path.parents) if not place.exists()]
        try:
            path.mkdir(parents=True, exist_ok=True)
            if force and _holds_a_search(path):
                _clear(path, {place.resolve() for place in given})
            with scratch(path / BUNDLE) as work:
                yield cls(path, work)
        except OSError as error:
            if error.filename and not str(error.filename).startswith(str(path)):
                raise
            raise InputError(
                f"cannot write to {path} ({error.strerror or error}); choose another -o"
            ) from None
        finally:
            remove_empty(made)  # nothing was done yet

    @property
    def scores(self) -> Path:
        """The file of scores."""
        return self.path / SCORES

    def table(self, precision: str) -> Path:
        """The file of a latency table."""
        return self.path / _TABLE.format(precision)

    def finish(self, record: SearchRecord, bundle: Path | None) -> None:
        """Write what was found; a bundle is moved out of `work`."""
        pages = {PAGE: render_search(record), MARKDOWN: render_search(record, "md")}
        with uninterrupted():
            shutil.rmtree(self.path / BUNDLE, ignore_errors=True)
            if bundle is not None:
                bundle.replace(self.path / BUNDLE)
            for name, text in pages.items():
                _write(self.path / name, text)
            fields = record.to_dict()
            _write(
                self.path / RECORD, json.dumps(fields, indent=1, ensure_ascii=False, allow_nan=False) + "\n"
            )


def _write(path: Path, text: str) -> None:
    with atomic_path(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def _tables(path: Path) -> list[Path]:
    return list(path.glob(_TABLE.format("*")))


def _holds_a_search(path: Path) -> bool:
    """Whether a search was begun or finished in a folder: it writes its scores before anything else but tables."""
    return (path / SCORES).exists() or (path / RECORD).exists()


def _clear(path: Path, given: set[Path]) -> None:
    """Remove what a search has left in its folder, but for tables that were given."""
    for name in (RECORD, PAGE, MARKDOWN, SCORES):
        (path / name).unlink(missing_ok=True)
    for table in _tables(path):
        if table.resolve() not in given:
            table.unlink(missing_ok=True)
    shutil.rmtree(path / BUNDLE, ignore_errors=True)


def check_folder(path: Path, force: bool) -> None:
    """Refuse, before any work, a folder that a search cannot be written to.

    Raises:
        InputError: it is a file, holds a finished search, or something else.
    """
    if not path.exists():
        return
    if not path.is_dir():
        raise InputError(f"output {path} is not a folder; choose another with -o")
    # a folder called bundle may well be that of `build -o bundle`
    known = (RECORD, PAGE, MARKDOWN, BUNDLE, SCORES) if _holds_a_search(path) else ()
    ours = {*known, *(table.name for table in _tables(path))}
    others = sorted(p.name for p in path.iterdir() if p.name not in ours and not p.name.startswith("."))
    if others:
        raise InputError(
            f"output folder {path} has other files in it ({', '.join(others[:3])}); choose an empty or new one with -o"
        )
    if (path / RECORD).exists() and not force:
        raise InputError(
            f"output folder {path} holds a search that is finished; pass --force to search anew, or choose another -o"
        )

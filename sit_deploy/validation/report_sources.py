"""What `sit-deploy report` is given: bundles, folders of them, folders of searches, and the JSON of earlier reports."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from sit_deploy.bundle import Bundle, is_bundle, load_bundle
from sit_deploy.errors import InputError
from sit_deploy.report.read import read_evidence
from sit_deploy.report.search_record import BUNDLE, RECORD, SearchRecord, read_search
from sit_deploy.report.types import Evidence


@dataclass
class Sources:
    """What there is to report on.

    Attributes:
        bundles: to measure.
        measured: what earlier reports hold.
        searches: that chose the schedule of a bundle, by its path.
        notes: on searches that are left out, in sentences.
    """

    bundles: list[Bundle] = field(default_factory=list)
    measured: list[Evidence] = field(default_factory=list)
    searches: dict[Path, SearchRecord] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)

    def name(self, bundle: Bundle) -> str:
        """Return what a bundle is called: that of a search, which are all called `bundle`, as the search's folder is."""
        path = bundle.path.resolve()
        return path.parent.name if path.name == BUNDLE and bundle.path in self.searches else path.name


def open_sources(paths: Sequence[Path]) -> Sources:
    """Open what is to be reported on.

    Raises:
        InputError: a path that is neither bundle nor report, or a folder without a bundle.
    """
    sources = Sources()
    for path in paths:
        if path.suffix.lower() == ".json" and not path.is_dir():
            sources.measured += read_evidence(path)
        elif path.is_dir() and not is_bundle(path):
            sources.bundles += [load_bundle(folder) for folder in _bundles_in(path)]
        else:
            sources.bundles.append(load_bundle(path))
    _find_searches(sources)
    return sources


def _bundles_in(folder: Path) -> list[Path]:
    """Return the bundles in a folder, and those in folders of searches in it.

    Raises:
        InputError: there is none.
    """
    found = []
    for entry in sorted(entry for entry in folder.iterdir() if entry.is_dir()):
        if is_bundle(entry):
            found.append(entry)
        elif (entry / RECORD).is_file() and is_bundle(entry / BUNDLE):
            found.append(entry / BUNDLE)
    if found:
        return found
    if (folder / RECORD).is_file():
        if read_search(folder).chosen is None:
            raise InputError(
                f"the search in {folder} chose no schedule, so there is no bundle to report on: {folder / 'search.html'} says why, and what to "
                "search for"
            )
        raise InputError(
            f"{folder} holds a search and lacks its bundle, the folder {BUNDLE}; copy the folder whole, or run `sit-deploy search` again with "
            "--force"
        )
    if (folder / "scores.json").is_file():
        raise InputError(
            f"{folder} holds a search that is not finished; run the same `sit-deploy search` again, which goes on where it was"
        )
    raise InputError(
        f"{folder} has no bundle in it; make one with `sit-deploy build -o {folder / 'sit_s-fp16'}`"
    )


def _find_searches(sources: Sources) -> None:
    """Read the search beside every bundle that has one, and see that it is the one that chose it.

    What is wrong with a search does not touch the bundle, which is judged by what is measured of it: the search is left out, with a note.
    """
    beside: dict[Path, list[Bundle]] = {}
    for bundle in sources.bundles:
        folder = bundle.path.resolve().parent
        if (folder / RECORD).is_file():
            beside.setdefault(folder, []).append(bundle)
    for folder, bundles in beside.items():
        try:
            record = read_search(folder)
        except InputError as error:
            sources.notes.append(f"the search beside {bundles[0].path} is left out: {error}")
            continue
        chosen = [bundle for bundle in bundles if bundle.manifest.digest == record.bundle]
        sources.searches |= {bundle.path: record for bundle in chosen}
        if not chosen:
            sources.notes.append(
                f"the search beside {bundles[0].path} is left out: {folder / RECORD} chose another bundle than this one, which was built since; "
                "to see both, search again with --force"
            )

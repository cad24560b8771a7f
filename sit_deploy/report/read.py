"""Reading reports back from JSON: that of a bundle's build, and those of measured bundles, which may be of another machine."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from sit_deploy.bundle import Bundle
from sit_deploy.errors import InputError
from sit_deploy.portable.form import KIND
from sit_deploy.report.build_types import BuildReport
from sit_deploy.report.types import SCHEMA, Evidence
from sit_deploy.schema import read_json


def read_build_report(bundle: Bundle) -> BuildReport:
    """Return report.json of a bundle, its fields checked.

    Raises:
        InputError: names the first field that is not as it should be.
    """
    path, again = bundle.path / "report.json", "build the bundle again"
    return BuildReport.from_dict(read_json(path, again), path, again)


def read_evidence(path: Path) -> list[Evidence]:
    """Return the evidence in a JSON file that `sit-deploy report` wrote; its verdicts are left aside, to be judged anew.

    Raises:
        InputError: not such a file.
    """
    again = "pass one that `sit-deploy report -o FILE.json` wrote"
    fields = read_json(path, again)
    if isinstance(fields, dict) and fields.get("kind") == KIND:
        raise InputError(
            f"{path} is what check.py measured: name its bundles, and pass it as --measured {path}"
        )
    rows = fields.get("bundles") if isinstance(fields, dict) else None
    if not isinstance(rows, list) or not all(isinstance(row, dict) and "schema" in row for row in rows):
        raise InputError(f"{path} is not a report of sit-deploy; {again}")
    if not rows:
        raise InputError(f"{path} is a report of no bundle; {again}")
    evidence = []
    for number, row in enumerate(rows):
        if row["schema"] != SCHEMA or isinstance(row["schema"], bool):
            raise InputError(
                f"{path} is a report of schema {str(row['schema'])[:20]}, and {SCHEMA} is known here; measure the bundle again"
            )
        where = f"{path} is not a whole report of sit-deploy: bundles[{number}]"
        evidence.append(Evidence.from_dict(row, where, again))
    return evidence


def require_same_classes(builds: Sequence[tuple[str, BuildReport]]) -> None:
    """Refuse to put bundles side by side that tell other classes apart.

    Args:
        builds: by what names the bundle.

    Raises:
        InputError: names two of them.
    """
    first, a = builds[0]
    for other, b in builds[1:]:
        if a.embeds != b.embeds:
            one, two = (first, other) if a.embeds else (other, first)
            raise InputError(f"{one} gives embeddings and {two} tells classes apart; report them one by one")
        if a.embeds:
            continue
        if a.model.num_classes != b.model.num_classes or a.classes != b.classes:
            raise InputError(
                f"{first} and {other} tell other classes apart ({a.model.num_classes} and "
                f"{b.model.num_classes}); report them one by one"
            )


def require_comparable(rows: Sequence[Evidence]) -> None:
    """Refuse to put bundles side by side whose accuracies mean different things.

    Raises:
        InputError: names two of them, and what differs.
    """
    require_same_classes([(row.bundle, row.build) for row in rows])
    first = rows[0]
    for other in rows[1:]:
        ours, theirs = (row.accuracy or row.embedding for row in (first, other))
        if ours and theirs and (ours.data, ours.images) != (theirs.data, theirs.images):
            one, two = (
                f"{found.images} images of {found.data}" if found.data else f"{found.images} synthetic images"
                for found in (ours, theirs)
            )
            raise InputError(
                f"{first.bundle} was measured on {one}, {other.bundle} on {two}; measure both on the same"
            )
    names = [row.bundle for row in rows]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise InputError(f"{twice[0]} is there twice; leave one out")

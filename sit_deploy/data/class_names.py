"""Class names: matching those of a data set with the model's (by name, by number, last by order), and reading a file of them."""

from __future__ import annotations

import re
import unicodedata
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from sit_deploy.data.image_files import special_kind
from sit_deploy.errors import InputError
from sit_deploy.text import shown

_DIGITS = re.compile(r"[0-9]+")
_SHOWN = 3  # names in a message
_SYNSET = re.compile(r"n[0-9]{8}")
# before a name, which has a letter: 001.albatross, 3_cat, n01440764_tench, and none of 18-24 and 2020-01
_NUMBERED = re.compile(r"^(n[0-9]{8}|[0-9]+)[\s._-]+(?=.*[^\W\d_])")
_OF_IMAGENET = 1000  # classes, which every model of them has in the order of their synsets


@dataclass(frozen=True)
class ClassMatch:
    """How the classes of a data set were matched with the model's.

    Attributes:
        labels: the model's label of each of them.
        notes: what to know of it, in sentences.
        doubt: why this reading may be wrong, None where it is not.
        names: what the classes are called in the order of the model's labels, which tells what other orders there could be.
    """

    labels: list[int]
    notes: tuple[str, ...] = ()
    doubt: str | None = None
    names: tuple[str, ...] = ()


def match_names(
    where: str,
    dataset_classes: Sequence[str],
    classes: Sequence[str] | None,
    num_classes: int,
    *,
    ordered: bool = False,
) -> ClassMatch:
    """Match the classes of a data set with the model's.

    Classes called as the model's are matched by name, spelling of case, spaces, underscores and hyphens apart, and a number or
    synset before the name (001.albatross, n01440764_tench); some may be missing. Where none bears a name of the model's (ImageNet's folders are numbers), numbers from 0 (or from 1, up to
    the number of classes) are labels, and any other names are the model's classes in order, and must be as many.

    Args:
        where: the data set, as messages call it.
        dataset_classes: its classes in its own order.
        classes: the model's, in label order.
        num_classes: of the model.
        ordered: the data set has labels of its own; `dataset_classes` is in their order, and not merely sorted.

    Raises:
        InputError: classes that the model has not, of another number, or that two readings make the same.
    """
    twice = [name for name, count in Counter(dataset_classes).items() if count > 1]
    if twice and not classes:
        classes = None  # a data set's own labels tell them apart
    matched = None
    if classes:
        matched = _by_name(where, dataset_classes, classes) or _by_part(where, dataset_classes, classes)
    matched = matched or (None if ordered else _by_number(where, dataset_classes, num_classes))
    return matched or _by_order(where, dataset_classes, classes, num_classes, ordered)


def read_class_names(path: str | Path, classes: int | None = None) -> list[str]:
    """Class names from a UTF-8 text file, one a line, in label order. Names may repeat, as ImageNet's do.

    Raises:
        InputError: the file cannot be read, a line is empty, or there are not `classes` of them.
    """
    if special := special_kind(path):
        raise InputError(
            f"{shown(path)} is a {special}, no file of class names; pass a text file, one name a line"
        )
    try:
        names = [line.strip() for line in Path(path).read_text(encoding="utf-8-sig").splitlines()]
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(
            f"{path}: cannot read the class names ({error}); pass a UTF-8 text file, one name a line"
        ) from None
    while names and not names[-1]:
        names.pop()
    if "" in names:
        raise InputError(f"{path}: line {names.index('') + 1} is empty; give every class a name")
    if not names:
        raise InputError(f"{path}: no class names; write one a line")
    if classes is not None and len(names) != classes:
        raise InputError(
            f"{path}: {len(names)} class names for a model of {classes} classes; write one a line"
        )
    return names


def plain(name: str) -> str:
    """Return a name as it is compared: case, spaces, underscores, hyphens, zeros in front and forms of Unicode are the same."""
    name = unicodedata.normalize("NFKC", name).casefold()
    name = re.sub(r"[\s_\-]+", " ", unicodedata.normalize("NFKC", name)).strip()
    return str(int(name)) if _DIGITS.fullmatch(name) else name


def natural_key(name: str) -> list[tuple[bool, int | str]]:
    """Return what to sort by for an order that people find natural, and timm takes: class2 before class10, case apart."""
    return [
        (not part.isdecimal(), int(part) if part.isdecimal() else part)
        for part in re.split(r"([0-9]+)", name.lower())
        if part
    ]


def listed(names: Sequence[str], count: int = _SHOWN) -> str:
    """Return the first names for a message."""
    return ", ".join(names[:count]) + (", ..." if len(names) > count else "")


def _by_name(where: str, dataset_classes: Sequence[str], classes: Sequence[str]) -> ClassMatch | None:
    """Match by name; None where none bears a name of the model's."""
    exact = set(classes)
    by_plain: dict[str, list[int]] = {}
    for label, name in enumerate(classes):
        by_plain.setdefault(plain(name), []).append(label)
    known = [name for name in dataset_classes if name in exact or plain(name) in by_plain]
    if not known:
        return None
    strange = sorted(set(dataset_classes) - set(known))
    if strange:
        raise InputError(
            f"{where} has classes that the model has no name for ({listed(strange)}) beside some that it has; "
            "rename or remove them"
        )
    if all(name in exact for name in dataset_classes):
        if len(exact) != len(classes):
            raise InputError(
                f"some of the model's class names are the same, so the folders of {where} cannot be matched by "
                "name; make the names differ, or name the folders by number (0000, 0001, ...) in label order"
            )
        return ClassMatch(
            [classes.index(name) for name in dataset_classes],
            _left_out(len(dataset_classes), len(classes)),
            None,
            tuple(classes),
        )
    same = [name for name, count in Counter(map(plain, dataset_classes)).items() if count > 1]
    if same:
        pair = [name for name in dataset_classes if plain(name) == same[0]]
        raise InputError(
            f"{where} has the class folders {' and '.join(pair)}, which are one name but for case, spaces, hyphens or zeros in "
            "front; merge them, or rename one"
        )
    several = [name for name in dataset_classes if len(by_plain[plain(name)]) > 1]
    if several:
        theirs = " and ".join(classes[label] for label in by_plain[plain(several[0])])
        raise InputError(
            f"the class folder {several[0]} of {where} may be the model's {theirs}; name the folders as the model's classes"
        )
    labels = [by_plain[plain(name)][0] for name in dataset_classes]
    changed = [
        f"{name} is {classes[label]}"
        for name, label in zip(dataset_classes, labels, strict=True)
        if name != classes[label]
    ]
    note = f"matched {len(changed)} of {len(dataset_classes)} class names but for their spelling ({listed(changed)})"
    return ClassMatch(labels, (note, *_left_out(len(dataset_classes), len(classes))), None, tuple(classes))


def _by_part(where: str, dataset_classes: Sequence[str], classes: Sequence[str]) -> ClassMatch | None:
    """Match by what follows a number or synset in the names, or by the synset alone; None where that does not find every class."""
    for part in (_behind_number, _synset_of):
        theirs, ours = [part(name) for name in dataset_classes], [part(name) for name in classes]
        unique = all(len(set(map(plain, names))) == len(names) for names in (theirs, ours))
        if not unique or not set(map(plain, theirs)) <= set(map(plain, ours)):
            continue
        matched = _by_name(where, theirs, ours)
        if matched is None:
            continue
        pairs = [f"{name} is {classes[i]}" for name, i in zip(dataset_classes, matched.labels, strict=True)]
        note = f"matched {len(pairs)} class names but for the number before them ({listed(pairs)})"
        return ClassMatch(matched.labels, (note, *_left_out(len(pairs), len(classes))), None, tuple(classes))
    return None


def _behind_number(name: str) -> str:
    return _NUMBERED.sub("", name)


def _synset_of(name: str) -> str:
    found = _SYNSET.match(name)
    return found[0] if found else name


def _by_number(where: str, dataset_classes: Sequence[str], num_classes: int) -> ClassMatch | None:
    """Take names that are numbers as labels; None where they cannot be."""
    if not all(_DIGITS.fullmatch(name) for name in dataset_classes):
        return None
    values = [int(name) for name in dataset_classes]
    if len(set(values)) < len(values):
        same = next(value for value, count in Counter(values).items() if count > 1)
        pair = [name for name, value in zip(dataset_classes, values, strict=True) if value == same]
        raise InputError(
            f"{where} has the classes {' and '.join(pair)}, which are the same number; merge them, or rename one"
        )
    low, high, names = min(values), max(values), tuple(map(str, range(num_classes)))
    if low >= 1 and high == num_classes:
        note = f"the classes count from 1, so {low} is taken for the model's class {low - 1}, and so on"
        return ClassMatch(
            [value - 1 for value in values], (note, *_left_out(len(values), num_classes)), None, names
        )
    if high >= num_classes:
        return None
    notes = _left_out(len(values), num_classes)
    doubt = None
    if low > 0:
        doubt = (
            f"the classes {low} to {high} are taken as the model's classes of these numbers, counted from 0, and they may "
            "count from 1; name the folders as the model's classes"
        )
    elif [dataset_classes[values.index(value)] for value in sorted(values)] != list(dataset_classes):
        notes = ("the classes are taken by number (2 before 10), not as text", *notes)
    return ClassMatch(values, notes, doubt, names)


def _or_of_some(
    dataset_classes: Sequence[str], classes: Sequence[str] | None, num_classes: int, ordered: bool
) -> str:
    """Return how folders are to be called that are some of the model's classes alone; nothing where they cannot be."""
    if ordered or len(dataset_classes) > num_classes:
        return ""
    names = f"as the model's classes ({listed(classes)}) or " if classes else ""
    numbers = f"by their numbers (0 to {num_classes - 1})"
    return f"; of some of them alone: name the folders {names}{numbers}"


def _by_order(
    where: str, dataset_classes: Sequence[str], classes: Sequence[str] | None, num_classes: int, ordered: bool
) -> ClassMatch:
    if len(dataset_classes) != num_classes:
        raise InputError(
            f"{where} has {len(dataset_classes)} classes, the model {num_classes} classes; "
            f"give a validation set of the same classes{_or_of_some(dataset_classes, classes, num_classes, ordered)}"
        )
    doubt = None
    natural = sorted(dataset_classes, key=natural_key)
    if list(dataset_classes) == sorted(dataset_classes) and natural != list(dataset_classes):
        first = next(i for i, (a, b) in enumerate(zip(dataset_classes, natural, strict=True)) if a != b)
        doubt = (
            f"the order of the class names is not certain: class {first} is {dataset_classes[first]} as torchvision sorts them, which is "
            f"taken, and {natural[first]} as timm does; pass --labels when building, with the folders' names in label order"
        )
    elif (
        classes
        and not ordered
        and not (num_classes == _OF_IMAGENET and all(map(_SYNSET.fullmatch, dataset_classes)))
    ):
        doubt = (
            f"no class bears a name of the model's ({listed(sorted(dataset_classes))} and {listed(list(classes))}), so they are taken "
            "in sorted order; name them as the model's classes, or pass their names in label order with --labels when "
            "building"
        )
    return ClassMatch(list(range(num_classes)), (), doubt, tuple(dataset_classes))


def _left_out(count: int, num_classes: int) -> tuple[str, ...]:
    if count == num_classes:
        return ()
    return (
        f"{num_classes - count} of the model's {num_classes} classes have no images here, and nothing is said of them",
    )

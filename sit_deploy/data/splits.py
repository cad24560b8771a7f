"""The parts of a data set: which folder below the one that was named holds the images to train on, and which to measure on.

People and sites call them by many names; what is never done is to take the parts for classes.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Literal

from sit_deploy.data.class_names import listed, plain
from sit_deploy.data.image_files import ImageFiles, check_folder, find_images, has_images, subfolders
from sit_deploy.errors import InputError
from sit_deploy.text import shown

Role = Literal["train", "val", "test"]
# who has both picks epochs on the first, and keeps the second for the end
HELD_OUT: tuple[Role, ...] = ("val", "test")
TRAIN: tuple[Role, ...] = ("train",)

_ROLE_WORDS: Mapping[str, Role] = {
    **dict.fromkeys(("train", "training", "trn", "trainval", "trainvalid"), "train"),
    **dict.fromkeys(("val", "valid", "validation", "validate", "eval", "evaluation", "dev", "devel", "development"), "val"),
    **dict.fromkeys(("holdout", "heldout"), "val"),
    **dict.fromkeys(("test", "testing", "tst"), "test"),
}  # fmt: skip
_PAIRS = {"hold out": "holdout", "held out": "heldout", "train val": "trainval"}
# says nothing of which part it is
_FILLER_WORDS = frozenset({
    "set", "sets", "data", "dataset", "datasets", "image", "images", "img", "imgs", "picture",
    "pictures", "photo", "photos", "split", "splits", "part", "folder", "files", "seg", "raw",
})  # fmt: skip
_IMAGES_FOLDERS = frozenset({
    "data", "dataset", "datasets", "image", "images", "imgs", "pictures", "photos", "jpegimages",
})  # fmt: skip
# pictures that say where something is in another picture, or that nobody has labelled
_ANNOTATION_WORDS = frozenset({
    "annotation", "annotations", "label", "labels", "mask", "masks", "bbox", "bboxes", "trimaps",
    "segmentation", "segmentations", "segmentationclass", "segmentationobject", "imagesets",
    "groundtruth", "meta", "metadata", "attributes", "docs",
})  # fmt: skip
_UNLABELLED_WORDS = frozenset({
    "pred", "prediction", "predictions", "unlabeled", "unlabelled", "unsup", "extra", "demo", "sample",
    "samples",
})  # fmt: skip


class NoHeldOutPartError(InputError):
    """A folder has images to train on, and none that are held out."""


def role_of(name: str) -> Role | None:
    """Return which part a folder's name says it is: Training, test_set, val2017, seg_train; None for another name."""
    words = [word for word in _words(name) if word not in _FILLER_WORDS]
    return _ROLE_WORDS.get(words[0]) if len(words) == 1 else None


def find_part(
    root: Path,
    roles: Collection[Role],
    split: str | None = None,
    *,
    classes: Collection[str] | None = None,
    num_classes: int | None = None,
    option: str = "--split",
) -> Path:
    """Return the folder of class folders: the one given where it is that, or a part of it.

    Args:
        root: the folder.
        roles: parts to take, the first that there is.
        split: the part by name, however spelt, in place of that.
        classes: names of the model's classes, which are never parts.
        num_classes: how many.
        option: what names the part on the command line.

    Raises:
        InputError: nothing of the kind, or several; the message lists what there is.
    """
    if not root.is_dir():
        return root  # whoever reads it says what is wrong
    check_folder(root)
    part = _find_part(root, roles, split, classes, num_classes, option)
    _refuse_parts_of_classes(part)
    return part


def _find_part(
    root: Path,
    roles: Collection[Role],
    split: str | None,
    classes: Collection[str] | None,
    num_classes: int | None,
    option: str,
) -> Path:
    root = _skip_wrappers(root, classes)
    if split:
        return _skip_wrappers(_named_part(root, split, option), classes, inside=True)
    inside = subfolders(root)
    theirs = {plain(name) for name in classes or ()}
    if theirs and all(plain(shown(name)) in theirs for name in inside):
        return root
    parts = _parts_below(root, inside, option)
    if parts is None:
        _refuse_unknown_parts(root, inside, num_classes, option)
        return root
    return _skip_wrappers(_choose_part(root, parts, roles, option), classes, inside=True)


def training_part(root: Path, split: str | None) -> Path:
    """Return the folder of class folders to train on; `split` names it, where its own name does not tell.

    Raises:
        InputError: none, or several.
    """
    part = find_part(root, TRAIN, split, option="--train-split")
    if part == root:
        raise InputError(
            f"{shown(root)} has no subfolder train; put the images into {shown(root)}/train/CLASS/ and "
            f"{shown(root)}/val/CLASS/, or name its parts with --train-split and --val-split"
        )
    return part


def held_out_part(root: Path, split: str | None) -> Path:
    """Return the folder of class folders that are held out from training; `split` as for `training_part`.

    Raises:
        InputError: none, or several.
    """
    try:
        return find_part(root, HELD_OUT, split, option="--val-split")
    except NoHeldOutPartError:
        raise InputError(
            f"{shown(root)} has no subfolder val or valid; put the held-out images into {shown(root)}/val/CLASS/, or name "
            "their part with --val-split"
        ) from None


def find_training_images(root: Path) -> tuple[Path, ImageFiles]:
    """Return the images to calibrate on, and where they are: the part for training, where a folder holds parts.

    Raises:
        InputError: parts, and none for training; or as `find_images`.
    """
    where = _calibration_part(root)
    return where, find_images(where)


def check_training_images(root: Path) -> None:
    """Refuse what `find_training_images` refuses, without listing all images.

    Raises:
        InputError: as `find_training_images`.
    """
    where = _calibration_part(root)
    if not (where.is_dir() and has_images(where)):
        find_images(where)  # which says what is wrong


def _calibration_part(root: Path) -> Path:
    if not root.is_dir():
        return root
    check_folder(root)
    root = _skip_wrappers(root, None)
    inside = [name for name in subfolders(root) if has_images(root / name)]
    parts: dict[str, Role] = {
        name: part_role
        for name in inside
        if (part_role := role_of(name)) or (part_role := _role_of_longer_name(name))
    }
    others = [name for name in inside if name not in parts and not _holds_no_part(name)]
    if not parts or others or len({*parts.values()}) < 2:
        return root
    train = [name for name, part_role in parts.items() if part_role == "train"]
    if len(train) != 1:
        raise InputError(
            f"{shown(root)} has the parts {_listing(inside)}, and images to calibrate on must not be those that accuracy is "
            f"measured on; pass the folder of one part"
        )
    return root / train[0]


def _words(name: str) -> list[str]:
    """Return the words of a name in lower case, without digits: TrainingSet, training_set, "training set 2"."""
    spaced = re.sub(r"([a-z])([A-Z])", r"\1 \2", name)
    text = " ".join(re.findall(r"[^\W\d_]+", spaced)).casefold()
    for pair, word in _PAIRS.items():
        text = re.sub(rf"\b{pair}\b", word, text)
    return [_without_filler(word) for word in text.split()]


def _without_filler(word: str) -> str:
    """Return trainset, testimages and the like without their ending."""
    for ending in ("set", "sets", "data", "images", "imgs", "dir", "folder"):
        if word.endswith(ending) and word[: -len(ending)] in _ROLE_WORDS:
            return word[: -len(ending)]
    return word


def _role_of_longer_name(name: str) -> Role | None:
    """Return the part that one word of a longer name says: imagenet_val, asl_alphabet_test."""
    roles = {_ROLE_WORDS[word] for word in _words(name) if word in _ROLE_WORDS}
    return roles.pop() if len(roles) == 1 else None


def _holds_no_part(name: str) -> bool:
    words = _words(name)
    if not words or words[-1] in _ANNOTATION_WORDS or "".join(words) in _ANNOTATION_WORDS:
        return bool(words)
    return any(word in _UNLABELLED_WORDS for word in words)


def _skip_wrappers(root: Path, classes: Collection[str] | None, *, inside: bool = False) -> Path:
    """Go down through folders that hold one folder and no image: archives are often packed so.

    Args:
        root: where to begin.
        classes: names of the model's classes, which are never parts.
        inside: a part was chosen already, in which one more folder of its name is none of several.
    """
    theirs = {plain(name) for name in classes or ()}
    for _ in range(8):
        names = [name for name in subfolders(root) if has_images(root / name)]
        content = [name for name in names if not _holds_no_part(name)]
        if len(content) != 1 or has_images(root, below=False):
            break
        name = content[0]
        if len(names) > 1 and plain(name) not in _IMAGES_FOLDERS:
            break
        if plain(shown(name)) in theirs or (not inside and role_of(name)):
            break
        if has_images(root / name, below=False):  # a class, or a heap
            if len(names) > 1 or plain(name) in _IMAGES_FOLDERS:
                raise InputError(
                    f"{shown(root / name)} holds images that are in no class folders; put each class's images into a folder of "
                    "its own"
                )
            break
        root = root / name
    return root


def _named_part(root: Path, split: str, option: str) -> Path:
    if (root / split).is_dir():
        return root / split
    inside = subfolders(root)
    alike = [name for name in inside if plain(name) == plain(split)]
    alike = alike or [name for name in inside if role_of(split) and _same_word(name, split)]
    if len(alike) != 1:
        there = f"it has {_listing(inside)}" if inside else "it has none"
        what = "no subfolder" if not alike else "several subfolders"
        raise InputError(f"{shown(root)} has {what} {shown(split)}; check {option} ({there})")
    return root / alike[0]


def _same_word(name: str, other: str) -> bool:
    """Whether two names of parts are forms of one word: test and Testing, val and validation_set; not dev and val."""
    if role_of(name) != role_of(other):
        return False
    one, two = (next(word for word in _words(text) if word not in _FILLER_WORDS) for text in (name, other))
    return one.startswith(two) or two.startswith(one)


def _parts_below(root: Path, inside: list[str], option: str) -> dict[str, Role] | None:
    """Return the parts that a folder holds, None where its folders are classes."""
    parts: dict[str, Role] = {name: part_role for name in inside if (part_role := role_of(name))}
    others = [
        name for name in inside if name not in parts and not _holds_no_part(name) and has_images(root / name)
    ]
    nested = {name for name in parts if has_class_folders(root / name)}
    if others and not nested:
        loose = {name: _role_of_longer_name(name) for name in (*parts, *others)}
        if (
            None in loose.values()
            or len({*loose.values()}) < 2
            or not any(has_class_folders(root / name) for name in loose)
        ):
            return None
        return {name: part_role for name, part_role in loose.items() if part_role}
    if others:
        raise InputError(
            f"{shown(root)} holds parts of a data set ({_listing(list(parts))}) beside other folders ({_listing(others)}); name "
            f"the part with {option}, or {option} . where these are the classes"
        )
    return parts or None


def _choose_part(root: Path, parts: Mapping[str, Role], roles: Collection[Role], option: str) -> Path:
    where = shown(root)
    labelled = [name for name in parts if has_class_folders(root / name)]
    for wanted in roles:
        matching = [name for name in labelled if parts[name] == wanted]
        if len(matching) > 1:
            raise InputError(
                f"{where} has {_listing(matching)}, which may each be meant; name one with {option}"
            )
        if matching:
            return root / matching[0]
    wanted_parts = [name for name in parts if parts[name] in roles]
    if len(wanted_parts) == 1 and (labelled or len(parts) == 1):
        return root / wanted_parts[0]  # whoever reads it says that there are no class folders
    if any(has_images(root / name) for name in parts) and not labelled:
        raise InputError(
            f"{where} holds the parts {_listing(parts)}, whose images are in no class folders; put each class's images of a part "
            f"into a folder of its own (or pass {option} . where these are the classes)"
        )
    if "train" in roles:
        raise InputError(
            f"{where} has no subfolder train; put the images into {where}/train/CLASS/ and {where}/val/CLASS/, or name its parts "
            f"with --train-split and --val-split (it has {_listing(parts)})"
        )
    raise NoHeldOutPartError(
        f"{where} has training images only; give the folder of held-out ones, or name its part with {option} (it has "
        f"{_listing(parts)})"
    )


def has_class_folders(folder: Path) -> bool:
    """Whether the images of a folder are in folders below it."""
    return any(has_images(folder / name) for name in subfolders(folder))


def _refuse_unknown_parts(root: Path, inside: list[str], num_classes: int | None, option: str) -> None:
    """Ask where several folders hold the same folders each, as parts do whatever they are called, or one a copy of the others."""
    siblings = {plain(name) for name in inside}
    for name in inside:
        copied = sorted(
            below for below in subfolders(root / name) if plain(below) in siblings - {plain(name)}
        )
        if len(copied) >= 2:
            raise InputError(
                f"{shown(root)} has the class folders {_listing(copied)}, and {shown(name)} beside them with folders of the same "
                f"names, as a copy has: move one of the two away, name a folder with {option}, or pass {option} . where all are classes"
            )
    if len(inside) < 2 or any(has_images(root / name, below=False) for name in inside):
        return
    within = [set(map(plain, subfolders(root / name))) for name in inside]
    shared = {name for name in set.intersection(*within) if not role_of(name)}
    if len(shared) < 2 or (len(inside) == num_classes != len(shared)):
        return
    raise InputError(
        f"{shown(root)} holds the folders {_listing(inside)} with the same folders in each ({listed(sorted(shared))}): if these are "
        f"parts of a data set, name one with {option}; if they are its classes, pass {option} ."
    )


def _refuse_parts_of_classes(root: Path) -> None:
    """Refuse class folders that hold parts of their own: accuracy would be of training images too."""
    for name in subfolders(root):
        roles = {role_of(part) for part in subfolders(root / name)} - {None}
        if "train" in roles and len(roles) > 1:
            example = shown(name)
            raise InputError(
                f"{shown(root)} holds parts below its classes ({example}/{listed(sorted(map(str, roles)))}); lay it out as "
                "val/CLASS, or pass a folder of the held-out images alone"
            )


def _listing(names: Collection[str]) -> str:
    return listed([shown(name) for name in names], 6)

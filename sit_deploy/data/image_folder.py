"""A labelled data set as a folder: one subfolder a class, numbered as torchvision's ImageFolder numbers them."""

from __future__ import annotations

from pathlib import Path

from sit_deploy.data.image_files import check_folder, files_in, images_below, special_kind, subfolders
from sit_deploy.errors import InputError
from sit_deploy.text import shown


class ImageFolder:
    """A labelled data set: one folder a class, laid out and numbered as torchvision's ImageFolder does it.

    Hidden folders and the litter of operating systems are no classes (torchvision counts them).

    Attributes:
        classes: the folders' names, sorted by code point; a class's index is its label. Characters that are not to be shown
            are escaped (`shown`).
        samples: (path, label) pairs, in class order. Folders below a class folder are searched too.
        skipped: the other files in the classes and beside them, counted by ending or kind.

    Raises:
        InputError: a missing root, a root without class folders, or a class without images.
    """

    def __init__(self, root: str | Path) -> None:
        self.root = Path(root)
        where = shown(self.root)
        if not self.root.is_dir():
            raise InputError(f"{where}: {explain_no_folder(self.root)}")
        check_folder(self.root)
        folders = subfolders(self.root)
        if not folders:
            raise InputError(f"{where}: no class folders; put each class's images into a folder of its own")
        self.classes = [shown(name) for name in folders]
        self.skipped = files_in(self.root)
        self.samples: list[tuple[Path, int]] = []
        empty = []
        for label, name in enumerate(folders):
            images = images_below(self.root / name, self.skipped)
            self.samples += [(path, label) for path in images]
            if not images:
                empty.append(self.classes[label])
        if empty:
            listing = ", ".join(empty[:5]) + (", ..." if len(empty) > 5 else "")
            raise InputError(
                f"{where}: no images for {len(empty)} of {len(self.classes)} classes ({listing}); "
                "add images, or remove the empty folders if the labels need not match a trained head"
            )

    def __len__(self) -> int:
        return len(self.samples)


def explain_no_folder(path: Path) -> str:
    """Say what is there in place of a folder of class folders, and what to do."""
    if not path.exists():
        return "no such folder; check the path"
    ending = path.suffix.lower()
    if special := special_kind(path):
        return f"a {special}, and no folder; pass a folder with one subfolder a class"
    if ending in (".zip", ".tar", ".gz", ".tgz", ".bz2", ".xz", ".7z", ".rar"):
        return "an archive; unpack it, and pass the folder with one subfolder a class"
    if ending in (".csv", ".tsv", ".txt", ".json", ".xml", ".parquet"):
        return "a list, and no folder; put the images into one folder a class, and pass the folder of these"
    return "a file, and no folder; pass a folder with one subfolder a class"

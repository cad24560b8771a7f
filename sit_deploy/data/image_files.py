"""Which files of a folder are images: what is passed over in silence, what is counted, and what is refused."""

from __future__ import annotations

import os
import stat
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from sit_deploy.errors import InputError
from sit_deploy.preprocessing import NO_IMAGE, is_image
from sit_deploy.text import shown

# What torchvision's ImageFolder takes for an image. A file with another ending is opened to see what it is.
_IMAGE_ENDINGS = frozenset({".jpg", ".jpeg", ".png", ".ppm", ".bmp", ".pgm", ".tif", ".tiff", ".webp"})
# Called an image too: one that cannot be read is said, and not passed over.
_MORE_ENDINGS = frozenset(
    {".jpe", ".jfif", ".gif", ".avif", ".heic", ".heif", ".jp2", ".jxl", ".tga", ".pbm", ".pnm"}
)
# Lies beside images and is none; not opened, as a text that begins with P2 would be a picture.
_OTHER_ENDINGS = frozenset({
    ".txt", ".csv", ".tsv", ".xml", ".json", ".jsonl", ".yaml", ".yml", ".toml", ".md", ".rst", ".html",
    ".htm", ".log", ".mat", ".npy", ".npz", ".pkl", ".pt", ".pth", ".h5", ".hdf5", ".parquet", ".db",
    ".sqlite", ".xls", ".xlsx", ".doc", ".docx", ".pdf", ".zip", ".tar", ".gz", ".tgz", ".bz2", ".xz",
    ".7z", ".rar", ".py", ".ipynb", ".sh", ".m", ".cfg", ".ini", ".mp4", ".avi", ".mov", ".url", ".lnk",
})  # fmt: skip
# Left behind by operating systems and file managers; they say nothing about the data set.
_LITTER = frozenset({"thumbs.db", "desktop.ini", "ehthumbs.db", "icon\r"})
_LITTER_FOLDERS = frozenset(
    {"__macosx", "@eadir", "lost+found", "$recycle.bin", "system volume information", "#recycle"}
)
_SYSTEM = ("/proc", "/sys", "/dev")  # file systems of the kernel's, whose files never end
_DEEPEST = 40  # folders below one another


@dataclass
class ImageFiles:
    """The images below a folder.

    Attributes:
        images: sorted within each folder.
        skipped: how many other files there are, by ending or kind.
    """

    images: list[Path] = field(default_factory=list)
    skipped: Counter[str] = field(default_factory=Counter)

    @property
    def note(self) -> str | None:
        """What was passed over, as a sentence; None for nothing."""
        return skipped_note(self.skipped)


def skipped_note(skipped: Counter[str]) -> str | None:
    """Return what was passed over, as a sentence; None for nothing."""
    return f"beside the images are {_listing(skipped)}: passed over" if skipped else None


def _listing(skipped: Counter[str]) -> str:
    """Return how many other files there are, and of what kinds: "3 other files, .txt 2, .xml 1"."""
    if not skipped:
        return ""
    kinds = [f"{shown(kind)} {count}" for kind, count in skipped.most_common(5)]
    count = sum(skipped.values())
    return ", ".join([f"{count} other file{'s' * (count != 1)}", *kinds, *["..."] * (len(skipped) > 5)])


def find_images(where: str | Path | Iterable[str | Path]) -> ImageFiles:
    """Find every image of a file, of a folder with all below it, or of several of these.

    Hidden files and the litter of operating systems are passed over, files that are no images are counted; one that is
    called an image and cannot be opened is kept, and named where it is decoded.

    Raises:
        InputError: a missing path, a folder without images, or a file named here that is no image.
    """
    files = ImageFiles()
    for entry in map(Path, [where] if isinstance(where, str | Path) else where):
        if entry.is_dir():
            before = files.skipped.copy()
            images = images_below(entry, files.skipped)
            if not images:
                others = _listing(files.skipped - before)
                raise InputError(
                    f"{shown(entry)}: no images in this folder{f' ({others})' if others else ''}; pass one that has some"
                )
            files.images += images
        elif entry.exists():
            _require_image(entry)
            files.images.append(entry)
        else:
            raise InputError(f"{shown(entry)}: no such file or folder; check the path")
    if not files.images:
        raise InputError("no images given; pass a folder or at least one file")
    return files


def list_images(where: str | Path | Iterable[str | Path]) -> list[Path]:
    """Return every image of a file, of a folder with all below it, or of several of these; see `find_images`."""
    return find_images(where).images


def images_below(folder: Path, skipped: Counter[str]) -> list[Path]:
    """Return the images of a folder and of all below it, in the order of torchvision's ImageFolder; count the other files."""
    check_folder(folder)
    images = []
    for _, files in sorted(_walk(str(folder), ()), key=lambda part: part[0]):
        for entry in sorted(files, key=lambda entry: entry.name):
            kind = _kind(entry)
            if kind is None:
                images.append(Path(entry.path))
            else:
                skipped[kind] += 1
    return images


def has_images(folder: Path, *, below: bool = True) -> bool:
    """Whether there is an image, or a file that is called one, in a folder or in one below it; it stops at the first."""
    return _has_images(str(folder), _DEEPEST if below else 0, set())


def _has_images(folder: str, depth: int, seen: set[str]) -> bool:
    """Whether there is an image below a folder.

    Args:
        folder: where to look.
        depth: folders that are gone down at most.
        seen: where links have led already, so that no circle of them is gone round twice.
    """
    deeper = []
    try:
        with os.scandir(folder) as entries:
            for entry in entries:
                if is_litter(entry.name):
                    continue
                if entry.is_dir():
                    real = os.path.realpath(entry.path) if entry.is_symlink() else None
                    if real is None or not (real in seen or _is_system(real)):
                        deeper.append(entry.path)
                    if real is not None:
                        seen.add(real)
                elif _kind(entry) is None:
                    return True
    except OSError as error:
        raise _unreadable(folder, error) from None
    return depth > 0 and any(_has_images(path, depth - 1, seen) for path in deeper)


def files_in(folder: Path) -> Counter[str]:
    """Count the files that lie in a folder itself, litter apart, by ending or kind."""
    _, files = next(_walk(str(folder), ()))
    names = (Path(entry.name).suffix.lower() or special_kind(entry.path) for entry in files)
    return Counter(name or "without an ending" for name in names)


def subfolders(folder: Path) -> list[str]:
    """Return the names of the folders in one, sorted by code point, without hidden ones and litter."""
    try:
        return sorted(
            entry.name for entry in os.scandir(folder) if entry.is_dir() and not is_litter(entry.name)
        )
    except OSError as error:
        raise _unreadable(folder, error) from None


def is_litter(name: str) -> bool:
    """Whether a name is hidden, or one that operating systems leave behind."""
    lower = name.lower()
    return (
        name.startswith(".")
        or lower in _LITTER
        or lower in _LITTER_FOLDERS
        or lower.endswith(":zone.identifier")
    )


def check_folder(folder: Path) -> None:
    """Refuse what would never end to be walked.

    Raises:
        InputError: the root of the file system, or a folder of the kernel's.
    """
    real = os.path.realpath(folder)
    if real == "/" or (_is_system(real) and os.name == "posix"):
        raise InputError(f"{shown(folder)} belongs to the system and is no data set; pass a folder of images")


def _is_system(real: str) -> bool:
    return not f"{real}/".startswith("/dev/shm/") and any(
        f"{real}/".startswith(f"{place}/") for place in _SYSTEM
    )


def _walk(folder: str, above: tuple[tuple[int, int], ...]) -> Iterator[tuple[str, list[os.DirEntry]]]:
    """Yield (folder, its files) of a folder and of all below; links are followed, but not in a circle."""
    try:
        facts = Path(folder).stat()
        entries = list(os.scandir(folder))
    except OSError as error:
        raise _unreadable(folder, error) from None
    mark = (facts.st_dev, facts.st_ino)
    if mark in above:
        return
    if len(above) > _DEEPEST:
        raise InputError(
            f"{shown(folder)} is more than {_DEEPEST} folders deep; pass the folder of images itself"
        )
    folders, files = [], []
    for entry in entries:
        if not is_litter(entry.name):
            (folders if entry.is_dir() else files).append(entry)
    yield folder, files
    for entry in folders:
        if not (entry.is_symlink() and _is_system(os.path.realpath(entry.path))):
            yield from _walk(entry.path, (*above, mark))


def _kind(entry: os.DirEntry) -> str | None:
    """Return what a file is that is no image, None for one that is, or is called so."""
    special = None if entry.is_file() else special_kind(entry.path)
    if special:
        return special
    ending = f".{entry.name.rpartition('.')[2].lower()}" if "." in entry.name else ""
    if ending in _IMAGE_ENDINGS or ending in _MORE_ENDINGS:
        return None
    if ending not in _OTHER_ENDINGS and is_image(entry.path):
        return None
    return ending or "without an ending"


def special_kind(path: str | Path) -> str | None:
    """Return what is no file though it has a name, and would block whoever opens it; None for a file, or nothing."""
    try:
        mode = Path(path).stat().st_mode
    except OSError:
        return None
    kinds = {stat.S_IFIFO: "FIFO", stat.S_IFSOCK: "socket", stat.S_IFCHR: "device", stat.S_IFBLK: "device"}
    return kinds.get(stat.S_IFMT(mode))


def _require_image(path: Path) -> None:
    """Say early that a file is no image. Endings are believed here; a wrong one shows when the file is decoded."""
    special = special_kind(path)
    if special:
        raise InputError(f"{shown(path)} is a {special}, no image file; pass image files or folders")
    ending = path.suffix.lower()
    if ending in _OTHER_ENDINGS or (ending not in _IMAGE_ENDINGS and not is_image(path)):
        raise InputError(f"{shown(path)}: {NO_IMAGE}; remove it or move it elsewhere")


def _unreadable(folder: str | Path, error: OSError) -> InputError:
    return InputError(f"{shown(folder)}: the folder cannot be read ({error.strerror}); check its permissions")

"""Images that cannot be used: one must not end the work on a large folder, and too many of them must."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from engines.cpu import cpu_count
from sit_deploy.data.samples import Kept, Samples, spread
from sit_deploy.errors import InputError
from sit_deploy.text import short_reason, shown

if TYPE_CHECKING:
    from sit_deploy.preprocessing import Preprocessing

USUAL_LIMIT = 100  # images that may be damaged, where nobody says otherwise
_SHOWN = 3  # of them, in a sentence


@dataclass(frozen=True)
class DamagedImage:
    """An image that was left out.

    Attributes:
        image: its path, or what a data set calls it.
        reason: what came of reading it, on one line that can be shown.
    """

    image: str
    reason: str

    def to_dict(self) -> dict[str, str]:
        """Return plain types, for JSON."""
        return asdict(self)


class DamagedImages:
    """Takes note of images that are left out, each once, and ends the work at the one that is too many.

    Attributes:
        limit: how many may be.
        found: those that are, in the order that they were come upon.
    """

    def __init__(self, limit: int = USUAL_LIMIT) -> None:
        self.limit = limit
        self._found: dict[str, DamagedImage] = {}
        self._whole: set[Path] = set()

    @property
    def found(self) -> tuple[DamagedImage, ...]:
        return tuple(self._found.values())

    def note(self, image: str, error: Exception) -> None:
        """Take note that an image cannot be read.

        Raises:
            InputError: it is one too many.
        """
        self._take(DamagedImage(image, _line(image, error)), error)

    def named(self, image: str) -> DamagedImage:
        """Return what was noted of an image."""
        return self._found[image]

    def look_at_heads(self, files: Sequence[Path]) -> None:
        """Take note of files that are no images by their heads, before long work begins; what is damaged further inside shows as it is read.

        Raises:
            InputError: too many are none.
        """
        from sit_deploy.preprocessing import load_image

        with ThreadPoolExecutor(min(4, cpu_count())) as pool:
            foreign = [
                file for file, whole in zip(files, pool.map(_is_image, files), strict=True) if not whole
            ]
        for file in foreign:
            try:
                load_image(file)
            except InputError as error:  # which says what is wrong with it
                self.note(shown(file), error)

    def recall(self, found: Iterable[DamagedImage]) -> None:
        """Take note of images that an earlier run, or another process, could not read.

        Raises:
            InputError: these are too many.
        """
        for one in found:
            self._take(one, InputError(one.reason))

    def _take(self, one: DamagedImage, error: Exception) -> None:
        self._found.setdefault(one.image, one)
        if len(self._found) > self.limit:
            raise too_many(len(self._found), "read", self.limit, one.image, error)

    def require_any(self, left: int, of: int) -> None:
        """Refuse to go on with nothing.

        Args:
            left: images that can be read.
            of: of so many.

        Raises:
            InputError: there is none.
        """
        if not left:
            last = self.found[-1]
            what = "the image cannot" if of == 1 else f"none of the {of} images can"
            raise InputError(f"{what} be read: {last.reason}")

    def whole(self, files: Sequence[Path], count: int, preprocessing: Preprocessing) -> list[Path]:
        """Return `count` of the files, or all, evenly spread, that can be read; others stand in for those that cannot.

        Args:
            files: images.
            count: how many.
            preprocessing: that they are to pass through.

        Raises:
            InputError: too many cannot be read, or all.
        """
        place = {file: index for index, file in enumerate(files)}
        left, chosen = list(files), []
        while left and len(chosen) < count:
            part = spread(left, count - len(chosen))
            taken = set(part)
            left = [file for file in left if file not in taken]
            chosen += self._readable(part, preprocessing)
        self.require_any(len(chosen), len(files))
        return sorted(chosen, key=place.__getitem__)

    def whole_samples(
        self, samples: Samples, count: int, preprocessing: Preprocessing
    ) -> list[tuple[Any, int]]:
        """Return `count` of some labelled samples, or all, evenly spread, but for those that cannot be read.

        Args:
            samples: (image, label) pairs.
            count: how many, at most.
            preprocessing: that they are to pass through.

        Raises:
            InputError: too many cannot be read, or all.
        """
        from sit_deploy.data.batches import batches

        chosen = Kept(samples, spread(range(len(samples)), count))
        read = batches(chosen, preprocessing.raw, 8, damaged=self)
        left = [int(place) for _, found in read for _, place in found]
        self.require_any(len(left), len(chosen))
        return [chosen.fetched[place] for place in left]

    def _readable(self, files: Sequence[Path], preprocessing: Preprocessing) -> list[Path]:
        from sit_deploy.data.batches import batches

        unknown = [file for file in files if file not in self._whole and str(file) not in self._found]
        if unknown:
            for _, sources in batches(unknown, preprocessing.raw, 8, damaged=self):
                self._whole.update(sources)
        return [file for file in files if file in self._whole]

    @property
    def words(self) -> str | None:
        """What was left out, as a sentence; None for nothing."""
        return left_out_words(self.found)


def _is_image(file: Path) -> bool:
    """Whether a file begins as an image does; each is looked at once, as long as it stays as it is: every bundle of a report asks."""
    from sit_deploy.preprocessing import is_image

    try:
        state = file.stat()
    except OSError:
        return is_image(file)
    return _begins_as_image(file, (state.st_dev, state.st_ino, state.st_mtime_ns, state.st_size))


@lru_cache(maxsize=100_000)
def _begins_as_image(file: Path, state: tuple[int, ...]) -> bool:
    from sit_deploy.preprocessing import is_image

    return is_image(file)


def left_out_words(found: Sequence[DamagedImage], shown: int = _SHOWN) -> str | None:
    """Return which images were left out, as a sentence that names some of them; None for none."""
    if not found:
        return None
    named = "; ".join(one.reason for one in found[:shown])
    more = f"; and {len(found) - shown} more" if len(found) > shown else ""
    return f"{counted(len(found))} cannot be read and {'was' if len(found) == 1 else 'were'} left out: {named}{more}"


def counted(count: int) -> str:
    """Return "1 image", "2 images"."""
    return f"{count} image{'s' * (count != 1)}"


def too_many(count: int, fault: str, limit: int, image: str, error: Exception) -> InputError:
    """Return what ends the work on a data set.

    Args:
        count: images that cannot be used.
        fault: what they cannot be: "read".
        limit: how many may be so.
        image: the last of them.
        error: what came of it.
    """
    # what is our own says what to do with the one
    remedy = ", or" if count == 1 and isinstance(error, InputError) else "; mend or remove them, or"
    return InputError(
        f"{counted(count)} cannot be {fault}, more than --max-damaged {limit}; the last: {_line(image, error)}{remedy} raise the limit"
    )


def _line(image: str, error: Exception) -> str:
    """Return what is wrong with an image, which most errors name."""
    name, reason = shown(image), short_reason(error, image)
    return reason if name in reason else f"{name}: {reason}"

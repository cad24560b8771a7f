"""Which data set, and what of it to take: a folder, the built-in digits, or a data set that timm can read."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from sit_deploy.errors import InputError

STREAMED = ("wds", "hfids", "tfds")  # what can only be read in its own order
PREFIXES = ("torch", "hfds", *STREAMED)


@dataclass(frozen=True)
class DataSource:
    """A data set and the parts and columns of it.

    Attributes:
        name: "digits"; a folder with subfolders train and val (`sit_deploy.data.splits`), each with one folder a class; or
            a data set of timm: torch/NAME, hfds/OWNER/NAME, hfids/…, wds/…, tfds/NAME.
        root: where timm's data sets lie.
        train_split: the part to train on, where its name is not the usual one.
        val_split: the part held out, likewise.
        num_classes: needed for streamed data, which does not tell.
        seed: of the order of streamed data.
        image_key: column of the images, in a data set of the Hugging Face Hub.
        label_key: column of the classes, likewise.
    """

    name: str
    root: Path | None = None
    train_split: str | None = None
    val_split: str | None = None
    num_classes: int | None = None
    seed: int = 0
    image_key: str | None = None
    label_key: str | None = None

    @property
    def prefix(self) -> str:
        """What the name begins with, up to the first slash, in lower case: timm's kind of data set, if it is one."""
        return self.name.split("/", 1)[0].lower()

    @property
    def streamed(self) -> bool:
        """Whether it can only be read in its own order."""
        return self.prefix in STREAMED

    @property
    def is_folder(self) -> bool:
        """Whether it is a folder, or can be nothing else."""
        return self.name != "digits" and (not is_named(self.name) or Path(self.name).is_dir())

    def check_columns(self) -> None:
        """Refuse names of columns where there are none.

        Raises:
            InputError: names of columns, and another kind of data set.
        """
        if (self.image_key or self.label_key) and (
            self.prefix not in ("hfds", "hfids") or Path(self.name).is_dir()
        ):
            raise InputError(
                "--image-key and --label-key name columns of hfds/… and hfids/…; leave them out with other data"
            )


def is_named(name: str) -> bool:
    """Return whether this names a data set, and no folder."""
    return name == "digits" or ("/" in name and DataSource(name).prefix in PREFIXES)

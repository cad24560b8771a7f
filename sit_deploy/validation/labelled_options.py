"""Which labelled images to measure on: the options that `sit-deploy validate` and `report` share."""

from __future__ import annotations

import os
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sit_deploy.data.damaged import DamagedImages
from sit_deploy.errors import InputError
from sit_deploy.schema import convert_fields

if TYPE_CHECKING:
    from sit_deploy.bundle import Bundle
    from sit_deploy.data.labelled import Labelled

_WHICH = ("data_dir", "split", "image_key", "label_key", "images")


@dataclass(frozen=True, kw_only=True)
class LabelledOptions:
    """Labelled images, and the part and columns of them to take; none where `data` is None.

    Attributes:
        data: a folder, or the name of a data set (`sit_deploy.data.labelled.open_labelled`).
        data_dir: where timm's data sets lie.
        split: the part to take, by name.
        image_key: column of the images, in a data set of the Hugging Face Hub.
        label_key: column of the classes, likewise.
        images: how many of them, evenly spread; all by default.
        max_damaged: of them, that cannot be read, and are left out; the first ends it by default, since what is measured is of the others.
    """

    data: str | None = None
    data_dir: Path | None = None
    split: str | None = None
    image_key: str | None = None
    label_key: str | None = None
    images: int | None = None
    max_damaged: int = 0

    def __post_init__(self) -> None:
        if isinstance(self.data, os.PathLike):
            object.__setattr__(self, "data", os.fsdecode(self.data))
        convert_fields(self)

    def refuse_without_data(self, *others: str) -> None:
        """Refuse what has a meaning with labelled images only, where there are none.

        Args:
            others: names of further such fields.

        Raises:
            InputError: names the first that was given.
        """
        for name in (*_WHICH, *others) if self.data is None else ():
            if getattr(self, name) is not None:
                raise InputError(f"--{name.replace('_', '-')} is for images with labels; pass --data DIR")
        if self.max_damaged and self.data is None:
            raise InputError("--max-damaged is for images of yours; pass --data DIR")

    @property
    def which_data(self) -> dict[str, Any]:
        """Which of the labelled images, as `sit_deploy.data.labelled.open_labelled` takes it."""
        keys = {"image_key": self.image_key, "label_key": self.label_key}
        return {"root": self.data_dir, "split": self.split, **keys}

    def open_for(self, bundle: Bundle) -> Labelled | None:
        """Open the images for a bundle's classes; None where there are none.

        Raises:
            InputError: a data set that cannot be opened, or does not fit the classes, or more files than allowed that are no images.
        """
        from sit_deploy.validation.checks import open_labelled_for

        if self.data is None:
            return None
        samples = open_labelled_for(bundle, self.data, self.images, **self.which_data)
        damaged = DamagedImages(self.max_damaged)
        damaged.look_at_heads([path for path, _ in samples.files or ()])
        return replace(samples, damaged=damaged)

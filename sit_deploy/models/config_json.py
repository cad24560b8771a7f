"""The config.json beside a model's weights, of timm or of Hugging Face's transformers: its one reader, and of files like it.

Imports nothing heavy.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from sit_deploy.errors import InputError

CONFIG = "config.json"
PREPROCESSOR = "preprocessor_config.json"  # of transformers
PROCESSOR = "processor_config.json"  # of its release 5 for models of more than images, with the former within
OPEN_CLIP = "open_clip_config.json"
_MAX_BYTES = 10_000_000
_PLACEHOLDER = "LABEL_"  # what transformers calls classes that nobody named


@dataclass(frozen=True)
class ConfigJson:
    """What a config.json says; nothing where there is none, or one of some other program's.

    Attributes:
        fields: all of them.
    """

    fields: Mapping[str, Any] = field(default_factory=dict)

    @classmethod
    def read(cls, folder: Path, name: str) -> ConfigJson:
        """Read the one in a folder.

        Args:
            folder: that may have one.
            name: what it is of, for messages.

        Raises:
            InputError: it is damaged.
        """
        return cls(_read(folder / CONFIG, name))

    @classmethod
    def beside(cls, weights: Path) -> ConfigJson:
        """Read the one beside a file of weights, as `fields_beside` does."""
        return cls(fields_beside(weights, CONFIG))

    @property
    def architecture(self) -> str | None:
        """The model's name in timm, where it is timm's."""
        name = self.fields.get("architecture")
        return name if isinstance(name, str) and name else None

    @property
    def model_type(self) -> str | None:
        """The kind of model in transformers, where it is of transformers."""
        kind = self.fields.get("model_type")
        return kind if isinstance(kind, str) and kind and self.architecture is None else None

    @property
    def names_a_model(self) -> bool:
        """Whether it is timm's or transformers' for a model."""
        return bool(self.architecture or self.model_type)

    @property
    def lacks_classifier(self) -> bool:
        """Whether it is of a backbone of transformers; CLIP's have a projection in its place."""
        classes = self.fields.get("architectures") if self.model_type else None
        if not isinstance(classes, list) or not classes or str(self.model_type).startswith("clip"):
            return False
        return all(isinstance(name, str) and name.endswith("Model") for name in classes)

    @property
    def vision(self) -> Mapping[str, Any]:
        """What transformers says of the model of images, a part of the fields where there is one of texts too; else empty."""
        if self.model_type is None:
            return {}
        inner = self.fields.get("vision_config")
        # whose own kind decides what it leaves out: of LLaVA that of CLIP
        return {"model_type": self.model_type, **inner} if isinstance(inner, dict) else self.fields

    @property
    def pretrained_cfg(self) -> Mapping[str, Any]:
        """What timm says of how the model was trained; its releases before 0.9 wrote that beside the name itself."""
        given = self.fields.get("pretrained_cfg", self.fields if self.architecture else None)
        return given if isinstance(given, dict) else {}

    @property
    def model_args(self) -> Mapping[str, Any]:
        """What timm's model was made with beside its name."""
        given = self.fields.get("model_args")
        return given if isinstance(given, dict) else {}

    @property
    def image_shape(self) -> tuple[int, int] | None:
        """Height and width of the input in pixels, None where it does not say."""
        if self.architecture:
            # what the weights were saved with; input_size is that of the weights that training began from
            size = self.model_args.get("img_size") or self.pretrained_cfg.get("input_size")
        else:
            size = self.vision.get("image_size")
        sides = size[-2:] if isinstance(size, list) and size else [size]
        if any(not isinstance(side, int) or isinstance(side, bool) for side in sides):
            return None
        return sides[0], sides[-1]

    @property
    def image_size(self) -> int | None:
        """Pixels of the square input, None where it does not say, or says that it is none."""
        shape = self.image_shape
        return shape[0] if shape and shape[0] == shape[1] else None

    @property
    def num_classes(self) -> int | None:
        """Outputs of the head, None where it does not say."""
        by_index = self.fields.get("id2label") if self.model_type else None
        count = len(by_index) if isinstance(by_index, dict) else self.fields.get("num_classes")
        known = self.architecture or isinstance(by_index, dict)
        return (
            count if known and isinstance(count, int) and not isinstance(count, bool) and count > 0 else None
        )

    def class_names(self, count: int) -> list[str] | None:
        """Return the names of `count` classes in label order, None where it has not one for each."""
        if self.model_type:
            by_index = self.fields.get("id2label")
            names: Any = by_index if isinstance(by_index, dict) else None
            if not names or all(str(name).startswith(_PLACEHOLDER) for name in names.values()):
                names = _turned(self.fields.get("label2id"))  # of a trainer who gave the one alone
        elif self.architecture is None:
            return None
        else:
            places = (
                (self.fields, "label_names"),
                (self.pretrained_cfg, "label_names"),
                (self.pretrained_cfg, "labels"),
            )
            names = next((found for fields, key in places if (found := fields.get(key))), None)
        if isinstance(names, dict):  # by index, of timm's where there are gaps
            known = names.keys() == {str(i) for i in range(count)}
            names = [names[str(i)] for i in range(count)] if known else None
        if not isinstance(names, list) or len(names) != count:
            return None
        if not all(isinstance(name, str) and name and not name.startswith(_PLACEHOLDER) for name in names):
            return None
        return names


def _turned(by_name: Any) -> dict[str, str] | None:
    """Return names of classes by index, of indices by name."""
    if not isinstance(by_name, dict) or not all(type(index) is int for index in by_name.values()):
        return None
    return {str(index): name for name, index in by_name.items()}


def fields_beside(weights: Path, file: str) -> Mapping[str, Any]:
    """Return the fields of a JSON file beside a file of weights, none where there is no such file.

    A damaged one is some other program's, and no fault of the checkpoint.
    """
    try:
        return _read(weights.with_name(file), str(weights))
    except InputError:
        return {}


def _read(path: Path, name: str) -> Mapping[str, Any]:
    try:
        if not path.is_file():
            return {}
        if path.stat().st_size > _MAX_BYTES:
            raise InputError(f"the {path.name} of {name} is larger than any; copy it again")
        fields = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise InputError(
            f"the {path.name} of {name} cannot be read ({str(error)[:100]}); copy it again"
        ) from None
    if not isinstance(fields, dict):
        raise InputError(f"the {path.name} of {name} is no set of named fields; copy it again")
    return fields

"""Models of timm that are made with arguments beside their name, as one name: vit_tiny_patch16_224:reg_tokens=4,class_token=false.

timm keeps such arguments apart (`model_args` of its config.json). As one name they go wherever a model's name does: into model
cards, manifests and the command that builds a bundle again. Imports nothing heavy.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping

from sit_deploy.errors import InputError

_DEEPEST = 1000  # blocks: even without weights, making many more takes minutes and gigabytes
Value = str | int | float | bool | None
_COUNTS_OF_BLOCKS = ("depth", "depth_token_only", "num_parallel")
_NAME = re.compile(r"[a-z]\w*")
_WORD = re.compile(r"[\w.+-]*")
# what has its own option, and arguments of timm's factory, which make no other model, or read files
_NOT_TAKEN = re.compile(
    r"(img_size|num_classes|in_chans|features_only|out_indices|exportable|scriptable|no_jit|(pretrained|checkpoint|cache)(_\w+)?"
    r"|(drop|\w+_drop|drop_\w+)(_rate)?|weight_init|dynamic_img_\w+|strict_img_size|device|dtype)"
)
_OPTIONS = {"img_size": "--image-size", "num_classes": "--num-classes"}


def spell(name: str, arguments: Mapping[str, Value]) -> str:
    """Return a model's name with its arguments.

    Raises:
        InputError: an argument that no name can have, named.
    """
    words = [f"{key}={_text(key, value)}" for key, value in arguments.items()]
    return f"{name}:{','.join(words)}" if words else name


def split(name: str) -> tuple[str, dict[str, Value]]:
    """Return timm's name of a model, and the arguments that follow it.

    Raises:
        InputError: an argument that is none, or that is not taken here.
    """
    base, colon, rest = name.partition(":")
    arguments: dict[str, Value] = {}
    for word in rest.split(",") if colon else ():
        key, equals, text = word.partition("=")
        if not equals or not text:
            raise InputError(
                f"'{word[:60]}' of {base} is no argument of a model; write {base}:NAME=VALUE,NAME=VALUE"
            )
        value = _value(text)
        _text(key, value)
        if key in arguments:
            raise InputError(f"the argument {key} of {base} is given twice; give it once")
        arguments[key] = value
    return base, arguments


def check_depth(key: str, value: object) -> None:
    """Refuse an argument that would make more blocks than any model has, before anything is made of it.

    Raises:
        InputError: says so.
    """
    if key in _COUNTS_OF_BLOCKS and isinstance(value, int) and value > _DEEPEST:
        raise InputError(
            f"a {key} of {str(value)[:60]} is that of no vision transformer; give at most {_DEEPEST}"
        )


def _text(key: str, value: Value) -> str:
    """Return an argument's value as it is spelled, so that `_value` gives it back."""
    if not _NAME.fullmatch(str(key)) or _NOT_TAKEN.fullmatch(str(key)):
        remedy = f"pass {_OPTIONS[key]}" if key in _OPTIONS else "leave it out"
        raise InputError(f"the argument {str(key)[:60]!r} is not taken with a model's name; {remedy}")
    check_depth(key, value)
    plain = value is None or isinstance(value, str | int | float)
    text = value if isinstance(value, str) else json.dumps(value) if plain else ""
    if not text or not _WORD.fullmatch(text) or _value(text) != value:
        raise InputError(
            f"the argument {key} of a model is {str(value)[:60]!r}, and only numbers, words, true, false and null are taken"
        )
    return text


def _value(text: str) -> Value:
    if text != text.strip():  # which JSON would leave out of a number, and a name has none
        return text
    try:
        value = json.loads(text)
    except ValueError:
        return text
    return value if value is None or isinstance(value, int | float) else text

"""Checking what is read from a file against a type (msgspec): wrong fields are named where the file is opened.

A type is a `msgspec.Struct` beside what reads it. Fields that it does not name are let through: a newer version may write
them.
"""

from __future__ import annotations

import os
import re
from functools import lru_cache
from numbers import Integral, Real
from pathlib import Path
from typing import Any, TypeVar, get_type_hints

import msgspec

from engines.strict_json import parse
from sit_deploy.errors import InputError
from sit_deploy.limits import JSON_BYTES

T = TypeVar("T")
_LACKS = "Object missing required field "
_PLACE = re.compile(r"^(?P<what>.*) - at `(?:key in )?\$\.?(?P<field>.*)`$", re.DOTALL)


def read_json(path: Path, remedy: str) -> Any:
    """Return the JSON value in a file.

    Args:
        path: of the file.
        remedy: what to do about a wrong one, for the end of the message.

    Raises:
        InputError: it cannot be read, is too large to be ours, or is no JSON that means one thing.
    """
    try:
        if (size := path.stat().st_size) > JSON_BYTES:
            raise ValueError(f"{size} bytes are too many")
        with path.open("rb") as file:  # a device has no size, and no end
            data = file.read(JSON_BYTES + 1)
        if len(data) > JSON_BYTES:
            raise ValueError(f"more than {JSON_BYTES} bytes are too many")
        return parse(data)
    except OSError as error:
        reason: object = error.strerror or error
    except ValueError as error:
        reason = error
    raise InputError(f"{path} cannot be read ({reason}); {remedy}") from None


def check(value: Any, of: type[T], where: object, remedy: str) -> T:
    """Return `value`, as JSON has it, as an instance of `of`.

    Args:
        value: of the parsed JSON.
        of: the type.
        where: what it is of, for the start of the message: a file.
        remedy: for its end.

    Raises:
        InputError: names the first wrong field and what it must be.
    """
    try:
        return msgspec.convert(value, of)
    except msgspec.ValidationError as error:
        raise InputError(f"{where}: {_in_words(str(error))}; {remedy}") from None
    except RecursionError:
        raise InputError(f"{where}: it is nested too deeply; {remedy}") from None


def decode(path: Path, of: type[T], remedy: str) -> T:
    """Return what a JSON file holds as an instance of `of`. Arguments and errors as `read_json` and `check`."""
    return check(read_json(path, remedy), of, path, remedy)


def convert_fields(record: Any) -> None:
    """Give the fields of a frozen dataclass the types that it declares.

    What is taken for them is natural: paths that are text, numbers of NumPy, lists for tuples.

    Raises:
        InputError: names the first field that has another type.
    """
    for name, of in _hints(type(record)).items():
        value = getattr(record, name)
        if isinstance(value, Integral) and not isinstance(value, bool):
            value = int(value)
        elif isinstance(value, Real) and not isinstance(value, bool):
            value = float(value)
        try:
            value = msgspec.convert(value, of, dec_hook=_path)
        except (msgspec.ValidationError, TypeError) as error:
            what, *_ = str(error).replace("`", "").replace("array", "list").split(" - at ")
            raise InputError(
                f"{name.replace('_', ' ')} of {type(record).__name__}: {what[:1].lower()}{what[1:]}; got {value!r}"[
                    :500
                ]
            ) from None
        object.__setattr__(record, name, value)


@lru_cache
def _hints(of: type) -> dict[str, Any]:
    return get_type_hints(of)


def _path(of: type, value: Any) -> Any:
    """Return a path that is text or bytes."""
    if of is Path and isinstance(value, str | bytes | os.PathLike):
        return Path(os.fsdecode(value))
    raise TypeError(f"expected {of.__name__}, got {type(value).__name__}")


def _in_words(message: str) -> str:
    """Turn "Expected `int`, got `str` - at `$.batch.size`" into "field batch.size: expected int, got str"."""
    place = _PLACE.match(message)
    what, field = (place["what"], place["field"]) if place else (message, "")
    what = what.replace("`", "").replace("array", "list")
    if what.startswith(_LACKS):
        return f"{f'field {field}' if field else 'it'} lacks {what.removeprefix(_LACKS)}"
    what = what[:1].lower() + what[1:]
    return f"field {field}: {what}" if field else what


def require_type(value: Any, of: type, what: str) -> None:
    """Refuse an argument of another type, as programs without a type checker pass it.

    Args:
        value: the argument.
        of: the type that it must have.
        what: what takes it, for the message.

    Raises:
        InputError: names both types.
    """
    if isinstance(value, of):
        return
    kind, remedy = ("a whole number", "") if of is int else (f"a {of.__name__}", "; make one of its options")
    raise InputError(f"{what} takes {kind}, got {type(value).__name__}{remedy}")

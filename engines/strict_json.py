"""JSON that came from somewhere: read so that nothing in it means two things, or breaks whoever uses it later."""

from __future__ import annotations

import json
import math
from collections import Counter
from typing import Any

DEEPEST = 100  # levels of lists and objects; ours have under ten
_LONGEST_NUMBER = 400  # characters; the longest float that anybody writes has under 340


def parse(data: bytes | str) -> Any:
    """Return the value of a JSON text in UTF-8.

    Raises:
        ValueError: what is wrong, in words that go into a sentence: no JSON or no UTF-8, a name that is there twice in one
            object, NaN, infinity or a number too large for a float, half a character, or too many levels.
    """
    try:
        text = data if isinstance(data, str) else data.decode("utf-8")
    except UnicodeDecodeError as error:
        raise ValueError(f"byte {error.start} is no UTF-8") from None
    try:
        value = json.loads(
            text,
            object_pairs_hook=_object,
            parse_constant=_constant,
            parse_float=_float,
            parse_int=_int,
        )
    except RecursionError:
        raise ValueError("it is nested too deeply") from None
    level = [value]
    for _ in range(DEEPEST):
        level = [member for part in level for member in _members(part)]
        if not level:
            break
    else:
        raise ValueError(f"it is nested more than {DEEPEST} levels deep")
    if "\\u" in text:  # only an escape can make half a character, which no file and no terminal takes
        try:
            json.dumps(value, ensure_ascii=False).encode()
        except UnicodeEncodeError:
            raise ValueError("half a character stands in it (a lone surrogate)") from None
    return value


def _members(value: Any) -> Any:
    if isinstance(value, dict):
        return value.values()
    return value if isinstance(value, list) else ()


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    members = dict(pairs)
    if len(members) != len(pairs):
        counts = Counter(name for name, _ in pairs)
        twice = next(name for name, count in counts.items() if count > 1)
        raise ValueError(f"the name {twice!r} is there twice in one object")
    return members


def _constant(text: str) -> Any:
    raise ValueError(f"{text} is no number in JSON")


def _float(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise ValueError(f"the number {text[:20]} is too large")
    return value


def _int(text: str) -> int:
    if len(text) > _LONGEST_NUMBER:
        raise ValueError(f"a number of {len(text)} digits")
    return int(text)

"""Text of others on a terminal: names, classes and messages may hold what a terminal obeys, and it is shown instead."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

# relative: a folder of `package python` takes this file along, without the package around it
from .errors import InputError

# control characters but for the end of a line, what turns the direction of writing, ends of lines and paragraphs that are
# none to us, and half characters: bytes of a file name that are no UTF-8
_OBEYED = re.compile("[\x00-\x09\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")

_LONGEST = 300  # characters of an error's text


def printable(text: str) -> str:
    r"""Return a text whose control characters are written out, as `\x1b`; ends of lines stay."""
    return _OBEYED.sub(lambda match: _shown(ord(match[0])), text)


def shortened(text: str, most: int = 2000) -> str:
    """Return a text, its middle left out where it is longer: the start says what is wrong, the end what to do."""
    start, end = most * 2 // 3, most // 3
    if len(text) <= most:
        return text
    return f"{text[:start]} ... ({len(text) - start - end} more characters) ... {text[-end:]}"


def shown(name: Any) -> str:
    r"""Return the name of a file or of a class on one line, as `printable`: what is written wherever the name goes."""
    return printable(str(name)).replace("\n", "\\n")


def short_reason(error: BaseException, name: str = "") -> str:
    """Return what an error says, on one short line as `shown`, with its type where it is not our own.

    Args:
        error: of ours, or of another library.
        name: in it that may have ends of lines of its own.
    """
    said = str(error).replace(name, shown(name)) if name else str(error)
    text = shown(" ".join(said.split()))
    text = text if len(text) <= _LONGEST else f"{text[:_LONGEST]} ..."
    if isinstance(error, InputError):
        return text
    return f"{type(error).__name__}: {text}" if text else type(error).__name__


def is_utf8(name: Any) -> bool:
    """Whether a name can be written into a file of UTF-8."""
    try:
        str(name).encode("utf-8")
    except UnicodeEncodeError:
        return False
    return True


def utf8_text(name: str | Path) -> str:
    """Return a name as text that can be written anywhere; bytes that are no UTF-8 are spelt out."""
    return os.fsencode(name).decode("utf-8", "backslashreplace")


def require_utf8(**paths: Any) -> None:
    """Refuse, before any work, paths that a manifest could not hold; what is no path is passed over.

    Args:
        paths: by the name of their option.

    Raises:
        InputError: one whose name, or that of a folder above it, is no UTF-8.
    """
    for option, path in paths.items():
        if not isinstance(path, Path) or is_utf8(path.absolute()):
            continue
        if is_utf8(path):
            remedy = f"lies below {shown(Path.cwd())}, whose name is no UTF-8; rename that folder, or start from another"
        else:
            remedy = "has a name that is no UTF-8; rename it, or pass a symbolic link to it"
        raise InputError(f"--{option.replace('_', '-')} {shown(path)} {remedy}")


def json_printable(text: str) -> str:
    r"""Return JSON, as `json.dumps` without `ensure_ascii` makes it, whose control characters are its escapes, as `\u001b`."""
    return _OBEYED.sub(lambda match: f"\\u{ord(match[0]):04x}", text)


def _shown(code: int) -> str:
    if 0xDC80 <= code <= 0xDCFF:  # how Python holds a byte that is no UTF-8
        code -= 0xDC00
    return f"\\x{code:02x}" if code < 0x100 else f"\\u{code:04x}"


class WarningText(str):
    """A note that a reader must not miss; among notes it stands as the text that it is."""

    __slots__ = ()


def is_warning(note: str) -> bool:
    """Whether a note is one that a reader must not miss."""
    return isinstance(note, WarningText)


def first_of(said: Sequence[str]) -> str:
    """Return the first of several texts of a kind, with how many more there are."""
    more = f" (and {len(said) - 1} more of the kind)" if len(said) > 1 else ""
    return f"{said[0]}{more}"


def file_size(count: int) -> str:
    """Return a number of bytes as people read it."""
    if count >= 1e9:
        return f"{count / 1e9:.1f} GB"
    return f"{count / 1e6:.1f} MB" if count >= 1e5 else f"{count / 1e3:.1f} kB"


def file_name(name: str) -> str:
    """Return a name as part of a file's: letters, digits, underscores, dots and hyphens."""
    return re.sub(r"[^\w.-]+", "_", name)

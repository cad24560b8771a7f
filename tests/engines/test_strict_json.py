from __future__ import annotations

import math

import pytest

from engines.strict_json import DEEPEST, parse


def test_what_json_has_comes_out_as_it_is() -> None:
    assert parse(b'{"a": [1, -0.5, 1e300, true, null, "\\u00e9\\ud83d\\ude00 \\ufffd"]}') == {
        "a": [1, -0.5, 1e300, True, None, "é😀 \ufffd"]
    }
    assert parse(str(2**200)) == 2**200
    assert math.copysign(1, parse("-0.0")) == -1
    assert parse("[" * DEEPEST + "]" * DEEPEST)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        (b"", "Expecting value"),
        (b"{", "Expecting property name"),
        (b"[1] [2]", "Extra data"),
        (b"\xef\xbb\xbf[]", "BOM"),
        (b'["\xff"]', "byte 2 is no UTF-8"),
        (b'["\xed\xa0\x80"]', "no UTF-8"),
        (b"[NaN]", "NaN is no number"),
        (b"-Infinity", "-Infinity is no number"),
        (b"[1e999]", "1e999 is too large"),
        (b"9" * 5000, "a number of 5000 digits"),
        (b"-" + b"9" * 500, "a number of 501 digits"),
        (b'{"a": 1, "b": {"c": 1, "c": 1}}', "'c' is there twice"),
        (b'["\\ud800"]', "half a character"),
        (b'{"\\udfff": 1}', "half a character"),
        (b"[" * 100_000, "nested"),
        (b"[" * 500 + b"]" * 500, "nested"),
        (b'{"a":' * 200 + b"1" + b"}" * 200, "nested"),
    ],
)
def test_what_means_two_things_or_none(text: bytes, reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        parse(text)

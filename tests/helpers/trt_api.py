"""A TensorRT release's names without the release: modules made from the records in tests/engines/api."""

from __future__ import annotations

import enum
import inspect
import json
import re
from pathlib import Path
from types import ModuleType
from typing import Any

from engines.tensorrt.features import Features
from engines.tensorrt.library import TENSORRT, TENSORRT_RTX, Library
from engines.tensorrt.messages import Messages

_RECORDS = Path(__file__).parents[1] / "engines" / "api"


def load(release: str) -> ModuleType:
    """Return a module with exactly the classes, members and enumeration values that were recorded of a release.

    A class's members are there to be asked for; calling one raises.
    """
    found = json.loads((_RECORDS / f"{release}.json").read_text(encoding="utf-8"))
    module = ModuleType("tensorrt_rtx" if "rtx" in release else "tensorrt")
    module.__version__ = found["version"]
    for name, kind in found["classes"].items():
        if kind["values"]:
            made: Any = enum.IntEnum(name, kind["values"])
        else:
            made = type(name, (), {member: _recorded(name, member) for member in kind["members"]})
        made.signatures = kind["members"]
        setattr(module, name, made)
    return module


def bind(kind: Any, method: str, args: tuple, kwargs: dict[str, Any]) -> None:
    """Hold a call's arguments to the recorded signatures of a method, self left out.

    Raises:
        AttributeError: the release has no such method. TypeError: no overload takes these arguments.
    """
    if method not in kind.signatures:
        raise AttributeError(f"{kind.__name__} of this release has no {method}")
    overloads = kind.signatures[method]
    errors = []
    for text in overloads:
        try:
            _signature(text).bind(*args, **kwargs)
            return
        except TypeError as error:
            errors.append(str(error))
    if errors:
        raise TypeError(f"{kind.__name__}.{method}{overloads}: {'; '.join(errors)}")


def _signature(text: str) -> inspect.Signature:
    """Parse pybind11's "name(self: A, x: list[int], y: B = <default>) -> C" into names and which have defaults."""
    inner = text[text.index("(") + 1 : text.rindex(")")]
    inner = re.sub(r"<[^<>]*>", "D", inner)
    for brackets in (r"\[[^\[\]]*\]", r"\([^()]*\)"):
        while re.search(brackets, inner):
            inner = re.sub(brackets, "", inner)
    parameters = []
    for part in filter(None, (p.strip() for p in inner.split(","))):
        name = part.partition(":")[0].partition("=")[0].strip()
        default = None if "=" in part else inspect.Parameter.empty
        if name != "self":
            parameters.append(
                inspect.Parameter(name, inspect.Parameter.POSITIONAL_OR_KEYWORD, default=default)
            )
    return inspect.Signature(parameters)


def _recorded(owner: str, name: str) -> Any:
    def call(*_: Any, **__: Any) -> Any:
        raise AssertionError(f"{owner}.{name} is a record and does nothing")

    return call


def library(release: str) -> Library:
    """A recorded release as the engines see it, with no logger."""
    trt = load(release)
    return Library(trt, TENSORRT_RTX if "rtx" in release else TENSORRT, Features.of(trt), Messages(), None)

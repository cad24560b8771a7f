"""The calibration cache: what was observed and decided, as JSON that a person can read and nobody can change unseen.

It names what it was made from, and is used again only where that is the same: the graph, the images, how they were
prepared, and the grid of the codes. It carries a digest of itself: SHA-256 of its other fields as JSON with sorted keys,
no spaces, in UTF-8.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, TypeGuard

from calibration.errors import CalibrationError
from calibration.thresholds import METHODS_OF
from engines.errors import EngineError
from engines.files import atomic_path
from engines.strict_json import parse

SCHEMA = 1
KIND = "sit-deploy calibration"

_LARGEST = 3.4028234663852886e38  # of float32, which activations are
_AGAIN = "calibrate again, or leave --calib-cache out"


@dataclass(frozen=True)
class TensorCalibration:
    """Extremes of an activation over the calibration images, and the threshold of every method the grid has."""

    min: float
    max: float
    absmax: float
    thresholds: dict[str, float]


@dataclass(frozen=True)
class CalibrationImages:
    """The images it was made from: a key of their content (hexadecimal), how many, and where they came from in words."""

    key: str
    count: int
    description: str


@dataclass
class Calibration:
    """A calibration, as `save` writes and `load` reads it.

    Attributes:
        tool: name and version of what made it.
        graph: SHA-256 of the float32 graph, hexadecimal.
        images: what it was made from.
        preprocessing: how the images were prepared; plain JSON values.
        method: the method chosen for the thresholds; the others' are there too.
        grid: "int8" or "fp8".
        percentile: of the method of that name.
        tensors: by tensor name.
        migration: by node whose output channels are divided by powers of 2, their exponents.
    """

    tool: str
    graph: str
    images: CalibrationImages
    preprocessing: dict[str, Any]
    method: str
    grid: str
    percentile: float
    tensors: dict[str, TensorCalibration]
    migration: dict[str, list[int]] = field(default_factory=dict)

    def threshold(self, tensor: str, method: str | None = None) -> float:
        """Return a tensor's threshold by the method chosen, or by another.

        Raises:
            CalibrationError: the tensor was not observed, or there is no such method.
        """
        method = method or self.method
        if tensor not in self.tensors:
            raise CalibrationError(f"the calibration has no tensor '{tensor}'; {_AGAIN}")
        thresholds = self.tensors[tensor].thresholds
        if method not in thresholds:
            raise CalibrationError(
                f"the calibration has no method '{method}'; choose one of {', '.join(thresholds)}"
            )
        return thresholds[method]

    def save(self, path: Path) -> None:
        """Write the cache, whole or not at all.

        Raises:
            CalibrationError: it holds something that is no plain finite value, or the file cannot be written.
        """
        fields = {"kind": KIND, "schema": SCHEMA, **asdict(self)}
        _check(fields, lambda reason: CalibrationError(f"this calibration cannot be saved: {reason}"))
        try:
            fields["digest"] = digest(fields)
            written = _readable(fields).encode()
        except (TypeError, ValueError) as error:
            raise CalibrationError(f"this calibration cannot be saved: {error}") from error
        try:
            with atomic_path(path) as temporary:
                temporary.write_bytes(written)
        except EngineError as error:
            raise CalibrationError(f"{error}; choose another place for the calibration cache") from error

    @classmethod
    def load(cls, path: Path) -> Calibration:
        """Read a cache.

        Raises:
            CalibrationError: there is none; it is no calibration, or one of a newer version; it lacks a field, has one
                too many or one of another type; or it was changed by hand.
        """
        try:
            text = path.read_text(encoding="utf-8")
        except OSError as error:
            raise CalibrationError(
                f"cannot read calibration cache {path}: {error.strerror or error}; make one with sit-deploy calibrate"
            ) from error
        except UnicodeDecodeError as error:
            raise CalibrationError(f"{path} is not a calibration cache: it is not text; {_AGAIN}") from error
        try:
            fields = parse(text)
        except ValueError as error:
            raise CalibrationError(
                f"{path} is not a calibration cache: it is not JSON ({error}); {_AGAIN}"
            ) from error
        if not isinstance(fields, dict) or fields.get("kind") != KIND:
            raise CalibrationError(f"{path} is not a calibration cache; {_AGAIN}")
        _check_schema(path, fields.get("schema"))
        written = fields.pop("digest", None)
        if written != digest(fields):
            raise CalibrationError(f"{path} was changed by hand: it does not match its digest; {_AGAIN}")
        _check(
            fields,
            lambda reason: CalibrationError(f"{path} is not a valid calibration cache: {reason}; {_AGAIN}"),
        )
        del fields["kind"], fields["schema"]
        fields["images"] = CalibrationImages(**fields["images"])
        fields["tensors"] = {name: TensorCalibration(**seen) for name, seen in fields["tensors"].items()}
        return cls(**fields)

    def require(
        self,
        *,
        graph: str | None = None,
        images: str | None = None,
        preprocessing: Mapping[str, Any] | None = None,
        grid: str | None = None,
        method: str | None = None,
        percentile: float | None = None,
    ) -> None:
        """Refuse a calibration that was made from something else; what is None is not compared.

        Args:
            graph: key of the graph in hand.
            images: key of the images in hand.
            preprocessing: how they are prepared.
            grid: "int8" or "fp8".
            method: any that is recorded will do; it need not be the one chosen then.
            percentile: compared only where `method`, or else the method chosen then, is percentile.

        Raises:
            CalibrationError: what differs, and what to do.
        """
        if graph is not None and graph != self.graph:
            raise CalibrationError(
                f"the calibration was made for another graph ({self.graph[:12]}…, this one is {graph[:12]}…): other "
                f"weights, model, image size or export; {_AGAIN}"
            )
        was, now = _plain(self.preprocessing), _plain(preprocessing)
        if preprocessing is not None and was != now:
            raise CalibrationError(
                f"the calibration was made with other preprocessing ({_difference(was, now)}); {_AGAIN}"
            )
        if images is not None and images != self.images.key:
            raise CalibrationError(
                f"the calibration was made from other images ({self.images.count} from {self.images.description}); "
                f"{_AGAIN}"
            )
        if grid is not None and grid != self.grid:
            raise CalibrationError(f"the calibration was made for {self.grid}, not for {grid}; {_AGAIN}")
        if method is not None and method not in METHODS_OF[self.grid]:
            raise CalibrationError(
                f"the calibration has no method '{method}'; choose one of {', '.join(METHODS_OF[self.grid])}"
            )
        if (
            percentile is not None
            and (method or self.method) == "percentile"
            and percentile != self.percentile
        ):
            raise CalibrationError(
                f"the calibration was made with percentile {self.percentile:g}, not {percentile:g}; {_AGAIN}"
            )


def digest(fields: Mapping[str, Any]) -> str:
    """Return the SHA-256 of all fields but `digest`: as JSON with sorted keys and no spaces, in UTF-8."""
    others = {key: value for key, value in fields.items() if key != "digest"}
    text = json.dumps(others, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()


def _readable(fields: Mapping[str, Any]) -> str:
    """Return JSON with one field a line, and one tensor or node a line below it."""
    lines = []
    for key, value in fields.items():
        if key in ("tensors", "migration") and value:
            members = ",\n".join(f"  {_compact(name)}: {_compact(member)}" for name, member in value.items())
            lines.append(f" {_compact(key)}: {{\n{members}\n }}")
        else:
            lines.append(f" {_compact(key)}: {_compact(value)}")
    return "{\n" + ",\n".join(lines) + "\n}\n"


def _compact(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False, allow_nan=False)


def _plain(value: Any) -> Any:
    """Return the value as it would be after saving and loading: a tuple is a list."""
    return json.loads(_compact(value))


def _check_schema(path: Path, schema: object) -> None:
    if schema == SCHEMA and not isinstance(schema, bool):
        return
    if isinstance(schema, int) and schema > SCHEMA:
        raise CalibrationError(
            f"{path} was written by a newer version (schema {schema}, this one reads {SCHEMA}); update, or {_AGAIN}"
        )
    raise CalibrationError(f"{path} has schema {schema}, which this version does not read; {_AGAIN}")


def _difference(was: Mapping[str, Any], now: Mapping[str, Any]) -> str:
    """Name the first setting that differs."""
    key = next(key for key in sorted({*was, *now}) if was.get(key) != now.get(key))
    return f"{key} was {was.get(key)}, is {now.get(key)}"


def _is_text(value: object) -> bool:
    return isinstance(value, str)


def _is_int(value: object) -> TypeGuard[int]:
    return isinstance(value, int) and not isinstance(value, bool)


def _is_number(value: object) -> TypeGuard[float]:
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) <= _LARGEST


def _is_exponent(value: object) -> bool:
    return _is_int(value) and abs(value) < 127  # beyond, float32 has no such power of two


def _is_magnitude(value: object) -> bool:
    return _is_number(value) and value >= 0


def _each(is_one: Callable[[object], bool]) -> Callable[[object], bool]:
    """A dictionary whose every value is such a one."""
    return lambda value: isinstance(value, dict) and all(is_one(member) for member in value.values())


def _list_of(is_one: Callable[[object], bool]) -> Callable[[object], bool]:
    return lambda value: isinstance(value, list) and all(is_one(member) for member in value)


def _is_images(value: object) -> bool:
    return (
        isinstance(value, dict)
        and value.keys() == {"key", "count", "description"}
        and _is_text(value["key"])
        and _is_int(value["count"])
        and value["count"] > 0
        and _is_text(value["description"])
    )


def _is_tensor(value: object) -> bool:
    return (
        isinstance(value, dict)
        and value.keys() == {"min", "max", "absmax", "thresholds"}
        and _is_number(value["min"])
        and _is_number(value["max"])
        and _is_magnitude(value["absmax"])
        and _each(_is_magnitude)(value["thresholds"])
    )


_FIELDS: Mapping[str, Callable[[object], bool]] = {
    "kind": _is_text,
    "schema": _is_int,
    "tool": _is_text,
    "graph": _is_text,
    "images": _is_images,
    "preprocessing": lambda value: isinstance(value, dict),
    "method": _is_text,
    "grid": lambda value: value in tuple(METHODS_OF),  # no hash: it may be a list
    "percentile": lambda value: _is_number(value) and 0 < value <= 100,
    "tensors": _each(_is_tensor),
    "migration": _each(_list_of(_is_exponent)),
}


def _check(fields: Mapping[str, Any], refusal: Callable[[str], CalibrationError]) -> None:
    """Raise the refusal, given the reason, unless the fields are all there, of their type, and no others."""
    if missing := [name for name in _FIELDS if name not in fields]:
        raise refusal(f"it has no field '{missing[0]}'")
    if unknown := [name for name in fields if name not in _FIELDS]:
        raise refusal(f"it has an unknown field '{unknown[0]}'")
    for name, is_valid in _FIELDS.items():
        if not is_valid(fields[name]):
            raise refusal(f"field '{name}' is not as it should be")
    methods = set(METHODS_OF[fields["grid"]])
    if fields["method"] not in methods:
        raise refusal(f"{fields['grid']} has no method '{fields['method']}'")
    for name, seen in fields["tensors"].items():
        if seen["thresholds"].keys() != methods:
            raise refusal(f"tensor '{name}' has not the threshold of every method")

"""TensorRT's messages, made readable: one line each, without source files and error numbers."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from types import ModuleType
from typing import Any

from engines.tensorrt.kernels import is_kernel

_SOURCE = re.compile(r"\s*\.?\s*In \w+ at \S+?:\d+")
_WRAPPER = re.compile(r"^(?:\[[^\]]*\]|[\w:]+): ?Error Code \d+: [\w ]+?\s*\((?P<inner>.*)\)$")
_BRACKET = re.compile(r"^Error Code \d+: [\w ]+?\s*\((?P<inner>.*)\)$")
_PREFIX = re.compile(r"^\[[\w.:]+(?:: \w+)?\]\s*")
# Without a driver the library mentions it at every turn; it has no part in what went wrong.
# what a builder says of an Attention that would take several kernels, and the same in short
_NO_KERNEL = "Attention operation was not supported by a dedicated kernel"
_ATTENTION = "it has no kernel for an Attention of this shape and type; leave --opset 23 out, and attention is written out"
_NO_DRIVER = "cudaError"

_LISTING = ("Layers:", "Engine Layer Information:")

# of warnings and of notes each: an engine may serve for months
_KEPT = 1000

_FACTS = {
    "weights_bytes": re.compile(r"Total Weights Memory: (\d+) bytes"),
    "activation_bytes": re.compile(r"Total Activation Memory: (\d+) bytes"),
    "scratch_bytes": re.compile(r"Max Scratch Memory: (\d+) bytes"),
    "builder_peak_cpu_mib": re.compile(r"Peak memory usage of TRT CPU/GPU.*: CPU (\d+) MiB"),
    "builder_peak_gpu_mib": re.compile(r"Peak memory usage of TRT CPU/GPU.*GPU (\d+) MiB"),
}


@dataclass
class Messages:
    """What the library logged, as it came.

    Attributes:
        kernels: the lines of its verbose log that are of a kernel of the engine.
    """

    errors: list[str] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    kernels: list[str] = field(default_factory=list)

    def clear_errors(self) -> None:
        self.errors.clear()


def make_logger(trt: ModuleType, messages: Messages) -> Any:
    """A logger that collects; the library's own prints to stderr."""
    severity = trt.ILogger.Severity

    class Collector(trt.ILogger):  # type: ignore[misc, name-defined]
        def __init__(self) -> None:
            trt.ILogger.__init__(self)

        def log(self, level: Any, text: str) -> None:
            if level in (severity.ERROR, severity.INTERNAL_ERROR):
                messages.errors.append(text)
            elif level == severity.WARNING:
                messages.warnings.append(text)
                del messages.warnings[:-_KEPT]
            elif level == severity.INFO:
                messages.notes.append(text)
                del messages.notes[:-_KEPT]
            elif level == severity.VERBOSE and text.startswith(_LISTING):  # one text has all of them
                messages.kernels += filter(is_kernel, text.splitlines())

    return Collector()


def clean(text: str) -> str:
    """The heart of a message.

    "ITensor::getDimensions: Error Code 4: API Usage Error (mm1: must have same input types. In
    validateTypes at /_src/x.cpp:38)" becomes "mm1: must have same input types".
    """
    text = _SOURCE.sub("", " ".join(text.split()))
    for pattern in (_WRAPPER, _BRACKET):
        match = pattern.match(text)
        if match:
            text = match["inner"]
    text = text.removeprefix("(").removesuffix(")") if text.startswith("(") else text
    return _PREFIX.sub("", text).strip().rstrip(".")


def parser_problems(parser: Any, title: str) -> tuple[str, ...]:
    """One line for each error of an ONNX parser: node, operator, what is wrong."""
    return tuple(
        dict.fromkeys(_parser_problem(parser.get_error(index), title) for index in range(parser.num_errors))
    )


def builder_problems(messages: Messages) -> tuple[str, ...]:
    """One line for each error the builder logged; the absent driver only if there is no other."""
    own = [text for text in messages.errors if _NO_DRIVER not in text] or messages.errors
    return tuple(dict.fromkeys(_ATTENTION if _NO_KERNEL in text else clean(text) for text in own))


def facts(notes: list[str]) -> dict[str, int]:
    """Sizes the builder mentions while it works; what it does not mention is left out."""
    sizes = {}
    for name, pattern in _FACTS.items():
        for note in notes:
            match = pattern.search(note)
            if match:
                sizes[name] = int(match[1])
    return sizes


def _parser_problem(error: Any, title: str) -> str:
    operator = error.node_operator() if hasattr(error, "node_operator") else ""
    name = error.node_name() if hasattr(error, "node_name") else ""
    where = f"node {name or f'number {error.node()}'}" + (f" ({operator})" if operator else "")
    code = error.code().name
    lines = [line for line in error.desc().splitlines() if _NO_DRIVER not in line]
    if len(lines) > 1 and lines[0].startswith("Invalid Node"):
        lines = lines[1:]  # the first only repeats the name
    text = clean(" ".join(lines)).removeprefix(f"{name}: ")
    if code == "UNSUPPORTED_NODE" and text in ("", "false"):
        # The parser's table of operators says no more than that it has no importer.
        text = f"operator {operator or 'of this node'} is not supported by {title}"
    text = text or code.replace("_", " ").lower()
    if operator == "Gelu" or re.search(r"\bGelu\b", text):
        # One operator from opset 20 on; TensorRT 8.6 knows it as the Erf that opset 17 has.
        text += "; build with --opset 17"
    return f"{where}: {text}"

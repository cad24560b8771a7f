"""The largest numbers that are believed: far above what anybody needs, far below what a machine chokes on.

What a file or an option asks for beyond these is refused before any memory is taken for it.
"""

from __future__ import annotations

import math
from typing import Any

# relative: a folder of `package python` takes this file along, without the package around it
from .errors import InputError

CLASSES = 1_000_000
PIXELS = 8192  # a side of a network's input; 512 × 512 patches of 16 pixels
RESIZED = 4 * PIXELS  # the shorter side before the crop
BATCH = 65_536
BLOCKS = 1000  # of a model
IMAGES = 100_000_000  # of a data set, or of some of it
STREAMED = 1_000_000  # images to calibrate on, a few of them in memory
HELD = 4096  # images to compare on, all of them in memory
SYNTHETIC = 1024  # images made here
THREADS = 4096
PROCESSES = 1024
CPUS = 65_536
GPUS = 1024
SECONDS = 86_400
ROUNDS = 100_000
STEPS = 10**9
SEED = 2**32 - 1  # NumPy's
MEBIBYTES = 1 << 24
MICROSECONDS = 3_600_000_000  # Triton's queues wait at most an hour
REAL = 1_000_000_000  # any number that has no bound of its own
INTEGER = 2**53  # parameters, multiplications, bytes: what every reader of JSON holds exactly
GOLDEN = 1024  # images whose logits a bundle carries
JSON_BYTES = 256 << 20  # of a file that is read whole


def check_numbers(record: Any, most: dict[str, float]) -> None:
    """Refuse fields that are above their limit, or NaN; None is no number. Too small ones are for others to tell.

    Args:
        record: a dataclass whose fields are options of the command line.
        most: the limit by field.

    Raises:
        InputError: names the option, its value and the limit.
    """
    for name, limit in most.items():
        value = getattr(record, name)
        if value is not None and (value > limit or math.isnan(value)):
            shown = str(value) if len(str(value)) < 40 else f"a number of {len(str(value))} digits"
            raise InputError(f"--{name.replace('_', '-')} must be a number up to {limit:,}, got {shown}")


def check_ranges(record: Any, **ranges: tuple[float, float]) -> None:
    """Refuse fields that are out of their range, or NaN; None is no number.

    Args:
        record: a dataclass whose fields are options of the command line.
        ranges: smallest and largest value, by field.

    Raises:
        InputError: names the option, its value and its bounds.
    """
    for name, (least, most) in ranges.items():
        value = getattr(record, name)
        if value is not None and not least <= value <= most:
            raise InputError(f"--{name.replace('_', '-')} must be {least:g} to {most:,}, got {value!r:.40}")

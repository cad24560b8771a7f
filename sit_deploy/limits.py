"""The largest numbers that are believed: far above what anybody needs, far below what a machine chokes on.

What a file or an option asks for beyond these is refused before any memory is taken for it.
"""

from __future__ import annotations

CLASSES = 1_000_000
PIXELS = 8192  # a side of a network's input; 512 × 512 patches of 16 pixels
RESIZED = 4 * PIXELS  # the shorter side before the crop
BATCH = 65_536
BLOCKS = 1000  # of a model
IMAGES = 100_000_000  # of a data set, or of some of it
THREADS = 4096
INTEGER = 2**53  # parameters, multiplications, bytes: what every reader of JSON holds exactly
GOLDEN = 1024  # images whose logits a bundle carries
JSON_BYTES = 256 << 20  # of a file that is read whole

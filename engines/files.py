"""Files that are either written whole or not there."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from engines.errors import EngineError


@contextmanager
def atomic_path(target: Path) -> Iterator[Path]:
    """Yield a temporary sibling of `target` to write to; it takes the target's name at the end.

    On any failure, Ctrl-C included, the temporary file goes and `target` is as it was before.

    Raises:
        EngineError: the folder of `target` does not exist, or cannot be written to.
    """
    if not target.parent.is_dir():
        raise EngineError(f"cannot write {target}: folder {target.parent} does not exist")
    temporary = target.with_name(f".{target.name}.{os.getpid()}.tmp")
    try:
        yield temporary
        temporary.replace(target)
    except OSError as error:
        raise EngineError(f"cannot write {target}: {error.strerror or error}") from error
    finally:
        temporary.unlink(missing_ok=True)

"""TensorRT-RTX's runtime cache: kernels compiled at the first start, kept for the next.

TensorRT-RTX builds ahead of time for no GPU in particular and compiles for the one it finds when a context is created. The
library checks for itself that a cache fits device, driver and version, and refuses another.
"""

from __future__ import annotations

import hashlib
import logging
import os
import re
from pathlib import Path
from typing import Any

from engines.errors import EngineError
from engines.files import atomic_path

_log = logging.getLogger(__name__)


def cache_path(plan: bytes, gpu: str, version: str) -> Path:
    """Where the cache of a plan on a GPU lies: below SIT_DEPLOY_CACHE, else below the user's cache folder."""
    home = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    folder = Path(os.environ.get("SIT_DEPLOY_CACHE") or Path(home) / "sit-deploy") / "tensorrt-rtx"
    slug = re.sub(r"[^a-z0-9]+", "-", f"{gpu} {version}".lower()).strip("-")
    return folder / f"{hashlib.sha256(plan).hexdigest()[:32]}-{slug}.cache"


class RuntimeCache:
    """The cache of one engine. A cache that cannot be read or written costs time and nothing else, so it only warns.

    Attributes:
        loaded: kernels of an earlier start were taken.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.loaded = False
        self._cache: Any = None
        self._before = b""

    def attach(self, config: Any) -> None:
        """Let the contexts that are made with an `IRuntimeConfig` use this cache, which all of them share."""
        if self._cache is None:
            self._cache = config.create_runtime_cache()
            self._load()
        config.set_runtime_cache(self._cache)

    def save(self) -> None:
        """Write the cache if something was compiled since it was read."""
        if self._cache is None:
            return
        serialized = self._cache.serialize()
        data = b"" if serialized is None else bytes(memoryview(serialized))
        if not data or data == self._before:
            return
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with atomic_path(self.path) as temporary:
                temporary.write_bytes(data)
        except (OSError, EngineError) as error:
            _log.warning("the runtime cache was not kept, so the next start compiles again: %s", error)

    def _load(self) -> None:
        try:
            self._before = self.path.read_bytes()
        except FileNotFoundError:
            return
        except OSError as error:
            _log.warning("runtime cache %s cannot be read: %s", self.path, error)
            return
        self.loaded = bool(self._cache.deserialize(self._before))
        if not self.loaded:
            self._before = b""
            _log.warning("runtime cache %s is of another driver or damaged; it is made anew", self.path)

"""Importing a runtime: one that is missing or broken is said in one way, with what mends it."""

from __future__ import annotations

import importlib
import os
from types import ModuleType

from .errors import EngineLoadError, EngineNotInstalledError
from .install import pip_install

# that a runtime starts here at once: far more of them than CPUs only wait for each other, for minutes a call
MOST_THREADS = max(64, 4 * (os.cpu_count() or 1))


def import_runtime(package: str, title: str) -> ModuleType:
    """Import a runtime whose module is called as its package.

    Args:
        package: its name.
        title: its name for people.

    Raises:
        EngineNotInstalledError: it is missing, or cannot be imported.
    """
    try:
        return importlib.import_module(package)
    except ModuleNotFoundError as error:
        if error.name != package:
            raise _broken(package, title, error) from error
        raise EngineNotInstalledError(f"{title} is not installed", f"run {pip_install(package)}") from None
    except Exception as error:  # a broken library may raise anything while it loads
        raise _broken(package, title, error) from error


def _broken(package: str, title: str, error: Exception) -> EngineNotInstalledError:
    cause = " ".join(str(error).split()) or type(error).__name__
    return EngineNotInstalledError(
        f"{title} is installed but cannot be imported ({cause})",
        f"run {pip_install(package, again=True)}",
    )


def allowed_threads(threads: int) -> str:
    """Return the limit that a number of threads breaks, in words."""
    return "at least 1" if threads < 1 else f"at most {MOST_THREADS} on this machine"


def require_threads(threads: int | None) -> None:
    """Refuse a number of threads that this machine cannot make use of: a runtime starts them all.

    Raises:
        EngineLoadError: names it.
    """
    if threads is not None and not 1 <= threads <= MOST_THREADS:
        raise EngineLoadError(f"threads must be {allowed_threads(threads)}, got {threads}")

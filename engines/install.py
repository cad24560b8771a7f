"""What to type to install a package: one wording for every message, right however sit-deploy itself came here.

It names the packages themselves, with the releases that sit-deploy's own metadata asks for, and none of sit-deploy's extras: pip
would look a wheel of it up in an index, and a checkout by its folder.
"""

from __future__ import annotations

import importlib.metadata
import re
import shlex
import shutil
import sys
from pathlib import Path

_REQUIREMENT = re.compile(r"\s*([\w.-]+)\s*(\[[^]]*\])?\s*\(?([^;)]*)")


def pip_install(*packages: str, again: bool = False) -> str:
    """Return the command that installs packages for the Python that runs, in backquotes.

    Args:
        packages: names, which get the releases that sit-deploy asks for, or requirements (`onnxruntime>=1.26`), taken as they are.
        again: what is installed is broken, and is to be replaced.
    """
    words = ["install", *(["--force-reinstall"] if again else []), *map(requirement, packages)]
    return f"`{_pip()} {shlex.join(words)}`"


def requirement(package: str) -> str:
    """Return a package with the extras and releases that sit-deploy asks for, in whichever of its extras.

    A bare name comes back where sit-deploy is not installed, as in a folder of `sit-deploy package python`, or does not know it.
    """
    for line in _requirements():
        found = _REQUIREMENT.match(line)
        if found and _same(found[1], package):
            return f"{found[1]}{found[2] or ''}{found[3].strip()}"
    return package


def _requirements() -> list[str]:
    try:
        return importlib.metadata.requires("sit-deploy") or []
    except importlib.metadata.PackageNotFoundError:
        return []


def _same(one: str, other: str) -> bool:
    """Whether two spellings are one package for an index."""
    one, other = (re.sub(r"[-_.]+", "-", name).lower() for name in (one, other))
    return one == other


def _pip() -> str:
    """`pip` where that installs for the Python that runs; in an environment that is not activated, it would for another."""
    found, python = shutil.which("pip"), Path(sys.executable)
    if not sys.executable or (found and Path(found).parent == python.parent):
        return "pip"
    return f"{_short(python)} -m pip"


def _short(path: Path) -> str:
    """A path as a shell takes it, from the current folder or from the user's own where it lies in one."""
    for folder, before in ((Path.cwd, ""), (Path.home, "~/")):
        try:
            return before + shlex.quote(str(path.relative_to(folder())))
        except (
            ValueError,
            OSError,
            RuntimeError,
        ):  # it is elsewhere; or that folder was removed, or nobody knows it
            continue
    return shlex.quote(str(path))

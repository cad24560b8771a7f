"""OpenVINO in a server's Python: which release a bundle needs there, and whether it is there."""

from __future__ import annotations

import shlex
from importlib import metadata
from pathlib import Path

from sit_deploy.bundle import Bundle
from sit_deploy.errors import InputError
from sit_deploy.triton.config import python_runtime
from sit_deploy.triton.server import Installation, packages_of


def requirement(bundle: Bundle | None) -> str | None:
    """Return what pip has to install beside a server for a bundle, None where that is not OpenVINO.

    Newer releases read the engines of older ones. Without a bundle it is the release that is installed here, if there is one: what
    is built with it can be served then.
    """
    if bundle is not None:
        return f"openvino>={bundle.manifest.engine.version}" if python_runtime(bundle) == "openvino" else None
    try:
        return f"openvino>={metadata.version('openvino')}"
    except metadata.PackageNotFoundError:
        return None


def fits(folder: Path, wanted: str) -> bool:
    """Whether the server that is installed in a folder has what `requirement` says."""
    there = installed(folder)
    return there is not None and _numbers(there) >= _numbers(wanted.partition(">=")[2])


def installed(folder: Path) -> str | None:
    """Return the release of OpenVINO in the environment of a server, None where there is none."""
    found = next(packages_of(folder).glob("openvino-*.dist-info"), None)
    return None if found is None else found.name.removesuffix(".dist-info").partition("-")[2]


def require(installation: Installation, bundle: Bundle) -> None:
    """Refuse a server whose environment lacks OpenVINO for a bundle; of one that is not ours its model says so itself.

    Raises:
        InputError: names the command that adds it.
    """
    wanted = requirement(bundle)
    if wanted is None or installation.backends is None:
        return
    folder = installation.backends.parent
    if fits(folder, wanted):
        return
    there = installed(folder)
    lacks = f"has OpenVINO {there}" if there else "has no OpenVINO"
    raise InputError(
        f"the Triton server in {folder} {lacks}, and {bundle.path} needs {wanted.partition('>=')[2]} or newer; run `sit-deploy serve "
        f"--install --server-folder {shlex.quote(str(folder))} {shlex.quote(str(bundle.path))}`"
    )


def _numbers(version: str) -> tuple[int, ...]:
    return tuple(int(part) if part.isdecimal() else 0 for part in version.split("-")[0].split("."))

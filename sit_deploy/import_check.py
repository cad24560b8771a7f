"""Checks that what is imported beside this package belongs to it.

Python takes the first `engines` that it finds, which may be a folder of the user's own in the current folder.

The command line needs nothing of the current folder and does not look there. In a script, the user's own folder comes first for
a reason, and only he can say which of the two is meant.
"""

from __future__ import annotations

import sys
from importlib.util import find_spec
from pathlib import Path

HOME = Path(__file__).resolve().parents[1]
_OURS = ("engines", "calibration")
# packages of many files, each of them; a file of such a name is the user's own
_OTHERS = ("click", "msgspec", "numpy", "onnx", "onnxruntime", "PIL", "rich", "safetensors", "timm", "torch")
_COMMANDS = ("sit_deploy", "training")


def check() -> None:
    """See to it that this package finds its neighbours.

    Raises:
        ImportError: something else has the name of one and comes first. In the command line, SystemExit with status 2.
    """
    command_line = _is_command_line()
    if command_line:
        leave_current_folder()
    hidden = _hidden((*_OURS, "training") if command_line else _OURS)
    if not hidden:
        return
    if command_line:
        sys.stderr.write(f"Error: {hidden}\n")
        raise SystemExit(2)
    raise ImportError(hidden)


def leave_current_folder() -> None:
    """Take the current folder off the path on which modules are looked for, unless this package lies in it."""
    try:
        here = Path.cwd().resolve()
    except FileNotFoundError:  # it was removed
        return
    if here != HOME and here.name not in ("site-packages", "dist-packages"):
        sys.path[:] = [entry for entry in sys.path if Path(entry).resolve() != here]


def _is_command_line() -> bool:
    """Whether this process runs sit-deploy, `python -m sit_deploy` or `python -m training`, and not a program of others."""
    program = Path(sys.argv[0])
    if program.name in ("sit-deploy", "sit-deploy.exe") or program in [
        HOME / n / "__main__.py" for n in _COMMANDS
    ]:
        return True
    words = sys.orig_argv[1:]  # while `-m` is still looking for its module
    return (
        sys.argv[0] == "-m"
        and "-m" in words
        and words[words.index("-m") + 1 :][:1] in (["sit_deploy"], ["training"])
    )


def _hidden(names: tuple[str, ...]) -> str:
    """Return what hides one of our packages, or one that they import; empty where nothing does."""
    for name in names:
        place = _place(name)
        if place and place.parent != HOME:
            return (
                f"{place} hides the package {name} that sit-deploy was installed with, because its folder is looked in first; "
                "rename it, or start Python from another folder"
            )
    first = Path(sys.path[0]) if sys.path else HOME
    for name in _OTHERS:
        place = first / f"{name}.py"
        if name not in sys.modules and place.is_file():
            return f"{place.resolve()} hides the package {name} that sit-deploy needs; rename it"
    return ""


def _place(name: str) -> Path | None:
    """The folder or file that an import of a package takes; None where there is none."""
    try:
        spec = find_spec(name)
    except (ImportError, ValueError):  # a module that was put there by hand
        return None
    if spec is None or not spec.origin:
        return None
    origin = Path(spec.origin).resolve()
    return origin.parent if origin.stem == "__init__" else origin

"""Errors that a user can cause, each with the exit status that the command line gives it.

The message of every one is a single line that says what is wrong and what to do about it. The command line prints it
as it is; a traceback means a defect of sit-deploy.
"""

from __future__ import annotations

from engines.errors import Error

__all__ = ["Error", "GateError", "InputError", "nearest"]


class InputError(Error):
    """The input or the usage is wrong: a file, an option, a data set, an environment."""


class GateError(Error):
    """The work was done and its result is out of tolerance: parity, accuracy or agreement."""

    exit_status = 1


def nearest(name: str, choices: list[str] | tuple[str, ...]) -> str:
    """Return `; did you mean 'x'?`, or an empty string where nothing is close (for unknown names in messages)."""
    import difflib

    close = difflib.get_close_matches(name, choices, n=1, cutoff=0.5)
    return f"; did you mean '{close[0]}'?" if close else ""

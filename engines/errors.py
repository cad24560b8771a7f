"""What can go wrong in an engine: one family, each message one line that says what to do."""

from __future__ import annotations


class EngineError(Exception):
    """Root of the family; a command line ends with `exit_status` and the message, no traceback."""

    exit_status = 2


class EngineNotInstalledError(EngineError):
    """The runtime's package is missing, or is there and cannot be imported.

    `reason` says which of the two, `remedy` what to run; the message is both.
    """

    def __init__(self, reason: str, remedy: str) -> None:
        super().__init__(f"{reason}; {remedy}")
        self.reason = reason
        self.remedy = remedy


class NoGpuError(EngineError):
    """The work needs an NVIDIA GPU and none can be used here."""


class EngineBuildError(EngineError):
    """An engine could not be built; no file was left behind.

    `problems` holds one line for each thing the runtime found wrong, the message the first few.
    """

    def __init__(self, message: str, problems: tuple[str, ...] = ()) -> None:
        super().__init__(message)
        self.problems = problems


class EngineLoadError(EngineError):
    """A built engine could not be opened."""


class EngineInputError(EngineError):
    """The arrays given to `Runner.infer` are not what the engine takes."""


class EngineRunError(EngineError):
    """An engine failed while it ran."""

"""Errors: the root of all that sit-deploy raises on purpose, and the family of what can go wrong in an engine.

The message of every one is a single line that says what is wrong and what to do about it. The root is here because every
other package may import this one; people reach it as `sit_deploy.Error`.
"""

from __future__ import annotations


class Error(Exception):
    """Root of every error that sit-deploy raises on purpose; the command line ends with `exit_status` and the message."""

    exit_status = 2


class EngineError(Error):
    """An engine cannot be had, built, opened or run."""


class EngineNotInstalledError(EngineError):
    """The runtime's package is missing, or is there and cannot be imported.

    `reason` says which of the two, `remedy` what to run; the message is both.
    """

    def __init__(self, reason: str, remedy: str) -> None:
        super().__init__(f"{reason}; {remedy}")
        self.reason = reason
        self.remedy = remedy

    def __reduce__(self) -> tuple[type[EngineNotInstalledError], tuple[str, str]]:
        """Return how it is made again in another process."""
        return type(self), (self.reason, self.remedy)


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


class WorkerError(EngineError):
    """A process failed or died while it was being timed.

    Attributes:
        worker: its name.
    """

    def __init__(self, message: str, worker: str) -> None:
        super().__init__(message)
        self.worker = worker

    def __reduce__(self) -> tuple[type[WorkerError], tuple[str, str]]:
        """Return how it is made again in another process."""
        return type(self), (str(self), self.worker)

"""What PyTorch makes of errors in the processes that decode images: the error as it was raised there.

A `DataLoader` hands over text alone, so what it says is looked for in its words.
"""

from __future__ import annotations

from sit_deploy.errors import InputError


def is_dead_worker(error: object) -> bool:
    """Return whether PyTorch says that a worker has died; it does so wherever the main process happens to be."""
    return str(error).startswith("DataLoader worker")


def as_raised_in_worker(error: InputError | RuntimeError) -> Exception:
    """Return the error as it was raised; a loader's worker hands it over with its whole traceback as the message."""
    text = str(error)
    if isinstance(error, RuntimeError):
        if not is_dead_worker(error):
            return error
        return InputError(
            f"a process that reads images has died ({text.splitlines()[0]}); pass fewer --workers, then go on with --resume"
        )
    if "Original Traceback" not in text:
        return error
    return InputError(text.rstrip().splitlines()[-1].split("InputError: ", 1)[-1])

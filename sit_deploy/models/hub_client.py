"""The Hugging Face Hub's own client, for single files of a model's repository: what it cannot do is told in one line."""

from __future__ import annotations

import contextlib
import errno
import inspect
import io
import logging
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from engines.base import Progress
from sit_deploy.errors import InputError
from sit_deploy.models.config_json import OPEN_CLIP, PREPROCESSOR, PROCESSOR
from sit_deploy.models.file_kind import ADAPTER
from sit_deploy.text import short_reason, shortened


class UnreachableError(InputError):
    """A file is not in the cache, and the hub cannot be asked."""


def fetch(repository: str, file: str, revision: str | None, progress: Progress | None = None) -> Path | None:
    """Return a file of a repository, in the cache.

    Args:
        repository: OWNER/NAME.
        file: its name there.
        revision: branch, tag or commit; None for the default branch.
        progress: is called with a step, how many MB have come and how many there are, where it is not in the cache.

    Returns:
        Its path, None where the repository has no such file, or where it is a configuration that only may be there and the hub
        cannot be asked.

    Raises:
        UnreachableError: it is not in the cache, and the hub cannot be asked.
        InputError: no such repository or revision, no right to it, no room for it: what, and what to do about it.
    """
    from huggingface_hub import constants, errors, hf_hub_download, try_to_load_from_cache

    name, cache = f"hf-hub:{repository}", constants.HF_HUB_CACHE
    try:
        step = f"Fetching {name}"
        # which knows, too, what a repository has not
        if progress is None or try_to_load_from_cache(repository, file, revision=revision) is not None:
            with _silent():
                return Path(hf_hub_download(repository, file, revision=revision))
        progress(step, 0, 0)
        with _silent():
            # older clients have a bar of their own alone
            has_bars = "tqdm_class" in inspect.signature(hf_hub_download).parameters
            bar = {"tqdm_class": _bar(step, progress)} if has_bars else {}
            path = Path(hf_hub_download(repository, file, revision=revision, **bar))
        progress(step, 1, 1)
        return path
    except errors.LocalEntryNotFoundError as error:
        if file in (PREPROCESSOR, PROCESSOR, OPEN_CLIP, ADAPTER):
            return None
        if (answer := getattr(error.__cause__, "response", None)) is not None:
            raise UnreachableError(_answer_words(repository, file, answer.status_code)) from None
        why = "HF_HUB_OFFLINE is set" if constants.HF_HUB_OFFLINE else short_reason(error.__cause__ or error)
        raise UnreachableError(
            f"{file} of {name} is not in the cache {cache}, and the hub cannot be reached ({why}); with a network, run: hf download "
            f"{repository}{f' --revision {revision}' if revision else ''}"
        ) from None
    except errors.EntryNotFoundError:
        return None
    except errors.HFValidationError:
        words = f"{shortened(name, 300)} is no name of a repository; write hf-hub:OWNER/NAME, or hf-hub:OWNER/NAME@REVISION"
    except errors.GatedRepoError:
        words = (
            f"{name} is gated; ask for access on {constants.ENDPOINT}/{repository}, then run: hf auth login"
        )
    except errors.RepositoryNotFoundError:
        words = f"{constants.ENDPOINT} has no model {repository}, or a private one; check its name, or run: hf auth login"
        if other := _other_type(repository):
            words = f"{name} is {other}, not a model; give a repository of a model"
    except errors.RevisionNotFoundError:
        words = (
            f"{name} has no revision {revision}; leave out @{revision}, or name another branch, tag or commit"
        )
    except errors.HfHubHTTPError as error:
        words = _answer_words(repository, file, error.response.status_code)
    except UnicodeError:  # no header can have it
        words = (
            "the token for the hub has letters that no token has; run: hf auth login, or set HF_TOKEN again"
        )
    except Exception as error:  # of the network or the disk, the client lets through what it likes
        remedy = _remedy(error)
        words = f"{file} of {name} could not be fetched to {cache} ({short_reason(error)}); {remedy}"
    raise InputError(words)


def _bar(step: str, progress: Progress) -> type:
    """Return what the client makes its bar of: one that draws nothing itself."""
    from tqdm.std import tqdm

    class Bar(tqdm):
        def __init__(self, *args: Any, **options: Any) -> None:
            options.pop("name", None)  # of the client's own class
            super().__init__(*args, **{**options, "file": io.StringIO(), "disable": False, "leave": False})

        def display(self, *_: Any, **__: Any) -> None:
            megabytes = int(self.total or 0) // 10**6
            if megabytes:  # one more: the step ends when the file is in its place
                progress(step, min(int(self.n) // 10**6, megabytes), megabytes + 1)

    return Bar


@contextlib.contextmanager
def _silent() -> Iterator[None]:
    """Keep the client's warnings, of tries that failed and of a disk that is nearly full, off the screen: an error says it all."""
    logger = logging.getLogger("huggingface_hub")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)


def _answer_words(repository: str, file: str, status: int) -> str:
    """Return what is wrong, by the hub's answer, where it says no more than a number."""
    from huggingface_hub import constants

    remedy = {
        401: "the token is not valid there; run: hf auth login, or take HF_TOKEN out of the environment",
        403: "the token may not read it; run: hf auth login with one that may",
        429: "too many requests from here; wait some minutes, or run: hf auth login",
    }.get(status, "try again later")
    return f"{constants.ENDPOINT} refused {file} of hf-hub:{repository} (status {status}): {remedy}"


def _remedy(error: BaseException) -> str:
    number = error.errno if isinstance(error, OSError) else None
    if number in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
        return "make room there, or say another place by HF_HOME"
    if number in (errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR):
        return "see that it can be written, or say another place by HF_HOME"
    return "run the command again"


def _other_type(repository: str) -> str | None:
    """Return what else than a model is called so on the hub, None where nothing is."""
    from huggingface_hub import HfApi

    for kind, words in (("dataset", "a data set"), ("space", "a space")):
        try:
            if HfApi().repo_exists(repository, repo_type=kind):
                return words
        except Exception:  # whatever it is, it is no answer
            return None
    return None


def repository_files(repository: str, revision: str | None) -> set[str] | None:
    """Return the names of a repository's files, None where the hub does not say."""
    from huggingface_hub import HfApi

    try:
        return set(HfApi().list_repo_files(repository, revision=revision))
    except Exception:  # without a network, and of whatever kind: what asked for it has an error of its own
        return None


def cached_file(repository: str, file: str, revision: str | None) -> Path | None:
    """Return a file of a repository if it is in the cache; asks nobody."""
    from huggingface_hub import try_to_load_from_cache

    found = try_to_load_from_cache(repository, file, revision=revision)
    return Path(found) if isinstance(found, str) else None

"""Models by where they are, as timm spells them: hf-hub:OWNER/NAME[@REVISION] and local-dir:PATH, and timm's own weights.

A repository is fetched by the Hugging Face Hub's own client into its cache, and only for a name that the user gave. Every
failure is one line. Imports nothing heavy.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sit_deploy.errors import InputError
from sit_deploy.models.file_kind import find_file

CONFIG = "config.json"
# what timm takes first, safetensors before pickles (timm.models._hub); transformers' preprocessing beside
_WEIGHTS = ("model.safetensors", "pytorch_model.bin")
_BESIDE = "preprocessor_config.json"
_SPELLING = re.compile(r"(hf[-_]hub|local-dir):(.+)", re.DOTALL | re.IGNORECASE)
# of the client's cache: models--OWNER--NAME/snapshots/COMMIT/FILE
_SNAPSHOT = re.compile(r"models--(.+)/snapshots/([0-9a-f]{40})/[^/]+$")
_OPTIONS = ("img_size", "num_classes")  # of model_args, what is taken from elsewhere
_FACTORY = (
    "pretrained",
    "checkpoint_path",
    "cache_dir",
    "scriptable",
    "exportable",
    "no_jit",
)  # of timm.create_model itself
_MAX_BYTES = 10_000_000  # of a config.json


@dataclass(frozen=True)
class Published:
    """What a repository or folder holds.

    Attributes:
        name: as it was asked for.
        weights: the file.
        fields: of its config.json, empty where there is none.
    """

    name: str
    weights: Path
    fields: dict[str, Any]

    @property
    def architecture(self) -> str:
        """The name of its model in timm.

        Raises:
            InputError: it names none, or one that was made otherwise than by name alone.
        """
        architecture, kind = self.fields.get("architecture"), self.fields.get("model_type")
        if not isinstance(architecture, str):
            what = f"is a model of transformers (model_type {kind})" if kind else f"has no {CONFIG} of timm's"
            raise InputError(
                f"{self.name} {what}; pass --checkpoint {self.name}, and with --model timm's name of the same architecture, such "
                "as vit_base_patch16_224"
            )
        if others := _arguments_of_its_own(architecture, self.fields.get("model_args")):
            raise InputError(
                f"{self.name} is a {architecture} with arguments of its own ({others}), which are not taken yet; give a repository of "
                "an architecture that timm has a name for"
            )
        return architecture

    @property
    def image_size(self) -> int | None:
        """Pixels of its square input, None where its config.json does not say."""
        given = self.fields.get("pretrained_cfg")
        size = given.get("input_size") if isinstance(given, dict) else None
        side = size[-1] if isinstance(size, list) and size else None
        return side if isinstance(side, int) else None


def is_place(name: str | Path | None) -> bool:
    """Say whether a model's or checkpoint's name is that of a repository or a folder of timm's spelling."""
    return name is not None and bool(_SPELLING.fullmatch(str(name)))


def open_published(name: str | Path) -> Published:
    """Return what a repository or folder holds, fetched where it is not in the cache.

    Raises:
        InputError: not there, not to be had, or of another kind: what, and what to do about it.
    """
    kind, place = _SPELLING.fullmatch(str(name)).groups()
    if kind.lower() == "local-dir":
        folder = Path(place)
        if not (folder / CONFIG).is_file():
            raise InputError(
                f"{name}: no {CONFIG} in {folder}, so nothing says which model it is; pass --checkpoint FILE and --model NAME"
            )
        preferred = [folder / file for file in _WEIGHTS if (folder / file).is_file()]
        return Published(str(name), preferred[0] if preferred else find_file(folder), _fields(folder, name))
    repository, _, revision = place.partition("@")
    config = _fetch(repository, CONFIG, revision or None)
    commit = config.parent.name if config else revision or None
    weights = next(filter(None, (_fetch(repository, file, commit) for file in _WEIGHTS)), None)
    if weights is None:
        what = "no config.json and no" if config is None else "no"
        raise InputError(
            f"{name} has {what} {' or '.join(_WEIGHTS)}, so it is no model of timm's; take another, or download its file and pass it "
            "with --checkpoint FILE --model NAME"
        )
    fields = _fields(config.parent, name) if config else {}
    if "architecture" not in fields:
        _fetch(repository, _BESIDE, commit)
    return Published(str(name), weights, fields)


def timm_weights(model: str) -> str:
    """Return where timm's own weights of a model are, for `open_published`.

    Raises:
        InputError: timm has none of this name, or not on the hub.
    """
    from timm.models import get_pretrained_cfg, is_model

    if not is_model(model):
        raise InputError(
            f"--pretrained takes weights of timm's, and {model} is none of its models; pass --checkpoint FILE"
        )
    try:
        cfg = get_pretrained_cfg(model)
    except RuntimeError as error:  # an unknown tag
        raise InputError(
            f"timm has no weights {model} ({str(error)[:150]}); leave out what follows the dot"
        ) from None
    if cfg is None or not (cfg.hf_hub_id or cfg.url):
        raise InputError(f"timm has no weights of {model}; pass --checkpoint FILE")
    if not cfg.hf_hub_id:
        raise InputError(
            f"timm's weights of {model} are not on the hub; download {cfg.url} and pass it with --checkpoint"
        )
    return f"hf-hub:{cfg.hf_hub_id}"


def origin(path: Path) -> tuple[str, str] | None:
    """Return the repository and the commit that a file of the hub's cache is of, None for any other file."""
    found = _SNAPSHOT.search(path.absolute().as_posix())
    return (found[1].replace("--", "/", 1), found[2]) if found else None


def _arguments_of_its_own(architecture: str, given: Any) -> str:
    """Return the arguments that make another model than its name alone; timm writes those that change nothing too."""
    own = {k: v for k, v in given.items() if k not in _OPTIONS} if isinstance(given, dict) else {}
    if not own:
        return ""
    shown = ", ".join(f"{key}" for key in own)[:200]
    if any(key.startswith(_FACTORY) or not isinstance(v, str | int | float | None) for key, v in own.items()):
        return shown
    import timm
    import torch

    try:
        with torch.device("meta"):
            plain, other = timm.create_model(architecture), timm.create_model(architecture, **own)
    except (RuntimeError, TypeError, ValueError, AssertionError, AttributeError, KeyError):
        return shown
    facts = [
        (repr(m), {k: v for k, v in vars(m).items() if isinstance(v, str | int | float | tuple)})
        for m in (plain, other)
    ]
    return "" if facts[0] == facts[1] else shown


def label_names(weights: Path, count: int) -> list[str] | None:
    """Return the names of `count` classes that timm's config.json beside a file of weights has, None where it has none."""
    if not (weights.parent / CONFIG).is_file():
        return None
    try:
        fields = _fields(weights.parent, weights)
    except InputError:  # some other program's: it is no fault of the checkpoint
        return None
    names = fields.get("label_names") if isinstance(fields.get("architecture"), str) else None
    if not isinstance(names, list) or len(names) != count or not all(isinstance(n, str) and n for n in names):
        return None
    return names


def _fields(folder: Path, name: str | Path) -> dict[str, Any]:
    try:
        path = folder / CONFIG
        fields = json.loads(path.read_text(encoding="utf-8")) if path.stat().st_size <= _MAX_BYTES else None
    except (OSError, ValueError, RecursionError) as error:
        raise InputError(
            f"the {CONFIG} of {name} cannot be read ({str(error)[:100]}); copy it again"
        ) from None
    if not isinstance(fields, dict):
        raise InputError(f"the {CONFIG} of {name} is no set of named fields; copy it again")
    return fields


def _fetch(repository: str, file: str, revision: str | None) -> Path | None:
    """Return a file of a repository, in the cache; None where the repository has none of this name."""
    from huggingface_hub import constants, errors, hf_hub_download

    name, cache = f"hf-hub:{repository}", constants.HF_HUB_CACHE
    try:
        return Path(hf_hub_download(repository, file, revision=revision))
    except errors.LocalEntryNotFoundError as error:
        why = "HF_HUB_OFFLINE is set" if constants.HF_HUB_OFFLINE else _line(error.__cause__ or error)
        if file == _BESIDE or (file == _WEIGHTS[0] and _cached(repository, _WEIGHTS[1], revision)):
            return None
        words = (
            f"{file} of {name} is not in the cache {cache}, and the hub cannot be reached ({why}); with a network, run: hf download "
            f"{repository}"
        )
    except errors.EntryNotFoundError:
        return None
    except errors.HFValidationError:
        words = f"{name} is no name of a repository; write hf-hub:OWNER/NAME, or hf-hub:OWNER/NAME@REVISION"
    except errors.GatedRepoError:
        words = (
            f"{name} is gated; ask for access on {constants.ENDPOINT}/{repository}, then run: hf auth login"
        )
    except errors.RepositoryNotFoundError:
        words = f"{constants.ENDPOINT} has no model {repository}, or a private one; check its name, or run: hf auth login"
    except errors.RevisionNotFoundError:
        words = (
            f"{name} has no revision {revision}; leave out @{revision}, or name another branch, tag or commit"
        )
    except (
        Exception
    ) as error:  # of the network, the server or the disk, the client lets through what it likes
        words = f"{file} of {name} could not be fetched to {cache} ({_line(error)}); run the command again"
    raise InputError(words)


def _cached(repository: str, file: str, revision: str | None) -> bool:
    from huggingface_hub import try_to_load_from_cache

    return isinstance(try_to_load_from_cache(repository, file, revision=revision), str)


def _line(error: BaseException) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())[:150]}"

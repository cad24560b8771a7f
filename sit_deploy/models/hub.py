"""Models by where they are, as timm spells them: hf-hub:OWNER/NAME[@REVISION] and local-dir:PATH, and timm's own weights.

A repository is fetched by the Hugging Face Hub's own client into its cache, and only for a name that the user gave: its
config.json first, its weights when they are asked for. Every failure is one line. Imports nothing heavy.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from engines.base import Progress
from sit_deploy.errors import InputError
from sit_deploy.models.config_json import CONFIG, OPEN_CLIP, PREPROCESSOR, PROCESSOR, ConfigJson
from sit_deploy.models.file_kind import ADAPTER, find_file, weights_among
from sit_deploy.models.hub_client import UnreachableError, cached_file, fetch, repository_files
from sit_deploy.models.timm_name import timm_architecture

# what timm takes first, safetensors before pickles (timm.models._hub); open_clip's of both towers last
_WEIGHTS = (
    "model.safetensors",
    "pytorch_model.bin",
    "open_clip_model.safetensors",
    "open_clip_pytorch_model.bin",
)
_SPELLING = re.compile(r"(hf[-_]hub|local-dir):(.*)", re.DOTALL | re.IGNORECASE)
# of the client's cache: models--OWNER--NAME/snapshots/COMMIT/FILE
_SNAPSHOT = re.compile(r"models--(.+)/snapshots/([0-9a-f]{40})/[^/]+$")
# files that say what a repository without a model's weights is
_OTHER_KINDS = {
    "model.safetensors.index.json": "has its weights in shards, which are not put together here: save them in one file",
    "pytorch_model.bin.index.json": "has its weights in shards, which are not put together here: save them in one file",
    "model_index.json": "is a pipeline of diffusers, which makes images",
    ADAPTER: "has adapters (PEFT) of a model, not a model; merge them: model.merge_and_unload()",
    "tf_model.h5": "has TensorFlow's weights alone",
    "flax_model.msgpack": "has Flax's weights alone",
}


@dataclass(frozen=True)
class Published:
    """A repository or a folder; its weights are fetched when they are asked for.

    Attributes:
        name: as it was asked for.
        place: the same at its commit, as far as that is known, or with its folder's absolute path.
        config: its config.json.
        repository: OWNER/NAME, None for a folder.
        revision: of the repository: its commit, or what was asked for.
    """

    name: str
    place: str
    config: ConfigJson
    repository: str | None = None
    revision: str | None = None

    @property
    def architecture(self) -> str:
        """The name of its model in timm.

        Raises:
            InputError: as `timm_architecture`.
        """
        self.check_kind()
        return timm_architecture(self.config, self.name)

    def check_kind(self) -> None:
        """Refuse a repository without a config.json of a model and without weights, by what it is.

        Raises:
            InputError: says what.
        """
        if not self.config.names_a_model and (what := self._kind()):
            raise InputError(f"{self.name} {what}; take another")

    def weights(self, progress: Progress | None = None) -> Path:
        """Return the file of its weights, fetched where it is not in the cache.

        Args:
            progress: see `sit_deploy.models.hub_client.fetch`.

        Raises:
            InputError: there is none, there are several, or it cannot be had.
        """
        if self.repository is None:
            folder = Path(_SPELLING.fullmatch(self.place)[2])
            preferred = [folder / file for file in _WEIGHTS if (folder / file).is_file()]
            return preferred[0] if preferred else find_file(folder)
        weights = self._first_weights(progress) or self._only_weights(progress)
        if weights is None:
            what = self._kind() or f"has no {' or '.join(_WEIGHTS[:2])}, so it is no model of timm's"
            raise InputError(
                f"{self.name} {what}; take another, or give its file of weights and name its model"
            )
        if self.config.architecture is None:
            for file in (PROCESSOR, PREPROCESSOR, ADAPTER):
                fetch(self.repository, file, weights.parent.name)
        if weights.name.startswith("open_clip"):
            fetch(self.repository, OPEN_CLIP, weights.parent.name)
        return weights

    def _first_weights(self, progress: Progress | None) -> Path | None:
        for file in _WEIGHTS:
            try:
                if path := fetch(self.repository, file, self.revision, progress):
                    return path
            except UnreachableError:
                beside = cached_file(self.repository, CONFIG, self.revision)
                others = [f.name for f in beside.parent.iterdir()] if beside else []
                for name in (*_WEIGHTS, *weights_among(others)):
                    if path := cached_file(self.repository, name, self.revision):
                        return path
                raise
        return None

    def _only_weights(self, progress: Progress | None) -> Path | None:
        """Return the weights of a repository that calls them otherwise, if it has one file of them."""
        others = weights_among(sorted(repository_files(self.repository, self.revision) or ()))
        if len(others) > 1:
            raise InputError(
                f"{self.name} has {len(others)} files of weights, and none is called {' or '.join(_WEIGHTS[:2])}; download one of "
                f"{', '.join(others[:5])} and pass that file"
            )
        return fetch(self.repository, others[0], self.revision, progress) if others else None

    def _kind(self) -> str | None:
        """Return what a repository is that has no weights of a model, None for one that may have them."""
        if self.repository:
            files = repository_files(self.repository, self.revision)
        else:
            files = _files_in(Path(_SPELLING.fullmatch(self.place)[2]))
        if files is None or weights_among(files):
            return None
        found = (words for file, words in _OTHER_KINDS.items() if file in files)
        what = f"no {CONFIG} and no" if not self.config.fields else "no"
        return next(found, f"has {what} {' or '.join(_WEIGHTS[:2])}, so it is no model of timm's")


def _files_in(folder: Path) -> set[str] | None:
    try:
        return {file.name for file in folder.iterdir()}
    except OSError:  # whoever looks for its weights says why
        return None


@dataclass(frozen=True)
class Start:
    """What a model is and where its weights are.

    Attributes:
        model: its name, ours or timm's; None where only a model card in the weights can say.
        weights: a file or a folder, or a repository at its commit whose weights are yet to be fetched.
        image_size: pixels of its square input, where its config.json named the model.
    """

    model: str | None
    weights: Path | None
    image_size: int | None = None


def is_place(name: str | Path | None) -> bool:
    """Say whether a model's or checkpoint's name is that of a repository or a folder of timm's spelling."""
    return name is not None and bool(_SPELLING.fullmatch(str(name)))


def place_of_address(address: str) -> str | None:
    """Return how a repository is written here that an address of the hub's pages is of, None for any other text."""
    found = re.match(
        r"https?:/+(?:huggingface\.co|hf\.co)/([\w.-]+/[\w.-]+)(?:/(?:tree|blob|resolve)/([\w.-]+))?", address
    )
    if not found or found[1].startswith(("datasets/", "spaces/")):
        return None
    return f"hf-hub:{found[1]}{f'@{found[2]}' if found[2] not in (None, 'main') else ''}"


def resolve(model: str | None, weights: Path | None, pretrained: bool, option: str = "--checkpoint") -> Start:
    """Return a model by its name, where the user may have said where it is; of a repository, only its config.json is fetched.

    Args:
        model: a name, a repository or a folder.
        weights: a file or folder, or a repository or folder of timm's spelling.
        pretrained: take timm's own weights.
        option: that names the weights on the command line.

    Raises:
        InputError: weights said twice, a model that nobody names, a place where there is none.
    """
    if pretrained and weights is not None:
        raise InputError(f"--pretrained and {option} are both of weights; pass one of them")
    if pretrained and model is None:
        raise InputError("--pretrained takes timm's weights of a model; pass its name with --model")
    if is_place(model):
        if pretrained:
            raise InputError(
                f"--pretrained is for timm's name of a model, and {model} has weights of its own; leave it out"
            )
        published = open_published(model)
        if weights is None and not published.config.names_a_model:
            published.check_kind()
            return Start(None, Path(published.place))
        taken = Path(published.place) if weights is None else pinned(weights)
        return Start(published.architecture, taken, published.config.image_size)
    place = timm_weights(model, option) if pretrained else weights
    if not is_place(place):
        return Start(model, weights)
    published = open_published(place)
    if model is None and published.config.names_a_model:
        return Start(published.architecture, Path(published.place), published.config.image_size)
    return Start(model, Path(published.place))


def pinned(path: Path | None) -> Path | None:
    """Return a checkpoint's path, that of a repository or folder of timm's spelling with its commit; fetches no weights.

    Raises:
        InputError: as `open_published`.
    """
    return Path(open_published(path).place) if is_place(path) else path


def local_file(path: str | Path | None, progress: Progress | None = None) -> Path | None:
    """Return a checkpoint as a file or folder here: of a repository or a folder of timm's spelling its weights, any other as it is.

    Args:
        path: of a checkpoint, or None.
        progress: see `sit_deploy.models.hub_client.fetch`.

    Raises:
        InputError: as `open_published` and `Published.weights`.
    """
    if path is None:
        return None
    return open_published(path).weights(progress) if is_place(path) else Path(path)


def open_published(name: str | Path) -> Published:
    """Return what a repository or folder is; its config.json is fetched where it is not in the cache, its weights are not.

    Raises:
        InputError: not there, not to be had, or no name of one: what, and what to do about it.
    """
    kind, place = _SPELLING.fullmatch(str(name)).groups()
    if kind.lower() == "local-dir":
        if not place:
            raise InputError(f"{name} names no folder; write local-dir:PATH")
        folder = Path(place)
        if not folder.is_dir():
            what = (
                "is a file; pass it with --checkpoint" if folder.exists() else "is not there; check its path"
            )
            raise InputError(f"{name}: {place} {what}")
        return Published(str(name), f"local-dir:{folder.absolute()}", ConfigJson.read(folder, str(name)))
    repository, _, revision = place.partition("@")
    if not repository.strip("/"):
        raise InputError(
            f"{name} names no repository; write hf-hub:OWNER/NAME, or hf-hub:OWNER/NAME@REVISION"
        )
    try:
        config = fetch(repository, CONFIG, revision or None)
    except UnreachableError:
        # timm's own client fetches weights alone
        cached = [path for f in _WEIGHTS if (path := cached_file(repository, f, revision or None))]
        if not cached:
            raise
        config, revision = None, cached[0].parent.name
    commit = config.parent.name if config else revision
    pinned = f"hf-hub:{repository}{f'@{commit}' if commit else ''}"
    fields = ConfigJson.read(config.parent, str(name)) if config else ConfigJson()
    return Published(str(name), pinned, fields, repository, commit or None)


def timm_weights(model: str, option: str = "--checkpoint") -> str:
    """Return where timm's own weights of a model are, for `open_published`.

    Args:
        model: timm's name, with or without a tag.
        option: that takes other weights on the command line.

    Raises:
        InputError: timm has none of this name, or not on the hub.
    """
    from timm.models import get_pretrained_cfg, is_model

    model = model.partition(":")[0]
    if not is_model(model):
        raise InputError(
            f"--pretrained takes weights of timm's, and {model} is none of its models; pass {option} FILE"
        )
    try:
        cfg = get_pretrained_cfg(model)
    except RuntimeError as error:  # an unknown tag
        raise InputError(
            f"timm has no weights {model} ({str(error)[:150]}); leave out what follows the dot"
        ) from None
    if cfg is None or not (cfg.hf_hub_id or cfg.url):
        raise InputError(f"timm has no weights of {model}; pass {option} FILE")
    if not cfg.hf_hub_id:
        raise InputError(
            f"timm's weights of {model} are not on the hub; download {cfg.url} and pass it with {option}"
        )
    return f"hf-hub:{cfg.hf_hub_id}"


def origin(path: Path) -> tuple[str, str] | None:
    """Return the repository and the commit that a file of the hub's cache is of, None for any other file."""
    found = _SNAPSHOT.search(path.absolute().as_posix())
    return (found[1].replace("--", "/", 1), found[2]) if found else None


def place_of(path: Path) -> str:
    """Return what a file is called anywhere: of the hub's cache its repository at its commit, of any other its path."""
    found = origin(path)
    return f"hf-hub:{found[0]}@{found[1]}" if found else str(path)

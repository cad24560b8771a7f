"""The classes of what is built: their names and, as far as that can be told before PyTorch is imported and weights are loaded, how many."""

from __future__ import annotations

from sit_deploy.errors import InputError
from sit_deploy.models.card_file import head_outputs
from sit_deploy.models.catalog import our_config
from sit_deploy.models.config_json import ConfigJson
from sit_deploy.models.file_kind import find_file
from sit_deploy.models.hub import is_place, open_published
from sit_deploy.pipeline.request import BuildRequest


def class_names(request: BuildRequest, count: int | None) -> list[str] | None:
    """Return the names of a model's classes in label order: of --labels, of the model card, or of the config.json beside the weights.

    Args:
        request: of the model.
        count: of its classes; None where that is not known yet.

    Raises:
        InputError: a file of labels that cannot be read, or has other than `count` of them.
    """
    if request.labels:
        return _named(request, count)
    if card := request.card:
        return (
            list(card.classes) if card.classes and len(card.classes) > 1 else None
        )  # of one output, which is two now
    if not request.checkpoint or is_place(request.checkpoint) or not count:
        return None
    return ConfigJson.beside(find_file(request.checkpoint)).class_names(count)


def known_classes(request: BuildRequest) -> tuple[list[str] | None, int | None]:
    """Return names and number of a model's classes, each None where it cannot be told yet: nothing is fetched for it.

    Raises:
        InputError: as `class_names`.
    """
    count = _count(request)
    names = class_names(request, count)
    return names, len(names) if count is None and names is not None else count


def published_classes(request: BuildRequest) -> tuple[list[str] | None, int | None]:
    """Return the same of a request whose weights are yet to be fetched, as the config.json of their repository has it."""
    config = open_published(request.checkpoint).config
    count = _agreed(config.num_classes, request.num_classes)
    if request.labels:
        names = _named(request, count)
        return names, len(names)
    return config.class_names(count) if count else None, count


def _named(request: BuildRequest, count: int | None) -> list[str]:
    from sit_deploy.data.class_names import read_class_names  # and NumPy, which not everybody needs

    return read_class_names(request.labels, count)


def _count(request: BuildRequest) -> int | None:
    if request.checkpoint is None:
        if request.pretrained or is_place(request.model):
            return request.num_classes
        config = (
            our_config(request.model) if request.model else None
        )  # timm's are known to timm, and so to PyTorch
        return request.num_classes or (config.num_classes if config else None)
    if is_place(request.checkpoint):
        return request.num_classes
    return _agreed(_outputs_of_weights(request), request.num_classes)


def _agreed(own: int | None, asked: int | None) -> int | None:
    """Return the number of classes of weights and options; None where these contradict, which whoever loads the weights tells."""
    if own == 1:  # two of one output, if that is asked for
        return asked if asked == 2 else None
    return own if asked in (None, own) else asked if own is None else None


def _outputs_of_weights(request: BuildRequest) -> int | None:
    if card := request.card:
        return card.num_classes
    if request.checkpoint_key:
        return None
    try:
        return head_outputs(find_file(request.checkpoint))
    except InputError:  # whoever reads the weights will say what is wrong
        return None

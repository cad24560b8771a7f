"""The models of a run with the weights they start from, and proof that teacher and student fit each other."""

from __future__ import annotations

from dataclasses import dataclass, replace
from itertools import zip_longest
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from sit_deploy.data.datasets import Data
from sit_deploy.errors import InputError
from sit_deploy.models import ModelConfig, create_model, get_config
from sit_deploy.models.beside import check_beside
from sit_deploy.models.card import ModelCard
from sit_deploy.models.card_file import read_card
from sit_deploy.models.data_config import Choice, DataConfig, Source, choose, from_card, from_name
from sit_deploy.models.hub import place_of
from sit_deploy.models.load import LoadedModel, fit_partly, load_model
from sit_deploy.models.trainer_config import from_checkpoint
from sit_deploy.preprocessing import Preprocessing
from training.cnn_teacher import CnnTeacher, load_cnn_teacher
from training.image_size import InheritedSize
from training.init_weights import initialise
from training.recipes import Recipe
from training.request import TrainRequest
from training.seeding import seed_all
from training.start_checkpoints import StartCheckpoints

# what a trained model's checkpoint need not have
UNDEPLOYED = ("rtsm.", "aux_head.")
# and that of an unslimmed model, or of one with other classes
NEW_PARTS = (*UNDEPLOYED, "tsm.", "head.", "head_dist.", "dist_token", "dist_pos_embed")


@dataclass(frozen=True)
class Models:
    """What a run trains, and its teachers.

    Attributes:
        model: what is trained.
        teacher: frozen, or None.
        cnn: likewise.
        cnn_normalisation: see `FRDTask`.
        start: where the weights come from, in words.
        notes: what should be known of size and preprocessing, a sentence each.
    """

    config: ModelConfig
    model: nn.Module
    choice: Choice
    start: str
    teacher: nn.Module | None = None
    teacher_config: ModelConfig | None = None
    cnn: nn.Module | None = None
    cnn_normalisation: tuple[Tensor, Tensor] | None = None
    notes: tuple[str, ...] = ()

    @property
    def preprocessing(self) -> Preprocessing:
        """Of evaluation, and with its mean, std and orientation of training."""
        return self.choice.preprocessing


def _known(checkpoint: Path | None) -> list[DataConfig]:
    """Return what a checkpoint says of its preprocessing: its model card, or else its own trainer."""
    if checkpoint is None:
        return []
    card = read_card(checkpoint)
    return [from_card(card)] if card else from_checkpoint(checkpoint)


def _of_values(config: DataConfig) -> DataConfig:
    """Return what is said of the values that weights expect; how much is looked at, and whether turned, is learnt anew."""
    return replace(
        config, crop_mode=None, crop_offset=None, crop_pct=None, orientation=None, like=None, side=None
    )


def make_models(request: TrainRequest, recipe: Recipe, data: Data) -> Models:
    """Make what is trained, and its teachers.

    Raises:
        InputError: a checkpoint that cannot be read or is of another model, a teacher that does not fit: what and why.
    """
    config = get_config(request.model, request.stages, request.keeping_ratio, request.kept)
    if request.teacher and len(config.stage_blocks) == 1:
        raise InputError(
            f"{config.name} slims nothing, so it has nothing to recover; leave --teacher out, or pass --stages"
        )
    checkpoints = StartCheckpoints(request, config)
    inherited = InheritedSize.of(request, checkpoints)
    size = inherited.size
    config = config.at(size)
    by_recipe = DataConfig(Source.RECIPE, crop_pct=recipe.crop_pct or None)
    if request.qat and inherited.card:  # a model that is trained keeps what it was trained with
        _check_classes("model", request.init, inherited.card, data)
        configs = [from_card(inherited.card)]
    elif request.teacher and inherited.card:  # a student is taught about what its teacher sees
        configs = [from_card(inherited.card), by_recipe]
    else:
        configs = [by_recipe, *map(_of_values, _known(request.teacher or request.init))]
    named = replace(
        from_name(config), crop_mode=None
    )  # how pictures become squares is the training's own, too
    choice = choose(size, [request.preprocessing, *configs], named, "exif")
    preprocessing = choice.preprocessing
    options: dict[str, Any] = {
        "img_size": size,
        "num_classes": data.num_classes,
        "drop_path_rate": recipe.drop_path,
        "reverse_tsm": request.teacher is not None and recipe.token_weight > 0,
    }
    if request.cnn_teacher or _trained_dist_token(request, checkpoints):
        options["dist_token"] = True
    seed_all(request.seed)
    model = create_model(config, **options)
    if request.teacher is None:
        if request.init is None:
            initialise(model, request.seed)
            return Models(config, model, choice, "scratch")
        return Models(config, model, choice, _load_start(model, request, checkpoints), notes=inherited.notes)

    loaded, seen = _load_teacher(request, config, size, data.num_classes)
    _check_teacher(loaded.model, model, request, config, data)
    if (seen.mean, seen.std) != (preprocessing.mean, preprocessing.std):
        raise InputError(
            f"teacher {request.teacher} sees images of mean {seen.mean} and std {seen.std}, {config.name} of "
            f"{preprocessing.mean} and {preprocessing.std}, and both see the same images; take a student that is made of "
            f"{loaded.name}, or pass the teacher's --mean and --std"
        )
    teacher_config = loaded.config
    start = _load_start(model, request, checkpoints)
    notes = inherited.notes
    cnn = normalisation = None
    if request.cnn_teacher:
        extra = _cnn_teacher(request, preprocessing, data)
        cnn, normalisation, notes = extra.model, extra.normalisation, (*notes, *extra.notes)
    return Models(config, model, choice, start, loaded.model, teacher_config, cnn, normalisation, notes)


def _trained_dist_token(request: TrainRequest, checkpoints: StartCheckpoints) -> bool:
    """Return whether --qat goes on with a model that has a dist token, which is part of what is deployed."""
    return request.qat and "dist_token" in checkpoints.read(request.init).state


def _load_start(model: nn.Module, request: TrainRequest, checkpoints: StartCheckpoints) -> str:
    """Load all that fits, and say what it is: only the head and what slimming adds may be new; with --qat, nothing."""
    path = request.init or request.teacher
    config, read = checkpoints.config, checkpoints.read(path)
    missing, left_out = fit_partly(read.state, model, read.antialias)
    told: list[str] = []
    if request.init:
        try:
            told = check_beside(read, model, config, "--model")
        except InputError as error:  # a model that is trained may be another than its weights were of
            told = [f"it starts as another model than its weights were of: {error}"]
    new = [k for k in missing if not k.startswith(UNDEPLOYED)]
    if request.qat and new:
        remedy = "train one without --qat, then pass it with --init"
        card, ours = read_card(path), (config.stage_blocks, model.kept[1:])
        if card and card.name == config.name and (card.stages, card.tokens[1:]) != ours:
            remedy = f"pass what it slims with: {_slimming_options(card)}"
        raise InputError(
            f"--qat starts from a trained {config.name}, and {path} lacks or does not fit {len(new)} of its weights "
            f"({_some(new)}); {remedy}"
        )
    lacking = [k for k in missing if not k.startswith(NEW_PARTS)]
    # a deeper model's first blocks are no model; whatever else is too much, the model can do without
    lacking += [k for k in left_out if k.startswith("blocks.") and k not in lacking]
    if lacking:
        raise InputError(
            f"checkpoint {path} does not fit {config.name}: {len(lacking)} weights are missing, without a place or of another shape "
            f"({_some(lacking)}); give one of the same width and depth"
        )
    new_head = any(k.startswith("head.") for k in (*missing, *left_out))
    origin = "" if request.init else "the teacher's weights, "
    unused = [k for k in left_out if not k.startswith(NEW_PARTS)]
    if request.init and "dist_token" in left_out:
        unused.append("its dist token and the head of it, which --cnn-teacher would train on")
    if any(k.startswith("tsm.") and k in read.state for k in missing):
        unused.append("the last layers of its TSMs, which give other counts of tokens")
    notes = [*read.notes, *told, *([f"left out what the model has not: {_some(unused)}"] if unused else [])]
    return "; ".join((f"{origin}{place_of(path)}{', with a new head' if new_head else ''}", *notes))


def _slimming_options(card: ModelCard) -> str:
    """Return the options that make a model of a card's stages and tokens."""
    stages = f"--stages {','.join(map(str, card.stages))}"
    if card.kept:
        return f"{stages} --kept {','.join(map(str, card.kept))}"
    return f"{stages} --keeping-ratio {card.keeping_ratio:g}"


def _some(names: list[str]) -> str:
    return f"{', '.join(names[:3])}{', ...' if len(names) > 3 else ''}"


def _load_teacher(
    request: TrainRequest, config: ModelConfig, size: int, classes: int
) -> tuple[LoadedModel, Preprocessing]:
    """Return the teacher, and the preprocessing that it was trained with."""
    key: dict[str, Any] = {
        "checkpoint_key": request.checkpoint_key,
        "key_is_shared": request.key_is_shared,
        "binary": classes == 2,
        "model_option": None,
    }
    card = read_card(request.teacher)
    if card:
        loaded = load_model(
            card.name, request.teacher, size, stages=card.stages, keeping_ratio=card.keeping_ratio, **key
        )
    else:  # an LV-ViT armed by --stages has its own name as its teacher's
        loaded = load_model(config.teacher or config.name, request.teacher, size, **key)
    configs = [*_known(request.teacher), request.preprocessing]
    return loaded, choose(size, configs, from_name(loaded.config), "exif").preprocessing


def _check_teacher(
    teacher: nn.Module, student: nn.Module, request: TrainRequest, config: ModelConfig, data: Data
) -> None:
    path, unslimmed = request.teacher, config.teacher or config.name
    if teacher.slim_after:
        raise InputError(f"teacher {path} is slimmed itself; give the unslimmed {unslimmed}")
    facts = (
        ("width", teacher.embed_dim, student.embed_dim),
        ("depth", teacher.depth, student.depth),
        ("patch tokens", teacher.kept[0], student.kept[0]),
    )
    if differing := [f"{what} {theirs}, not {ours}" for what, theirs, ours in facts if theirs != ours]:
        raise InputError(
            f"teacher {path} does not fit {config.name}: it has {'; '.join(differing)}; give a checkpoint of "
            f"{unslimmed}"
        )
    if teacher.num_classes != data.num_classes:
        raise InputError(
            f"teacher {path} has {teacher.num_classes} classes and {data.name} has {data.num_classes}; first train it on "
            f"these: sit-deploy train --model {unslimmed} --init {path} --data {request.data}"
        )
    if card := read_card(path):
        _check_classes("teacher", path, card, data)


def _check_classes(role: str, path: Path, card: ModelCard, data: Data) -> None:
    if card.classes and data.classes and list(card.classes) != data.classes:
        pairs = zip_longest(card.classes, data.classes)
        wrong = next(i for i, pair in enumerate(pairs) if pair[0] != pair[1])
        theirs, here = (f"'{c[wrong]}'" if wrong < len(c) else "none" for c in (card.classes, data.classes))
        raise InputError(
            f"{role} {path} was trained on other classes: its class {wrong} is {theirs}, here it is {here}; "
            "use the data set of its training"
        )


def _cnn_teacher(request: TrainRequest, preprocessing: Preprocessing, data: Data) -> CnnTeacher:
    path = request.cnn_checkpoint
    if card := read_card(path):
        _check_classes("extra teacher", path, card, data)
    name = str(request.cnn_teacher)
    return load_cnn_teacher(name, path, data.num_classes, preprocessing, _known(path))

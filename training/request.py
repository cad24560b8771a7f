"""What to train: the options of `sit-deploy train` as data."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from engines.base import Progress
from engines.install import pip_install
from sit_deploy import limits
from sit_deploy.data.source import DataSource
from sit_deploy.errors import InputError, nearest
from sit_deploy.models.card_file import read_card
from sit_deploy.models.hub import local_file, pinned, resolve
from sit_deploy.schema import convert_fields
from sit_deploy.text import file_name, require_utf8
from training.recipes import Recipe, recipe_for

if TYPE_CHECKING:
    from sit_deploy.models.card import ModelCard
    from sit_deploy.models.data_config import DataConfig

AMP = ("auto", "off", "bf16", "fp16")
# layers that INT8 graphs keep high by default (`calibration.plan`), and QAT in float
KEPT_HIGH = ("stem/*", "head")
_LARGEST = {
    "num_classes": limits.CLASSES,
    "image_size": limits.PIXELS,
    "qat_images": limits.STREAMED,
    "accumulate": limits.BATCH,
    "seed": limits.SEED,
    "workers": limits.PROCESSES,
    "max_damaged": limits.IMAGES,
    "save_every": limits.STEPS,
    "log_every": limits.STEPS,
}


@dataclass(frozen=True)
class TrainRequest:
    """What to train; the fields are the options of `sit-deploy train`.

    Attributes:
        model: ours or timm's, or a repository or folder with its weights (`sit_deploy.models.hub`).
        output: None for runs/MODEL.
        pretrained: start from timm's own weights of the model.
        teacher: checkpoint of the unslimmed model; without one, plain cross-entropy.
        init: checkpoint to start from, its head replaced where the classes are others; a student starts from its teacher by
            default.
        checkpoint_key: where the weights are, in whichever of the two has several (`read_checkpoint`).
        overrides: fields of the recipe (`training.recipes.Recipe`) that the user set, by name.
        accumulate: passes a step.
        grad_checkpointing: keep no activations within blocks and compute them again; None: as the model was published.
        warm_start: fit a student's TSMs before its first step (`training.warm_start`).
        qat: quantization-aware, from the trained model in `init`, calibrated on qat_images.
        qat_skip: patterns of names of layers that stay in float.
        mean, std, crop_mode, interpolation, orientation: of the preprocessing, in place of what else says it
            (`sit_deploy.models.data_config`), with `crop_pct` of the recipe.
    """

    model: str
    data: str
    output: Path | None = None
    stages: tuple[int, ...] | None = None
    keeping_ratio: float | None = None
    kept: tuple[int, ...] | None = None
    teacher: Path | None = None
    init: Path | None = None
    cnn_teacher: str | None = None
    cnn_checkpoint: Path | None = None
    data_dir: Path | None = None
    train_split: str | None = None
    val_split: str | None = None
    image_key: str | None = None
    label_key: str | None = None
    num_classes: int | None = None
    image_size: int | None = None
    mean: tuple[float, float, float] | None = None
    std: tuple[float, float, float] | None = None
    crop_mode: str | None = None
    interpolation: str | None = None
    orientation: str | None = None
    warm_start: bool = True
    qat: bool = False
    qat_images: int = 256
    qat_skip: tuple[str, ...] = KEPT_HIGH
    overrides: tuple[tuple[str, Any], ...] | Mapping[str, Any] = ()
    accumulate: int = 1
    seed: int = 0
    device: str = "auto"
    amp: str = "auto"
    sync_batchnorm: bool = False
    channels_last: bool = False
    grad_checkpointing: bool | None = None
    compile: bool = False
    workers: int | None = None
    max_damaged: int = 100
    save_every: int = 1000
    log_every: int = 10
    tensorboard: bool = False
    resume: bool = False
    checkpoint_key: str | None = None
    pretrained: bool = False

    def __post_init__(self) -> None:
        if isinstance(self.overrides, Mapping):
            object.__setattr__(self, "overrides", tuple(self.overrides.items()))
        convert_fields(self)

    @staticmethod
    def of_unknown(name: str) -> str:
        """Return what to do about a field that there is not: a value of the recipe has its place."""
        if name not in Recipe.__dataclass_fields__:
            return ""
        return f", which is a value of the recipe; pass overrides={{{name!r}: VALUE}}"

    def named(self) -> TrainRequest:
        """Return the request with its model's name and its output; of repositories, only config.json is fetched.

        A model that was said with its weights starts from them, unless --init says others, or they are its teacher's, which it starts
        from anyway.

        Raises:
            InputError: as `sit_deploy.models.hub.resolve`.
        """
        teacher = pinned(self.teacher)
        start = resolve(self.model, self.init, self.pretrained, "--init")
        init = None if start.weights == teacher and self.init is None else start.weights
        if start.model is None:  # what a model card in the weights has to say
            card = read_card(local_file(start.weights))
            if card is None:
                raise InputError(
                    f"{self.model} has no config.json and no model card that names its model; pass its name with --model, and "
                    f"--init {self.model}"
                )
            return replace(self, init=init, **self._slimming(card)).named()
        output = Path("runs") / file_name(str(start.model)) if self.output is None else self.output
        return replace(self, model=start.model, init=init, teacher=teacher, pretrained=False, output=output)

    def _slimming(self, card: ModelCard) -> dict[str, Any]:
        """Return model, stages and tokens as a model card has them, where the request does not say otherwise."""
        from sit_deploy.models import get_config

        stages = card.stages if self.stages is None else self.stages
        ratio, kept = self.keeping_ratio, self.kept
        if ratio is None and kept is None and len(card.stages) > 1:
            ratio = card.keeping_ratio
            if card.kept and self.stages is None:
                theirs = get_config(card.name, stages, kept=card.kept)
                kept = theirs.kept_at(self.image_size or card.image_size)
        return {"model": card.name, "stages": stages, "keeping_ratio": ratio, "kept": kept}

    def fetched(self, progress: Progress | None = None) -> TrainRequest:
        """Return the request with files in place of repositories and of timm's spelling of folders.

        Args:
            progress: see `sit_deploy.models.hub_client.fetch`.

        Raises:
            InputError: as `sit_deploy.models.hub.local_file`.
        """
        files = {
            name: local_file(getattr(self, name), progress) for name in ("teacher", "init", "cnn_checkpoint")
        }
        return replace(self, **files)

    @property
    def source(self) -> DataSource:
        """The data set."""
        return DataSource(
            self.data,
            self.data_dir,
            self.train_split,
            self.val_split,
            self.num_classes,
            self.seed,
            self.image_key,
            self.label_key,
        )

    @property
    def recipe(self) -> Recipe:
        """The recipe of this run, the user's own values in it."""
        from sit_deploy.models import get_config

        name = get_config(self.model, self.stages, self.keeping_ratio, self.kept).name
        base = recipe_for(
            name,
            distils=self.teacher is not None,
            from_checkpoint=self.init is not None,
            data=self.data,
            qat=self.qat,
        )
        unknown = [k for k, _ in self.overrides if k not in asdict(base)]
        if unknown:
            raise InputError(f"a recipe has no '{unknown[0]}'{nearest(unknown[0], tuple(asdict(base)))}")
        return base.with_values(dict(self.overrides))

    @property
    def checkpoints_gradients(self) -> bool:
        """Whether blocks keep no activations: where nothing is said, of SiT-L alone, as in the official code."""
        from sit_deploy.models import get_config

        if self.grad_checkpointing is None:
            return get_config(self.model, self.stages, self.keeping_ratio, self.kept).name == "sit_l"
        return self.grad_checkpointing

    @property
    def key_is_shared(self) -> bool:
        """Whether `checkpoint_key` may be of either of two files."""
        return bool(self.init and self.teacher)

    @property
    def preprocessing(self) -> DataConfig:
        """What the options say of the preprocessing.

        Raises:
            InputError: a value out of range.
        """
        from sit_deploy.models.data_config import DataConfig, Source

        crop = dict(self.overrides).get("crop_pct") or None
        values = (self.mean, self.std, self.crop_mode, crop, self.interpolation, self.orientation)
        return DataConfig(Source.OPTIONS, *values).check()

    @property
    def _turns(self) -> str | None:
        """How pictures are turned; None for "stored", as in the states of runs before there was a choice.

        None too for --qat, which goes on with what its model was trained with.
        """
        default = None if self.qat else "exif"
        return None if self.orientation == "stored" else self.orientation or default

    def check(self) -> None:
        """Refuse what can be refused at once.

        Raises:
            InputError: an option that is unknown, out of range, or in need of another.
        """
        limits.check_numbers(self, _LARGEST)
        require_utf8(**vars(self))
        for package, needed in (("matplotlib", True), ("tensorboard", self.tensorboard)):
            if needed and find_spec(package) is None:
                what = "--tensorboard" if package == "tensorboard" else "the picture of a run's curves"
                raise InputError(f"{what} needs the package {package}; run {pip_install(package)}")
        self.recipe.check()
        _ = self.preprocessing  # raises for values out of range
        if self.amp not in AMP:
            raise InputError(f"--amp '{self.amp}' is not offered; choose from {', '.join(AMP)}")
        for name, least in (
            ("accumulate", 1),
            ("save_every", 1),
            ("log_every", 1),
            ("max_damaged", 0),
            ("seed", 0),
            ("workers", 0),
            ("qat_images", 1),
        ):
            if (getattr(self, name) or 0) < least:
                raise InputError(
                    f"--{name.replace('_', '-')} must be at least {least}, got {getattr(self, name)}"
                )
        if self.cnn_teacher and not self.teacher:
            raise InputError("--cnn-teacher is an extra teacher; pass the first one with --teacher")
        if bool(self.cnn_teacher) != bool(self.cnn_checkpoint):
            raise InputError("--cnn-teacher and --cnn-checkpoint go together; pass both or neither")
        if self.qat and not self.init:
            raise InputError("--qat starts from a trained model; pass its weights with --init")

    def check_data(self) -> None:
        """Refuse data that cannot be, as far as can be told without PyTorch.

        Raises:
            InputError: as `sit_deploy.data.datasets.check_data`.
        """
        from sit_deploy.data.datasets import check_data

        check_data(self.source)

    def identity(self, total_batch: int) -> dict[str, Any]:
        """Return what must be the same for a run to be resumed, as JSON values.

        Where and how fast it computes may differ, and in how many parts a step is taken; what it computes may not. Files
        go by their content.
        """
        from sit_deploy.files import sha256
        from sit_deploy.models.file_kind import find_file

        files = {
            name: sha256(find_file(path)) if path else None
            for name, path in (
                ("teacher", self.teacher),
                ("init", self.init),
                ("cnn_checkpoint", self.cnn_checkpoint),
            )
        }
        same = (
            "model",
            "keeping_ratio",
            "cnn_teacher",
            "data",
            "train_split",
            "val_split",
            "num_classes",
            "image_size",
            "seed",
            "amp",
            "sync_batchnorm",
        )
        return {
            **{name: getattr(self, name) for name in same},
            "stages": list(self.stages) if self.stages else None,
            **{name: getattr(self, name) for name in ("image_key", "label_key") if getattr(self, name)},
            **{name: value and list(value) for name, value in (("mean", self.mean), ("std", self.std))},
            "interpolation": self.interpolation,
            "orientation": self._turns,
            # left out where it was not given, as in runs of before there was such an option
            **({"crop_mode": self.crop_mode} if self.crop_mode else {}),
            **({"kept": list(self.kept)} if self.kept else {}),
            **files,
            # left out where it is on: a run of an older version, without one, goes on as it was begun
            **({} if self.warm_start or not self.teacher else {"warm_start": False}),
            **({"checkpoint_key": self.checkpoint_key} if self.checkpoint_key else {}),
            **({"qat_images": self.qat_images, "qat_skip": list(self.qat_skip)} if self.qat else {}),
            **self._recipe_identity(),
            "total_batch": total_batch,
        }

    def _recipe_identity(self) -> dict[str, Any]:
        """Return the recipe's part of `identity`; what older versions had not is left out where it is off."""
        values = asdict(self.recipe)
        del values["batch_size"]
        if not values["hard_label_weight"]:
            del values["hard_label_weight"]
        if self.teacher and not values["token_weight"]:
            values["reverse_tsm"] = False  # older versions made them for nothing, and their states have them
        return values

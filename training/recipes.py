"""Training recipes as data: the paper's for its models, and one of our own for the nano pair.

Sources: "Self-slimmed Vision Transformer" (arXiv 2111.12624), appendix, and its published training scripts for the
students; "Training data-efficient image transformers" (DeiT, arXiv 2012.12877), whose recipe both papers build on, for
teachers trained by cross-entropy alone.
"""

from __future__ import annotations

from dataclasses import dataclass, field, fields, replace
from numbers import Number
from typing import Any

from sit_deploy.errors import InputError


def _option(default: Any, text: str) -> Any:
    return field(default=default, metadata={"help": text})


@dataclass(frozen=True)
class Recipe:
    """Every hyper-parameter that a user may want to change; each is an option of `sit-deploy train`.

    Learning rates are those of a total batch of 512 images and scale linearly with it; see `training.optimizer.rates_of`.
    """

    epochs: int = _option(125, "Epochs over which the learning rate falls.")
    cooldown_epochs: int = _option(10, "Epochs more, at the smallest learning rate.")
    warmup_epochs: int = _option(0, "First epochs, over which the learning rate rises.")
    batch_size: int = _option(128, "Images a process and pass.")
    lr: float = _option(2e-4, "Learning rate at a total batch of 512; scaled linearly.")
    min_lr: float = _option(1e-5, "Learning rate at the end; scaled below 512 images alone.")
    lr_per_step: bool = _option(False, "Set the learning rate every step, not every epoch.")
    rtsm_lr_scale: float = _option(5.0, "Factor of the learning rate of the reverse TSMs.")
    weight_decay: float = _option(0.05, "Weight decay of AdamW; none on biases, norms and tokens.")
    clip_grad: float = _option(0.0, "Largest norm of the gradient; 0: any.")
    ema_decay: float = _option(0.0, "Decay of the averaged weights, which are then evaluated; 0: none.")
    drop_path: float = _option(0.1, "Rate of dropped residual branches in the last block.")
    token_weight: float = _option(2.0, "Weight of the token loss of FRD; 0: none, nor reverse TSMs.")
    logits_weight: float = _option(2.0, "Weight of the logits loss of FRD.")
    temperature: float = _option(1.0, "Temperature of the logits loss.")
    hard_label_weight: float = _option(
        0.0, "Weight of the class head's loss on the teacher's class (hard-label distillation); 0: none."
    )
    smoothing: float = _option(0.1, "Label smoothing.")
    mixup: float = _option(0.8, "Mixup alpha; 0: off.")
    cutmix: float = _option(1.0, "CutMix alpha; 0: off.")
    auto_augment: str = _option("rand-m9-mstd0.5-inc1", "timm's name of an augmentation policy; empty: none.")
    color_jitter: float = _option(0.4, "Colour jitter where there is no policy; 0: none.")
    erasing: float = _option(0.25, "Share of images with a random rectangle erased.")
    repeats: int = _option(3, "Views of an image in a batch (repeated augmentation); 1: off.")
    flip: float = _option(0.5, "Share of images mirrored.")
    min_scale: float = _option(0.08, "Smallest share of the picture that a random crop keeps.")
    min_ratio: float = _option(0.75, "Smallest aspect ratio of a random crop; the largest is its inverse.")
    rotation: float = _option(
        0.0, "Largest random rotation in degrees, for pictures where it keeps the class."
    )
    crop_pct: float = _option(
        0.0, "Share of the resized picture that evaluation looks at; 0: the model's own."
    )

    def check(self) -> None:
        """Refuse values that no training can have.

        Raises:
            InputError: names the option, its value and its range.
        """
        least = {"epochs": 1, "batch_size": 1, "repeats": 1}
        for entry in fields(self):
            name, value = entry.name, getattr(self, entry.name)
            _check_type(name, str(entry.type), value)
            if isinstance(value, (str, bool)):
                continue
            low, high = least.get(name, 0), 1 if name in _SHARES else float("inf")
            if not low <= value <= high or (high == 1 and value == 1) or value == float("inf"):
                span = f"from {low} to below 1" if high == 1 else f"at least {low}"
                raise InputError(f"{option_name(name)} must be {span}, got {shown(value)}")
            if value > _MOST.get(name, value):
                raise InputError(f"{option_name(name)} must be at most {_MOST[name]}, got {shown(value)}")
        for name, most in (("lr", 1000), ("temperature", None), ("min_scale", 1), ("min_ratio", 1)):
            value = getattr(self, name)
            if not value > 0 or (most and value > most):
                limit = f" and at most {most}" if most else ""
                raise InputError(f"{option_name(name)} must be above 0{limit}, got {shown(value)}")
        if self.crop_pct > 1:
            raise InputError(f"--crop-pct must be at most 1, got {self.crop_pct:g}")
        if self.min_lr > self.lr:
            raise InputError(
                f"--min-lr {self.min_lr:g}, where the learning rate ends, is above --lr {self.lr:g}, where it starts; "
                "pass a smaller one"
            )
        if self.warmup_epochs and self.warmup_epochs >= self.epochs:
            raise InputError(
                f"--warmup-epochs {self.warmup_epochs} leaves none of the {self.epochs} epochs; pass fewer"
            )
        if (self.mixup or self.cutmix) and self.batch_size % 2:
            raise InputError(
                f"--batch-size {self.batch_size} is odd, and mixup takes images in pairs; pass an even one, or "
                "--mixup 0 --cutmix 0"
            )

    def with_values(self, values: dict[str, Any]) -> Recipe:
        """Return the recipe with a user's own values, and with what they leave no room for drawn after them.

        A learning rate below the end of the cosine takes the end along, in the recipe's proportion; epochs that are no more
        than the warm-up leave a fifth of them for it.
        """
        recipe = replace(self, **{name: _plain(value) for name, value in values.items()})
        if "min_lr" not in values and isinstance(recipe.lr, int | float) and 0 < recipe.lr < self.min_lr:
            recipe = replace(recipe, min_lr=recipe.lr * self.min_lr / self.lr)
        if (
            "warmup_epochs" not in values
            and isinstance(recipe.epochs, int)
            and 0 < recipe.epochs <= self.warmup_epochs
        ):
            recipe = replace(recipe, warmup_epochs=recipe.epochs // 5)
        return recipe


_SHARES = ("drop_path", "smoothing", "erasing", "flip", "ema_decay")
# beyond what any training takes, and within what can be counted and held
_MOST = {"epochs": 10**6, "cooldown_epochs": 10**6, "batch_size": 10**6, "repeats": 1000}
_TYPES = {"int": (int, "a whole number"), "float": (int | float, "a number"), "str": (str, "a text"), "bool": (bool, "true or false")}  # fmt: skip


def _plain(value: Any) -> Any:
    """Return a number of NumPy as Python's."""
    return value.item() if isinstance(value, Number) and hasattr(value, "item") else value


def _check_type(name: str, kind: str, value: Any) -> None:
    wanted, words = _TYPES[kind]
    if not isinstance(value, wanted) or (isinstance(value, bool) and kind != "bool"):
        raise InputError(f"{option_name(name)} must be {words}, got {value!r:.60}")


def shown(value: int | float) -> str:
    """Return a number for a message, however many digits it has."""
    try:
        return f"{value:g}" if abs(value) < 1e6 or isinstance(value, float) else f"{value:.4g}"
    except OverflowError:
        return "a number beyond all use"


def option_name(field_name: str) -> str:
    """Return the command line option of a recipe's field."""
    return "--" + field_name.replace("_", "-")


_STUDENT = Recipe()
# DeiT's, by which a teacher learns from labels alone; LV-ViT's own adds token labels, which need its label maps
_TEACHER = Recipe(epochs=300, warmup_epochs=5, lr=5e-4)
# From a pretrained teacher, for another set of classes.
_FINE_TUNE = replace(_TEACHER, epochs=30, cooldown_epochs=0, lr=1e-4)

STUDENTS: dict[str, Recipe] = {
    "sit_t": replace(_STUDENT, drop_path=0.0),
    "sit_xs": _STUDENT,
    "sit_s": _STUDENT,
    "sit_m": _STUDENT,
    "sit_l": replace(_STUDENT, drop_path=0.3, auto_augment="rand-n3-m9-mstd0.5-inc1"),
}


def default_text(name: str) -> str:
    """Return the default of a recipe's field for help: the students', and what differs from it, by model and data."""
    models = [(model, recipe, _STUDENT) for model, recipe in STUDENTS.items()]
    others = [
        *models,
        ("teachers", _TEACHER, _STUDENT),
        ("teachers with --init", _FINE_TUNE, _TEACHER),
        ("digits", DIGITS_TEACHER, _STUDENT),
        ("digits' students", DIGITS_STUDENT, DIGITS_TEACHER),
    ]
    values = [(whose, getattr(recipe, name), getattr(like, name)) for whose, recipe, like in others]
    differing = [f"{whose} {_short(value)}" for whose, value, like in values if value != like]
    return "; ".join((_short(getattr(_STUDENT, name)), *differing))


def _short(value: Any) -> str:
    if isinstance(value, bool):
        return "on" if value else "off"
    return (value or "none") if isinstance(value, str) else f"{value:g}"


def recipe_for(model: str, *, distils: bool, from_checkpoint: bool, data: str, qat: bool = False) -> Recipe:
    """Return the recipe of a run, before the user's own values.

    Args:
        model: a canonical model name; students without a recipe of their own take that of sit_s.
        distils: whether there is a teacher.
        from_checkpoint: whether the weights start from a checkpoint.
        data: what is trained on; the built-in digits have recipes of their own.
        qat: whether a trained model gets used to INT8's rounding, which takes little.
    """
    if qat:
        return _recover(recipe_for(model, distils=distils, from_checkpoint=from_checkpoint, data=data))
    if data == "digits":
        return DIGITS_STUDENT if distils else DIGITS_TEACHER
    if distils:
        return STUDENTS.get(model, _STUDENT)
    return _FINE_TUNE if from_checkpoint else _TEACHER


def _recover(recipe: Recipe) -> Recipe:
    """Return the recipe by which a model that `recipe` trained recovers under rounding: a tenth of its learning rate, short."""
    lr = recipe.lr / 10
    return replace(
        recipe,
        epochs=max(2, recipe.epochs // 20),
        cooldown_epochs=0,
        warmup_epochs=0,
        lr=lr,
        min_lr=lr / 100,
        lr_per_step=True,
        clip_grad=1.0,
        drop_path=0.0,
    )


# For 8x8 pictures of digits, some 1400 of them, enlarged; a mirrored or cropped digit is another one or none.
DIGITS_TEACHER = Recipe(
    epochs=12,
    cooldown_epochs=0,
    warmup_epochs=1,
    batch_size=32,
    lr=1.6e-2,
    min_lr=1.6e-4,
    lr_per_step=True,
    clip_grad=1.0,
    drop_path=0.0,
    mixup=0.0,
    cutmix=0.0,
    auto_augment="",
    color_jitter=0.0,
    erasing=0.0,
    smoothing=0.0,
    repeats=1,
    flip=0.0,
    min_scale=0.7,
    min_ratio=0.85,
    rotation=12.0,
    crop_pct=1.0,
)
DIGITS_STUDENT = replace(DIGITS_TEACHER, epochs=8, warmup_epochs=0, lr=8e-3)

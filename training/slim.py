"""Slimming a trained model in minutes and without labels: its TSMs are fitted to what it computes without them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from sit_deploy.calls import takes_options
from sit_deploy.data.damaged import DamagedImage, left_out_words
from sit_deploy.data.image_files import find_images
from sit_deploy.data.samples import describe
from sit_deploy.errors import InputError
from sit_deploy.models import ModelConfig, create_model, read_checkpoint
from sit_deploy.models.card import ModelCard
from sit_deploy.models.card_file import save_weights
from sit_deploy.models.data_config import Choice
from sit_deploy.models.hub import place_of
from sit_deploy.models.load import fit_partly
from sit_deploy.pipeline.float_graph import load_request
from sit_deploy.pipeline.work import Work
from sit_deploy.preprocessing import Preprocessing, load_image
from sit_deploy.processes import World, join_world
from sit_deploy.text import shown, utf8_text
from training.best_weights import weights_of
from training.loaders import HeldOut
from training.metrics import evaluate
from training.preflight import check_card, warn_of_threads
from training.reporter import Reporter, Silent
from training.sample_reader import SampleReader
from training.seeding import FIT, permutation, seed_all
from training.slim_features import FrozenFeatures, mean_logits, unslimmed
from training.slim_fit import Fit, fit_tsms
from training.slim_options import BATCH_SIZE, VIEWS, FitOptions, held_out
from training.slim_request import SlimRequest
from training.terminal_reporter import TerminalReporter

_FEW_HELD_OUT = 8  # that say nothing
_FEW_STEPS = 10  # that fit nothing


class Pictures(Sequence):
    """Samples whose files are decoded when they are asked for: (Pillow image, label); the label is 0 where there is none."""

    def __init__(self, samples: Sequence[tuple[Any, int]]) -> None:
        self.samples = samples

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, index: Any) -> Any:
        image, label = self.samples[index]
        return load_image(image) if isinstance(image, Path) else image, label

    def describe(self, index: int) -> str:
        return describe(self.samples, index)


@dataclass(frozen=True)
class Agreement:
    """How a slimmed model compares with itself unslimmed.

    Attributes:
        same: images of the same class, in percent.
        kl: KL divergence of its probabilities from the unslimmed model's, in nats.
        classes: that the unslimmed model puts the images into. Where that is one, any model agrees with it that always says the same.
    """

    same: float
    kl: float
    classes: int = 0


@dataclass(frozen=True)
class Slimmed:
    """What slimming gave.

    Attributes:
        weights: the file.
        name, tokens: of the slimmed model.
        images: that were fitted on.
        held_out: images that agreement was measured on.
        damaged_images: of both, those that could not be read and are in neither.
        start, end: agreement before and after.
        labelled: images of --val-data, 0 without; teacher_top1 and top1 are of them, in percent.
    """

    weights: Path
    name: str
    tokens: tuple[int, ...]
    images: int
    held_out: int
    damaged_images: int
    fit: Fit
    start: Agreement
    end: Agreement
    labelled: int = 0
    teacher_top1: float | None = None
    top1: float | None = None

    @property
    def doubt(self) -> str | None:
        """Why the agreement says nothing, as a sentence without capital and full stop; None where it does."""
        if self.held_out < _FEW_HELD_OUT:
            few = f"{self.held_out} image{'s' * (self.held_out > 1)}"
            return f"agreement is that of {few} kept apart, from which nothing can be told; add images to --images"
        if self.start.classes > 1:
            return None
        return (
            f"the unslimmed model gives all {self.held_out} images that were kept apart one class, so that agreement says nothing; check the "
            "weights, the preprocessing (--mean, --std), and that --images are like those it was trained on"
        )

    def to_dict(self) -> dict[str, Any]:
        return {**asdict(self), "weights": str(self.weights), "doubt": self.doubt}


@takes_options(SlimRequest, reporter=TerminalReporter)
def slim(request: SlimRequest, reporter: Reporter | None = None) -> Slimmed:
    """Fit the TSMs of a model to images, and write its weights with their model card.

    Raises:
        InputError: bad input of any kind; nothing is written then.
    """
    reporter = reporter or Silent()
    request = request.check()
    work = Work(request.teacher(), lambda text, _, total: None if total else reporter.note(text))
    if work.request.model and not work.request.awaits_weights:
        request.destination(request.config(work.request).name)
    files = _find(request, reporter)
    with join_world(request.device) as world:
        if world.size > 1:
            raise InputError("slim is one process; start it without torchrun")
        work.request = work.request.completed(progress=work.progress)
        return _slim(request, work, files, world, reporter)


def _find(request: SlimRequest, reporter: Reporter) -> list[Path]:
    """Return the images in an order of the seed, those to check on first."""
    listed = find_images(request.images)
    if listed.note:
        reporter.note(listed.note)
    return [listed.images[i] for i in permutation(len(listed.images), FIT, request.seed)]


def _slim(request: SlimRequest, work: Work, files: list[Path], world: World, reporter: Reporter) -> Slimmed:
    config = request.config(work.request)
    path = request.destination(config.name)
    _refuse_tsms(work)
    loaded, choice, classes = load_request(work)
    for note in work.notes:
        reporter.note(note)
    if loaded.model.num_classes < 2:  # the probability of one class is 1, whatever the model
        found = "one class alone" if loaded.model.num_classes else "no classifier"
        raise InputError(
            f"{loaded.name} has {found}, and a slimmed model is compared with it by the probabilities of classes; give a checkpoint that has two "
            "or more"
        )
    model = arm(loaded.model, config, request.seed).to(world.device)
    check_card(_card(request, work, config, model, choice, classes, None))
    for warning in warn_of_threads(world.device):
        reporter.warn(warning)
    held = held_out(len(files))
    readers = [
        SampleReader(Pictures([(file, 0) for file in part]), request.max_damaged)
        for part in (files[:held], files[held:])
    ]
    with (
        FrozenFeatures(model, readers[0], choice.preprocessing) as checked,
        FrozenFeatures(model, readers[1], choice.preprocessing, views=VIEWS) as fitted,
    ):
        start = agreement(model, checked)
        options = FitOptions(request.seconds, request.steps, request.batch_size, request.lr, request.seed)
        fit = fit_tsms(model, fitted, options, reporter.fitting)
        if request.steps is None and fit.steps < _FEW_STEPS:
            reporter.note(
                f"{fit.steps} step{'s' * (fit.steps > 1)} in {fit.seconds:.0f} s fit next to nothing: what an image is at first costs more than a "
                "step; pass more --seconds, or --steps"
            )
        reporter.fitted(fit)
        end = agreement(model, checked)
    labelled = _accuracy(model, work, choice.preprocessing, request.max_damaged, world, reporter)
    unread = [int(reader.damaged.sum()) for reader in readers]
    for reader in readers:
        _warn_of_damaged(reader, reporter)
    result = Slimmed(
        path,
        config.name,
        tuple(model.kept),
        len(files) - held - unread[1],
        held - unread[0],
        sum(unread),
        fit,
        start,
        end,
        *labelled,
    )
    card = _card(request, work, config, model, choice, classes, result)
    save_weights(path, weights_of(model.state_dict()), card)
    return result


def _refuse_tsms(work: Work) -> None:
    """Refuse weights that are slimmed already; what a model card says of them has been looked at before."""
    request = work.request
    if request.card or request.checkpoint is None:
        return
    read = read_checkpoint(request.checkpoint, request.ema, request.checkpoint_key)
    if any(name.startswith("tsm.") for name in read.state):
        raise InputError(
            f"checkpoint {request.checkpoint} is slimmed already: it has TSMs; give that of the unslimmed {request.config.name}"
        )


def arm(teacher: nn.Module, config: ModelConfig, seed: int) -> nn.Module:
    """Return a model with new TSMs and all other weights of an unslimmed one, in eval mode.

    Args:
        teacher: its weights are copied.
        config: of what is made of it.
        seed: of the TSMs' weights.

    Raises:
        InputError: a token schedule that does not fit.
    """
    seed_all(seed)
    options = {"num_classes": teacher.num_classes, "dist_token": teacher.has_dist_token}
    model = create_model(config.at(teacher.img_size[0]), img_size=teacher.img_size[0], **options)
    missing, left_out = fit_partly(teacher.state_dict(), model)
    assert not left_out and all(name.startswith("tsm.") for name in missing)
    return model.eval()


@torch.no_grad()
def agreement(model: nn.Module, features: FrozenFeatures) -> Agreement:
    """Compare a slimmed model with itself unslimmed on all images of `features` that can be read, each in one view."""
    same, kl, given = 0, 0.0, set()
    for indices in torch.arange(len(features)).split(BATCH_SIZE):
        batch = features.of(indices)
        logits = mean_logits(model.forward_from(features.block, batch.tokens, features.rotary))
        whole = ~features.reader.damaged[indices]  # in the others' places stand images that count already
        logits, wanted = logits[whole.to(logits.device)], batch.logits[whole.to(logits.device)]
        same += int((logits.argmax(1) == wanted.argmax(1)).sum())
        given.update(wanted.argmax(1).tolist())
        kl += float(F.kl_div(logits.log_softmax(1), wanted.log_softmax(1), reduction="sum", log_target=True))
    count = len(features) - int(features.reader.damaged.sum())
    return Agreement(100 * same / count, kl / count, len(given))


def _accuracy(
    model: nn.Module,
    work: Work,
    preprocessing: Preprocessing,
    max_damaged: int,
    world: World,
    reporter: Reporter,
) -> tuple[int, float | None, float | None]:
    """Return the images of --val-data, and the top-1 of the unslimmed and of the slimmed model on them."""
    if work.samples is None:
        return 0, None, None
    data = HeldOut(Pictures(work.samples), preprocessing, max_damaged)
    batches = torch.utils.data.DataLoader(data, batch_size=BATCH_SIZE)
    scores = []
    for part, measured in enumerate((unslimmed(model), model)):
        scores.append(
            evaluate(
                measured,
                batches,
                world,
                progress=lambda done, part=part: reporter.evaluating(
                    part * len(batches) + done, 2 * len(batches)
                ),
            )
        )
    _warn_of_damaged(data.reader, reporter)
    return scores[0].images, scores[0].top1, scores[1].top1


def _warn_of_damaged(reader: SampleReader, reporter: Reporter) -> None:
    """Say which images could not be read, and are in no figure."""
    if places := reader.damaged.nonzero().flatten().tolist():
        names = [str(reader.samples.describe(place)) for place in places]
        words = left_out_words([DamagedImage(name, name) for name in names])
        reporter.warn(f"{words}; replace or remove what is damaged")


def _card(
    request: SlimRequest,
    work: Work,
    config: ModelConfig,
    model: nn.Module,
    choice: Choice,
    classes: Sequence[str] | None,
    result: Slimmed | None,
) -> ModelCard:
    """Return the card of what is written; it takes all that the work has come to."""
    place = utf8_text(place_of(work.request.checkpoint))
    fit = {
        "batch_size": request.batch_size,
        "lr": request.lr,
        "views": VIEWS,
        "asked_seconds": request.seconds,
        "asked_steps": request.steps,
    }
    metrics: dict[str, Any] = {}
    if result is not None:
        fit |= asdict(result.fit)
        metrics = {"agreement": result.end.same, "kl": result.end.kl, "images": result.held_out}
        if result.top1 is not None:
            metrics |= {"top1": result.top1, "teacher_top1": result.teacher_top1, "labelled": result.labelled}
    return ModelCard(
        name=config.name,
        stages=config.stage_blocks,
        keeping_ratio=None if config.at(choice.preprocessing.size[0]).kept else config.keeping_ratio,
        tokens=tuple(model.kept),
        image_size=choice.preprocessing.size[0],
        num_classes=model.num_classes,
        preprocessing=choice.preprocessing,
        dist_token=model.has_dist_token,
        classes=tuple(classes) if classes else None,
        metrics=metrics,
        training={
            "method": "slim",
            "data": utf8_text(shown(request.images)),
            "start": place,
            "teacher": place,
            "teacher_model": work.request.config.name,
            "fit": fit,
            "seed": request.seed,
            "preprocessing_source": choice.sources,
        },
    )

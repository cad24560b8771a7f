"""A student's start: its TSMs fitted to what the teacher's weights compute without them, before the first step of FRD."""

from __future__ import annotations

from dataclasses import asdict, dataclass

from sit_deploy.data.datasets import Data
from training.recipes import Recipe
from training.request import TrainRequest
from training.run import Run
from training.sample_reader import SampleReader
from training.slim_features import FrozenFeatures
from training.slim_fit import Fit, fit_tsms
from training.slim_options import BATCH_SIZE, VIEWS, FitOptions

MOST_IMAGES = 25_600  # that are looked at, however large the run: 400 steps
_LOOKS = VIEWS  # at each image for each epoch: it costs a fraction of FRD's look, and few epochs would make too few steps
_LEAST_STEPS = 10  # fewer are of no use


@dataclass(frozen=True)
class WarmStart:
    """Whether TSMs are fitted before the first step, and for how long.

    Attributes:
        steps: of fitting; 0 for none.
        batch_size: images a step.
        why_not: why there is none, where somebody may have expected it.
    """

    steps: int = 0
    batch_size: int = BATCH_SIZE
    why_not: str | None = None

    @classmethod
    def of(cls, request: TrainRequest, recipe: Recipe, data: Data) -> WarmStart:
        """Return the warm start of a run: four times as many images as its epochs look at, `MOST_IMAGES` at most."""
        if not request.teacher or not request.warm_start or request.qat:
            return cls()
        if request.init:
            return cls(why_not="the student starts from --init, TSMs and all")
        if request.cnn_teacher:
            return cls(why_not="the dist token of --cnn-teacher is new, and so is what the student computes")
        if data.streamed:
            return cls(why_not="streamed data gives no chosen images")
        batch = min(BATCH_SIZE, len(data.train))
        steps = min(MOST_IMAGES, _LOOKS * recipe.epochs * len(data.train)) // batch
        return cls(steps if steps >= _LEAST_STEPS else 0, batch)


def warm_start(run: Run, start: WarmStart) -> dict[str, float]:
    """Fit the TSMs of a student, in place, on its training images and parts of them, without any other augmentation.

    Every process has the weights that the first one fits.

    Returns:
        What fitting did (`training.slim_fit.Fit`); of other processes than the first, nothing.

    Raises:
        InputError: too many images that cannot be read.
    """
    request, world, reporter = run.request, run.world, run.reporter
    model = run.models.model.to(world.device)
    training = model.training
    model.eval()
    fit: Fit | None = None
    if world.is_main:
        reporter.note(
            f"Warm start: TSMs are fitted in {start.steps} steps of {start.batch_size} images, before the first one of the recipe "
            "(--no-warm-start leaves it out)"
        )
        reader = SampleReader(run.data.train, request.max_damaged, run.loaders.damaged[0])
        options = FitOptions(None, start.steps, start.batch_size, seed=request.seed)
        with FrozenFeatures(model, reader, run.models.preprocessing, views=VIEWS) as features:
            fit = fit_tsms(model, features, options, reporter.fitting)
        reporter.fitted(fit)
    if world.size > 1:
        shared = world.gather(model.tsm.state_dict() if world.is_main else None)[0]
        model.tsm.load_state_dict(shared)
    model.train(training)
    return asdict(fit) if fit is not None else {}

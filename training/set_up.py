"""Everything that one training run is made of, set up before its first step."""

from __future__ import annotations

import os
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Protocol

import torch
from torch.optim import Optimizer

from sit_deploy.data.datasets import Data, open_data
from sit_deploy.errors import InputError
from sit_deploy.processes import World
from training.loaders import Loaders, gather_damaged, make_loaders, make_mixing, restore_damaged
from training.log import Log
from training.make_models import Models, make_models
from training.optimizer import make_optimiser, make_schedule
from training.plan import Pace, Place, Plan
from training.preflight import check_card, check_space, of_one_class, of_threads, trained_on_too
from training.qat import quantize
from training.recipes import Recipe
from training.request import TrainRequest
from training.result import WEIGHTS, card_of
from training.run_folder import unwritable
from training.state import LAST, Position, read_state, restore, save_state
from training.sync_batchnorm import synchronise
from training.task import ClassificationTask, FRDTask, Task

DAMAGED = "damaged"  # the name that the flags of damaged images have among the saved parts


class Reporter(Protocol):
    """How a run is watched; of the main process only."""

    def note(self, text: str) -> None:
        """Say a sentence."""

    def warn(self, text: str) -> None:
        """Say what should be looked at."""

    def steps(self, place: Place, loss: float, images_per_second: float) -> None:
        """Show the steps that are done."""

    def calibrating(self, done: int, total: int) -> None:
        """Show the images that activations have been observed on."""

    def evaluating(self, done: int, total: int) -> None:
        """Show the batches of held-out images that are done."""

    def epoch(self, row: dict[str, Any], place: Place) -> None:
        """Show the figures of an epoch; epoch 0 is the start."""


class Silent:
    """A reporter that shows nothing."""

    def note(self, text: str) -> None: ...
    def warn(self, text: str) -> None: ...
    def steps(self, place: Place, loss: float, images_per_second: float) -> None: ...
    def calibrating(self, done: int, total: int) -> None: ...
    def evaluating(self, done: int, total: int) -> None: ...
    def epoch(self, row: dict[str, Any], place: Place) -> None: ...


class _Fixed:
    """A state that is what it is."""

    def __init__(self, state: dict[str, Any]) -> None:
        self.state = state

    def state_dict(self) -> dict[str, Any]:
        return self.state


@dataclass
class Run:
    """A run: what it computes, on what, and where it is."""

    request: TrainRequest
    recipe: Recipe
    world: World
    reporter: Reporter
    data: Data
    models: Models
    loaders: Loaders
    mix: Callable
    task: Task
    optimiser: Optimizer
    schedule: Any
    scaler: torch.amp.GradScaler
    autocast: Callable[[], AbstractContextManager]
    identity: dict[str, Any]
    position: Position = field(default_factory=Position)
    pace: Pace = field(default_factory=Pace)
    log: Log | None = None
    names_damaged: bool = True  # until one has been named
    notes: list[str] = field(default_factory=list)  # to be said before the first step
    warnings: list[str] = field(default_factory=list)

    @property
    def epochs(self) -> int:
        return self.recipe.epochs + self.recipe.cooldown_epochs

    @property
    def total_batch(self) -> int:
        """Images of one step, over all processes."""
        return self.recipe.batch_size * self.request.accumulate * self.world.size

    @property
    def plan(self) -> Plan:
        return Plan.of(self.recipe, len(self.data.train), self.total_batch, self.loaders.steps)

    def place(self, epoch: int, step: int) -> Place:
        """Return where the run is after `step` steps of `epoch`, counted from 0."""
        steps = self.loaders.steps
        passes = self.epochs - epoch + (1 if self.models.teacher is None else 2)  # those of the end too
        left = self.pace.left((self.epochs - epoch) * steps - step, passes)
        return Place(epoch + 1, self.epochs, step, steps, left)

    @property
    def last(self) -> Path:
        return self.request.output / LAST

    def parts(self) -> dict[str, Any]:
        """Return what has a state to save."""
        parts = {
            "model": self.task.model,
            "optimiser": self.optimiser,
            "schedule": self.schedule,
            "scaler": self.scaler,
        }
        if self.task.has_ema():
            parts["ema"] = self.task.get_eval_model(ema=True)
        return parts

    def open(self) -> None:
        """Open the log, if this is the main process.

        Raises:
            InputError: it cannot be written to, or TensorBoard is asked for and not installed.
        """
        if not self.world.is_main:
            return
        folder = self.request.output
        try:
            self.log = Log(folder, self.position.log_bytes, self.request.tensorboard)
        except OSError as error:
            raise unwritable(folder, error) from None

    def save(self) -> None:
        """Write last.pt, if this is the main process."""
        damaged = gather_damaged(self.loaders, self.world)
        if self.world.is_main:
            self.position.log_bytes = self.log.length
            parts = {**self.parts(), DAMAGED: _Fixed(dict(zip(("train", "val"), damaged, strict=False)))}
            save_state(self.last, self.identity, self.position, parts)
        self.world.barrier()

    def evaluated(self) -> torch.nn.Module:
        """Return the model whose accuracy counts: the averaged one where there is one."""
        return self.task.get_eval_model(ema=self.task.has_ema())


def set_up(request: TrainRequest, world: World, reporter: Reporter) -> Run:
    """Open the data, make the models, and go to where the run was left if it is to be resumed.

    Raises:
        InputError: bad input of any kind, before the first step is taken.
    """
    recipe = request.recipe
    resuming = _is_resumed(request, world)
    data = open_data(
        request.data,
        request.data_dir,
        request.train_split,
        request.val_split,
        request.num_classes,
        request.seed,
        request.image_key,
        request.label_key,
    )
    if recipe.repeats > 1 and data.streamed:
        raise InputError("streamed data cannot be repeated in a batch; pass --repeats 1")
    if request.qat and data.streamed:
        raise InputError(
            "--qat calibrates on chosen images, and streamed data gives none; pass it as a folder"
        )
    models = make_models(request, recipe, data)
    workers = _workers(request, world)
    loaders = make_loaders(
        data, recipe, models.preprocessing, world,
        accumulate=request.accumulate, workers=workers, seed=request.seed, max_damaged=request.max_damaged,
    )  # fmt: skip
    total_batch = recipe.batch_size * request.accumulate * world.size
    identity = request.identity(total_batch)
    states = None
    position = Position()
    if resuming:
        position, states = read_state(request.output / LAST, identity)
    if request.qat:
        _quantize(request, models, data, loaders, world, reporter, resumed=states is not None)
    task = _make_task(request, recipe, models, world)
    optimiser = make_optimiser(task.model, recipe, total_batch)
    schedule = make_schedule(optimiser, recipe, loaders.steps, total_batch)
    autocast, scaler = _precision(request.amp, world.device)
    mix = make_mixing(recipe, data.num_classes, world.device)
    run = Run(
        request, recipe, world, reporter, data, models, loaders, mix, task,
        optimiser, schedule, scaler, autocast, identity, position,
    )  # fmt: skip
    check_card(card_of(run, {}))
    check_space(request.output, models.model, bool(recipe.ema_decay))
    run.notes += models.notes
    run.warnings += (*of_one_class(data), *trained_on_too(data), *of_threads(world, workers))
    if states is not None:
        position.require_within(request.output / LAST, run.epochs, loaders.steps)
        restore(run.parts(), states, request.output / LAST)
        if DAMAGED in states:  # not in a state of an older version
            restore_damaged(loaders, list(states[DAMAGED].values()), world)
    if world.size > 1:  # last: what it wraps must have its weights, its device and its final form
        device_ids = [world.device.index] if world.device.type == "cuda" else None
        task.prepare_distributed(device_ids)
    return run


def _is_resumed(request: TrainRequest, world: World) -> bool:
    """Return whether the output folder holds a run to be resumed; refuse to write over one that is not."""
    folder, last = request.output, request.output / LAST
    if last.exists() and not request.resume:
        raise InputError(
            f"{folder} holds a training run; pass --resume to go on with it, or choose another -o"
        )
    if not request.resume and (folder / WEIGHTS).exists():
        raise InputError(f"{folder} holds a trained model; choose another -o")
    resuming = last.exists()
    world.barrier()  # every process has looked before the main one writes
    return resuming


def _quantize(
    request: TrainRequest,
    models: Models,
    data: Data,
    loaders: Loaders,
    world: World,
    reporter: Reporter,
    resumed: bool,
) -> None:
    """Make the model round as INT8 does; a run that is resumed has its thresholds among its weights."""
    from training.calibrate import calibrate

    models.model.to(world.device)
    thresholds = {}
    if not resumed:
        thresholds = calibrate(
            models.model, data, models.preprocessing, world,
            images=request.qat_images, seed=request.seed, damaged=loaders.damaged[0], max_damaged=request.max_damaged,
            skip=request.qat_skip, progress=reporter.calibrating,
        )  # fmt: skip
    quantize(models.model, thresholds, request.qat_skip)


def _workers(request: TrainRequest, world: World) -> int:
    """Return how many processes decode images, a process of training."""
    if request.workers is not None:
        return request.workers
    if request.data == "digits" and world.device.type == "cpu":
        return 0  # small pictures in memory: handing them over costs more than making them
    here = int(os.environ.get("LOCAL_WORLD_SIZE", 1))
    return max(0, min(16, (os.cpu_count() or 1) // here - (0 if world.device.type == "cuda" else 1)))


def _precision(
    amp: str, device: torch.device
) -> tuple[Callable[[], AbstractContextManager], torch.amp.GradScaler]:
    """Return what to compute the loss in, and the scaler that keeps FP16 gradients from vanishing."""
    if amp == "auto":
        amp = "off" if device.type == "cpu" else "bf16" if torch.cuda.is_bf16_supported() else "fp16"
    if amp == "fp16" and device.type == "cpu":
        raise InputError("--amp fp16 is for GPUs; pass --amp off, or bf16")
    scaler = torch.amp.GradScaler(device.type, enabled=amp == "fp16")
    if amp == "off":
        return nullcontext, scaler
    kind = torch.float16 if amp == "fp16" else torch.bfloat16
    return partial(torch.autocast, device.type, kind), scaler


def _make_task(request: TrainRequest, recipe: Recipe, models: Models, world: World) -> Task:
    if request.sync_batchnorm:
        synchronise(models.model)
    task: Task
    if models.teacher is None:
        task = ClassificationTask(models.model, world.device)
    else:
        task = FRDTask(
            models.model,
            models.teacher,
            world.device,
            token_weight=recipe.token_weight,
            logits_weight=recipe.logits_weight,
            temperature=recipe.temperature,
            cnn_teacher=models.cnn,
            cnn_normalisation=models.cnn_normalisation,
        )
    task.to(world.device)
    if request.channels_last:
        for model in (models.model, models.teacher, models.cnn):
            if model is not None:
                model.to(memory_format=torch.channels_last)
    if recipe.ema_decay:
        task.setup_ema(recipe.ema_decay, use_warmup=True)
    if request.compile:
        task.compile()
    return task

"""Setting a training run up: data, models, loaders, optimizer, and the state of a run that is resumed."""

from __future__ import annotations

import os
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from functools import partial

import torch

from engines.cpu import cpu_count
from sit_deploy.data.datasets import Data, open_data
from sit_deploy.errors import InputError
from sit_deploy.processes import World
from training.announce import announce, compare
from training.augment import make_mixing
from training.best_weights import card_of
from training.loaders import LoaderOptions, Loaders, make_loaders, restore_damaged
from training.make_models import Models, make_models
from training.optimizer import make_optimiser, make_schedule
from training.preflight import (
    check_card,
    check_space,
    warn_of_one_class,
    warn_of_threads,
    warn_of_training_images,
)
from training.qat import quantize
from training.qat_calibration import calibrate, choose_images
from training.recipes import Recipe
from training.reporter import Reporter
from training.request import TrainRequest
from training.run import DAMAGED, Run
from training.run_files import LAST, WEIGHTS
from training.sample_reader import SampleReader
from training.state import Position, read_state, restore
from training.sync_batchnorm import synchronise
from training.task import ClassificationTask, FRDTask, Task
from training.warm_start import WarmStart, warm_start


def set_up(request: TrainRequest, world: World, reporter: Reporter) -> Run:
    """Open the data, make the models, say what comes of it, fit a student's TSMs, and go to where the run was left if it is resumed.

    Raises:
        InputError: bad input of any kind, before the first step is taken.
    """
    recipe = request.recipe
    resuming = _is_resumed(request, world)
    data = open_data(request.source)
    if recipe.repeats > 1 and data.streamed:
        raise InputError("streamed data cannot be repeated in a batch; pass --repeats 1")
    if request.qat and data.streamed:
        raise InputError(
            "--qat calibrates on chosen images, and streamed data gives none; pass it as a folder"
        )
    # weights last: nobody waits for them to learn that a folder is missing
    request = request.fetched(lambda step, _, total: None if total else reporter.note(step))
    models = make_models(request, recipe, data)
    cost = compare(models)
    workers = _workers(request, world)
    options = LoaderOptions(request.accumulate, workers, request.seed, request.max_damaged)
    loaders = make_loaders(data, recipe, models.preprocessing, world, options)
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
        optimiser, schedule, scaler, autocast, identity, cost, position,
    )  # fmt: skip
    check_card(card_of(run, {}))
    check_space(request.output, models.model, bool(recipe.ema_decay))
    run.notes += models.notes
    start = WarmStart.of(request, recipe, data)
    if start.why_not and states is None:
        run.notes.append(f"No warm start: {start.why_not}")
    run.warnings += (
        *warn_of_one_class(data),
        *warn_of_training_images(data),
        *warn_of_threads(world.device, workers),
    )
    if states is not None:
        position.require_within(request.output / LAST, run.epochs, loaders.steps)
    if world.is_main:
        announce(run)
    if states is None and start.steps:
        position.fitted, position.fit = start.steps, warm_start(run, start)
    if position.fitted:
        words = f"{models.start}; TSMs fitted in {position.fitted} steps (--warm-start)"
        run.models = replace(models, start=words)
    _finish_task(run)
    if states is not None:
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
    models.model.to(world.device)
    thresholds = {}
    if not resumed:
        samples = SampleReader(data.train, request.max_damaged, loaders.damaged[0])
        chosen = choose_images(data, request.qat_images, request.seed)
        thresholds = calibrate(
            models.model, samples, chosen, models.preprocessing, world, request.qat_skip, reporter.calibrating
        )
    quantize(models.model, thresholds, request.qat_skip)


def _workers(request: TrainRequest, world: World) -> int:
    """Return how many processes decode images, a process of training."""
    if request.workers is not None:
        return request.workers
    if request.data == "digits" and world.device.type == "cpu":
        return 0  # small pictures in memory: handing them over costs more than making them
    here = int(os.environ.get("LOCAL_WORLD_SIZE", 1))
    return max(0, min(16, cpu_count() // here - (0 if world.device.type == "cuda" else 1)))


def _precision(
    amp: str, device: torch.device
) -> tuple[Callable[[], AbstractContextManager], torch.amp.GradScaler]:
    """Return what to compute the loss in, and the scaler that keeps FP16 gradients from vanishing."""
    if amp == "auto":
        # GPUs older than Ampere emulate bfloat16, slowly, and have fast float16
        has_bf16 = device.type == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False)
        amp = "off" if device.type == "cpu" else "bf16" if has_bf16 else "fp16"
    if amp == "fp16" and device.type == "cpu":
        raise InputError("--amp fp16 is for GPUs; pass --amp off, or bf16")
    scaler = torch.amp.GradScaler(device.type, enabled=amp == "fp16")
    if amp == "off":
        return nullcontext, scaler
    kind = torch.float16 if amp == "fp16" else torch.bfloat16
    return partial(torch.autocast, device.type, kind), scaler


def _make_task(request: TrainRequest, recipe: Recipe, models: Models, world: World) -> Task:
    models.model.set_grad_checkpointing(request.checkpoints_gradients)
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
            hard_label_weight=recipe.hard_label_weight,
            cnn_teacher=models.cnn,
            cnn_normalisation=models.cnn_normalisation,
        )
    task.to(world.device)
    if request.channels_last:
        for model in (models.model, models.teacher, models.cnn):
            if model is not None:
                model.to(memory_format=torch.channels_last)
    return task


def _finish_task(run: Run) -> None:
    """Average the weights that the run starts from, and compile, where that is asked for."""
    if run.recipe.ema_decay:
        run.task.setup_ema(run.recipe.ema_decay, use_warmup=True)
    if run.request.compile:
        run.task.compile()

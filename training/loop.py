"""The training loop, from the first step to the files that are left."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator
from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import clip_grad_norm_

from sit_deploy.calls import takes_options
from sit_deploy.errors import Error, InputError
from sit_deploy.models.catalog import title
from sit_deploy.processes import join_world
from training.announce import where
from training.best_weights import keep_best
from training.loaders import gather_damaged
from training.loss_meter import FEW, DivergedError, LossMeter, last_good, learning_rate
from training.metrics import Metrics, evaluate
from training.optimizer import set_learning_rate
from training.qat import in_float
from training.reporter import Reporter, Silent
from training.request import TrainRequest
from training.run import Run
from training.run_files import locked_run_folder
from training.seeding import STEP, seed_all
from training.set_up import set_up
from training.stop_signal import StopSignal
from training.summary import Summary, finish
from training.task import FRDTask
from training.terminal_reporter import TerminalReporter
from training.worker_errors import as_raised_in_worker


class StoppedError(Error):
    """The run was told to stop; its state is saved."""


@takes_options(TrainRequest, reporter=TerminalReporter)
def train(request: TrainRequest, reporter: Reporter | None = None) -> Summary:
    """Train as the request says; under torchrun, every process calls this.

    Raises:
        InputError: bad input: said before the first step wherever it can be.
        StoppedError: by SIGINT or SIGTERM, after saving.
        DivergedError: after the last finite step, which is on disk.
    """
    if not isinstance(request, TrainRequest):
        raise InputError(f"train takes a training.TrainRequest, got {type(request).__name__}")
    request = request.named()
    request.check()
    with join_world(request.device) as world, locked_run_folder(request.output, world) as (folder, no_lock):
        run = set_up(request, world, reporter if reporter and world.is_main else Silent())
        try:
            run.open()
            if no_lock:
                run.reporter.warn(no_lock)
            with StopSignal() as stop:
                if run.position.epoch == run.position.step == 0:
                    _record_start(run, stop)
                for epoch in range(run.position.epoch, run.epochs):
                    started = time.perf_counter()
                    trained = _train_epoch(run, epoch, stop)
                    metrics = _validate(run, stop)
                    trained["seconds"] = time.perf_counter() - started
                    _close_epoch(run, epoch, trained, metrics)
            return finish(run)
        except BaseException as error:
            if world.is_main and not isinstance(error, DivergedError):  # whose log says how it came to that
                folder.clear_away()
            if isinstance(error, (InputError, RuntimeError)):
                raise as_raised_in_worker(error) from None
            raise
        finally:
            if run.log is not None:
                run.log.close()
            del (
                run.loaders
            )  # the workers go with it, now: garbage collection would take seconds for each of them


def _train_epoch(run: Run, epoch: int, stop: StopSignal) -> dict[str, float]:
    """Take the steps of one epoch that are left; return its means."""
    recipe, request, world, task = run.recipe, run.request, run.world, run.task
    task.train()
    if run.loaders.order is None:  # streamed: timm's reader can only start an epoch from its beginning
        run.position.step, run.position.sums = 0, {}
    batches = _batches(run, epoch)
    meter = LossMeter(run, epoch)
    first = run.position.step
    # On a GPU, reading a loss waits for all that is queued; with several processes, so does asking them all to stop. The first few
    # steps are looked at anyway: they show that it works, and how long it will take.
    check_every = 1 if world.device.type == "cpu" and world.size == 1 else request.log_every
    for step in range(run.position.step, run.loaders.steps):
        set_learning_rate(run.schedule, recipe, epoch, step, run.loaders.steps)
        for part in range(request.accumulate):
            images, labels = meter.waiting(batches)
            seed_all(STEP, request.seed, epoch, step, part, world.rank)
            images, targets = run.mix(images, labels)
            last = part == request.accumulate - 1
            with nullcontext() if last else task.no_sync(), run.autocast():
                result = task(images, targets)
            run.scaler.scale(result["loss"] / request.accumulate).backward()
            meter.add(result)
        if recipe.clip_grad:
            run.scaler.unscale_(run.optimiser)
            clip_grad_norm_(task.model.parameters(), recipe.clip_grad)
        run.scaler.step(run.optimiser)
        run.scaler.update()
        run.optimiser.zero_grad(set_to_none=True)
        task.update_ema(epoch * run.loaders.steps + step + 1)

        done = step + 1
        at_end = done == run.loaders.steps
        if done - first <= FEW or done % check_every == 0 or done % request.save_every == 0 or at_end:
            run.position.epoch, run.position.step = epoch, done
            meter.check(done)
            if done % request.log_every == 0 or at_end:
                meter.log(done)
            if world.any(stop.asked):
                _stop(run, stop, meter)
            if done % request.save_every == 0 and not at_end:
                meter.require_finite_weights(done)
                run.save()
    meter.require_finite_weights(run.loaders.steps)
    return meter.means()


def _batches(run: Run, epoch: int) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield this process's batches from the current step on, on its device."""
    if run.loaders.order is not None:
        run.loaders.order.set_position(epoch, run.position.step)
    else:
        run.data.train.set_epoch(epoch)
    layout = torch.channels_last if run.request.channels_last else torch.contiguous_format
    for images, labels in run.loaders.train:
        yield (
            images.to(run.world.device, non_blocking=True, memory_format=layout),
            labels.to(run.world.device, non_blocking=True),
        )


def _validate(run: Run, stop: StopSignal) -> Metrics:
    """Measure the model on the held-out images."""
    total = len(run.loaders.val)

    def show(done: int) -> None:
        run.reporter.evaluating(done, total)
        if stop.asked and run.world.size == 1:  # several processes must agree, and do so at the next step
            _stop(run, stop)

    started = time.perf_counter()
    metrics = evaluate(run.evaluated(), run.loaders.val, run.world, autocast=run.autocast, progress=show)
    run.pace.validated(time.perf_counter() - started)
    if not math.isfinite(metrics.loss):
        raise DivergedError(
            f"the loss on held-out images is not finite {where(run.position)}; {last_good(run)}; start again with a smaller "
            "--lr, or with --clip-grad 1"
        )
    return metrics


def _record_start(run: Run, stop: StopSignal) -> None:
    """Say what is trained and how good it is before the first step."""
    start = f"Training {title(run.models.config)} from {run.models.start}"
    row: dict[str, Any] = {"epoch": 0}
    if run.request.qat:
        with in_float(run.evaluated()):
            row["float_top1"] = _validate(run, stop).top1
        start += f"; its top-1 is {row['float_top1']:.2f} % in float, and in INT8:"
    if isinstance(run.task, FRDTask) and run.task.cnn_teacher is not None:
        row["cnn_top1"] = _measure_cnn(run, run.task.cnn_teacher)
    metrics = _validate(run, stop)
    row |= metrics.to_dict()
    if run.request.qat or run.position.fitted:  # it may be as good as it gets
        keep_best(run, metrics, 0)
    if run.log is not None:
        run.log.write("epoch", 0, **row)
        run.reporter.note(start)
        run.reporter.epoch(row, run.progress(-1, run.loaders.steps))


def _measure_cnn(run: Run, cnn: nn.Module) -> float:
    """Say how good the extra teacher is on the student's images, as what it says is learnt unseen; return its top-1."""
    top1 = evaluate(cnn, run.loaders.val, run.world, autocast=run.autocast).top1
    name = run.request.cnn_teacher
    run.reporter.note(
        f"Extra teacher {name}: top-1 {top1:.2f} % on the images held out, as the student sees them"
    )
    if top1 < 50:
        run.reporter.warn(
            f"extra teacher {name} is wrong about most images held out, and the dist token learns what it says; look at the order of "
            "its classes, at its mean and std, and at --image-size"
        )
    return top1


def _close_epoch(run: Run, epoch: int, trained: dict[str, float], metrics: Metrics) -> None:
    """Log an epoch, keep its weights if they are the best, and save the state of the run."""
    run.position.epoch, run.position.step, run.position.sums = epoch + 1, 0, {}
    damaged = gather_damaged(run.loaders, run.world)
    _name_damaged(run, damaged)
    row = {
        "epoch": epoch + 1,
        "lr": learning_rate(run),
        **trained,
        **metrics.to_dict(),
        "damaged_images": sum(int(part.sum()) for part in damaged),
    }
    keep_best(run, metrics, epoch + 1)
    if run.log is not None:
        run.log.write("epoch", (epoch + 1) * run.loaders.steps, **row)
        run.reporter.epoch(row, run.progress(epoch, run.loaders.steps))
    run.save()


def _name_damaged(run: Run, damaged: list[Tensor]) -> None:
    """Say which image is damaged, the first time that there is one."""
    for samples, flags in zip((run.data.train, run.data.val), damaged, strict=False):
        if run.names_damaged and flags.any():
            run.names_damaged = False
            where = (
                f", such as {samples.describe(int(flags.nonzero()[0]))}" if flags.dtype == torch.bool else ""
            )
            run.reporter.note(f"Some images cannot be read or augmented and are skipped{where}")


def _stop(run: Run, stop: StopSignal, meter: LossMeter | None = None) -> None:
    if meter is not None:
        meter.require_finite_weights(run.position.step)
    run.save()
    where = f"step {run.position.step} of epoch {run.position.epoch + 1}"
    raise StoppedError(
        f"stopped by {stop.name or 'a signal'} after {where}; saved {run.last}: go on with --resume"
    )

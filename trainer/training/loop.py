"""Runs the training loop: a fit, an epoch, a step.

Whatever changes control flow is decided from values that all ranks reduced.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as functional
from torch import Tensor, nn

from trainer.data.collate import Batch
from trainer.data.device_copy import on_device
from trainer.data.sampler import step_generator
from trainer.evaluation.validator import ValidationStopped
from trainer.optim.optimizer import clip_gradients, set_rates
from trainer.optim.schedule import multi_scale_size
from trainer.protocol import BEST_WEIGHTS
from trainer.runtime.reporter import duration
from trainer.training.rollback import TrainingDiverged, any_not_finite, roll_back, save_checkpoint, save_for_inference
from trainer.training.run import Run
from trainer.training.selection import START, is_measured, measure_epoch, measure_start, out_of_patience
from trainer.training.state import LOSS_NAMES
from trainer.training.telemetry import ThroughputMeter

GRADIENT_LIMIT = 10.0


def fit(run: Run) -> bool:
    """Trains to the last epoch or until patience ends; False if a signal asked to stop and the state is saved."""
    progress = run.state.progress
    if run.settings.save:
        save_checkpoint(run)  # a run that cannot write learns so now, and a rollback always has a place to go to
    run.epoch_loader.begin(progress.epoch, progress.batch)
    if not measure_start(run):
        _save_and_stop(run)
        return False
    while progress.epoch < run.settings.epochs and not (progress.batch == 0 and out_of_patience(run)):
        if not (run_epoch(run) and finish_epoch(run)):
            _save_and_stop(run)
            return False
        progress = run.state.progress
        if run.collectives.sum(torch.tensor([float(run.local_requests.stop_requested)])).item() > 0:
            _save_and_stop(run)
            return progress.epoch >= run.settings.epochs or out_of_patience(run)
    if progress.epoch < run.settings.epochs:
        best = f"epoch {progress.best_epoch + 1}" if progress.best_epoch != START else "the weights at the start"
        run.reporter.say(f"stopping early: no better epoch than {best} for {run.settings.patience} epochs")
    return True


def _save_and_stop(run: Run) -> None:
    """Saves the state; returns once it or an earlier one is on the disk. Raises TrainingDiverged if none can be."""
    run.heartbeat.beat("save")
    is_good = save_checkpoint(run, wait=True)
    run.reporter.stop()
    if not (is_good or run.settings.save):
        raise TrainingDiverged("the training was stopped, and there was no finite state to save")


def run_epoch(run: Run) -> bool:
    """Learns from the rest of the current epoch; False if a signal asked to stop, right after an update."""
    progress, settings = run.state.progress, run.settings
    run.model.train()
    run.speed.start()
    host_batches = run.epoch_loader.epoch(progress.epoch, progress.batch, progress.class_map)
    batches = on_device(host_batches, run.device)
    run.reporter.start_epoch(progress.epoch, settings.epochs, run.schedule.batches_per_epoch, progress.batch)
    pending = 0  # micro steps since the last update; never carried over the end of an epoch or into a checkpoint
    for batch in _timed(batches, run.speed):
        if progress.micro_step in progress.skipped_steps:
            progress.micro_step, progress.batch = progress.micro_step + 1, progress.batch + 1
            continue
        is_last = progress.batch + 1 == run.schedule.batches_per_epoch
        is_update = is_last or pending + 1 >= run.schedule.accumulation_at(progress.micro_step)
        step_control = train_step(run, batch, is_update=is_update)
        if step_control.rollback:
            roll_back(run)
            return run_epoch(run)
        pending = 0 if is_update else pending + 1
        progress.batch += 1
        progress.micro_step += 1
        run.speed.add(run.epoch_loader.images_in(progress.batch - 1))
        run.heartbeat.beat("train", progress.epoch, progress.micro_step)
        if run.reporter.due():
            _show_step(run)
        if is_update and step_control.stop:
            return False
        if is_update and step_control.checkpoint:
            save_checkpoint(run)
    if any_not_finite(run):  # no later step of this epoch would notice
        roll_back(run)
        return run_epoch(run)
    if pending:  # the batch that would have ended the epoch was left out, and what was gathered before it with it
        run.state.optimizer.zero_grad(set_to_none=True)
    return True


@dataclass(frozen=True)
class StepControl:
    """What the ranks want together, known to each at the same step."""

    stop: bool
    checkpoint: bool
    rollback: bool


def train_step(run: Run, batch: Batch, *, is_update: bool) -> StepControl:
    """Runs forward, backward and, if it is due, an update; one reduction adds up counts and requests of all ranks."""
    images = _prepare_images(run, batch)
    matches = batch.matches
    if matches is None:  # the images' size is only known now
        height, width = images.shape[2:]
        grids = [(height // stride, width // stride) for stride in run.settings.strides]
        found = run.loss.match(batch.targets, grids)
        matches = (found.pin_memory() if run.device.type == "cuda" else found).to(run.device)
    num_images = len(batch.images_bchw)
    counts, step_control = _reduce_counts(run, run.loss.counts(matches, num_images))
    if step_control.rollback:
        return step_control
    if num_images == 0 and not run.settings.sync_bn:
        # A rank without images takes part in every collective, with weight zero. Its own batch norm needs an image.
        images = images.new_zeros((1, *images.shape[1:]))
    with _gradient_sync(run.model, enabled=is_update):
        with _autocast(run):
            predictions = run.model(images)
        terms = run.loss(predictions, matches, counts)
        run.device_progress.forward_done(run.state.progress.micro_step)
        # The wrapper averages gradients over ranks; the shares of the ranks are to be added.
        scale = run.collectives.env.world_size if num_images else 0.0
        run.state.scaler.scale(terms.total * scale).backward()
    if num_images:
        run.state.loss_sums += terms.items.double()
    run.finite.note(run.state.progress.micro_step, terms.items)
    if is_update:
        update_weights(run)
    run.device_progress.step_done(run.state.progress.micro_step)
    return step_control


def update_weights(run: Run) -> None:
    """Clips gradients, steps and averages; rates are those of the current micro step."""
    state, micro_step = run.state, run.state.progress.micro_step
    set_rates(
        state.optimizer,
        lr=run.schedule.learning_rate(micro_step),
        bias_lr=run.schedule.bias_learning_rate(micro_step),
        momentum=run.schedule.momentum_at(micro_step),
    )
    state.scaler.unscale_(state.optimizer)
    norm = clip_gradients(state.model, GRADIENT_LIMIT)
    if state.scaler.is_enabled():  # it leaves such updates out by itself; too many in a row are no accident
        run.finite.note_skipped(micro_step, norm)
    else:
        run.finite.note(micro_step, norm)
    state.scaler.step(state.optimizer)
    state.scaler.update()
    state.optimizer.zero_grad(set_to_none=True)
    state.ema.update()
    state.progress.updates += 1


def finish_epoch(run: Run) -> bool:
    """Validates, writes the epoch's row, and checkpoints; False if a signal asked to stop before any of it was done.

    A run resumed from a checkpoint of that state starts with the validation.
    """
    progress, settings = run.state.progress, run.settings
    if progress.epoch + 1 < settings.epochs:
        run.epoch_loader.begin(progress.epoch + 1)  # its first batches are made during the validation
    speed, data_wait = run.speed.images_per_second, run.speed.data_wait_s / run.speed.elapsed_s
    first_step = progress.micro_step - run.schedule.batches_per_epoch
    skipped = sum(step >= first_step for step in progress.skipped_steps)
    losses = run.collectives.sum(run.state.loss_sums.clone()).cpu() / max(run.schedule.batches_per_epoch - skipped, 1)
    row: dict[str, float] = {"epoch": progress.epoch}
    row.update((f"train/{name}", loss) for name, loss in zip(LOSS_NAMES, losses.tolist(), strict=True))
    is_final = progress.epoch + 1 == settings.epochs
    try:
        is_best = is_measured(run, progress.epoch) and measure_epoch(run, row)
    except ValidationStopped:
        return False
    for index, group in enumerate(run.state.optimizer.param_groups):
        row[f"x/lr{index}"] = float(group["lr"])
    row.update({"seconds": run.speed.elapsed_s, "images_per_second": speed, "data_wait": data_wait})
    row["checkpoint_wait"], run.local_requests.checkpoint_wait_s = (
        run.local_requests.checkpoint_wait_s / run.speed.elapsed_s,
        0.0,
    )
    progress.history.append(row)
    progress.epoch, progress.batch = progress.epoch + 1, 0
    run.state.loss_sums.zero_()
    _keep_epoch(run, row, is_best=is_best, is_final=is_final or out_of_patience(run))
    return True


def _keep_epoch(run: Run, row: dict[str, float], *, is_best: bool, is_final: bool) -> None:
    progress, settings = run.state.progress, run.settings
    if run.collectives.env.is_main:
        run.results.write(progress.history, progress.start)
        run.reporter.end_epoch(settings.epochs, row, is_best=is_best and progress.best_fitness > 0)
        periodic = settings.save_period > 0 and progress.epoch % settings.save_period == 0
        keeps_best = is_best if settings.save else is_final and progress.is_judged  # --nosave keeps the last alone
        names = [BEST_WEIGHTS] * keeps_best + [f"epoch{progress.epoch}.pt"] * periodic
        for name in names:
            save_for_inference(run, name)
    if settings.save or is_final:
        save_checkpoint(run)


def _reduce_counts(run: Run, counts: Tensor) -> tuple[Tensor, StepControl]:
    local_requests = run.local_requests
    is_main = run.collectives.env.is_main
    elapsed_s = time.monotonic() - local_requests.checkpointed_at
    due = is_main and run.settings.save and elapsed_s > run.settings.checkpoint_interval_s
    mine = torch.tensor([local_requests.stop_requested, due, run.finite.bad_step is not None], dtype=torch.float64)
    total = run.collectives.sum(torch.cat((counts.double().cpu(), mine)))
    stop, checkpoint, rollback = (value > 0 for value in total[-3:].tolist())
    return total[:-3], StepControl(stop, checkpoint, rollback)


def _prepare_images(run: Run, batch: Batch) -> Tensor:
    """Converts uint8 to float32 in 0..1 on the device, and resizes if the scale varies."""
    progress, settings = run.state.progress, run.settings
    images = batch.images_bchw.to(run.device, non_blocking=True, memory_format=torch.channels_last)
    images = torch.mul(images, 1 / 255)
    if settings.multi_scale:
        fraction = step_generator(settings.seed, progress.epoch, progress.batch).random()
        grid = settings.size_grid
        factor = multi_scale_size(settings.image_size, grid, fraction) / max(images.shape[2:])
        sides = [max(1, round(side * factor / grid)) * grid for side in images.shape[2:]]
        if len(images):
            images = functional.interpolate(images, size=sides, mode="bilinear", align_corners=False)
        else:
            images = images.new_zeros((0, 3, *sides))
    return images


def _gradient_sync(model: nn.Module, *, enabled: bool) -> contextlib.AbstractContextManager[None]:
    no_sync = getattr(model, "no_sync", None)
    return contextlib.nullcontext() if enabled or no_sync is None else no_sync()


def _autocast(run: Run) -> contextlib.AbstractContextManager[Any]:
    dtype = run.settings.autocast_dtype
    return torch.autocast(run.device.type, dtype=dtype, enabled=dtype is not None)


def _timed(batches: Iterator[Batch], speed: ThroughputMeter) -> Iterator[Batch]:
    """Yields the batches, and adds up the time that the step waited for them."""
    while True:
        started_at = time.monotonic()
        batch = next(batches, None)
        speed.data_wait_s += time.monotonic() - started_at
        if batch is None:
            return
        yield batch


def _show_step(run: Run) -> None:
    progress = run.state.progress
    means = (run.state.loss_sums * run.collectives.env.world_size / max(progress.batch, 1)).tolist()
    speed = run.speed.images_per_second
    left = (
        run.schedule.batches_per_epoch * run.settings.epochs - progress.micro_step
    ) * run.epoch_loader.global_batch_size
    text = "  ".join(f"{name} {value:.4f}" for name, value in zip(("box", "obj", "cls"), means, strict=True))
    text += f"  lr {run.schedule.learning_rate(progress.micro_step):.5f}  {speed:.1f} img/s"
    if run.device.type == "cuda":
        text += f"  {torch.cuda.max_memory_reserved(run.device) / 2**30:.1f} GiB"
    run.reporter.step(progress.batch, text + (f"  {duration(left / speed)} left" if speed else ""))

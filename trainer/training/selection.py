"""Measures epochs, keeps the best one, and decides when more are of no use; the start counts as epoch 0."""

from __future__ import annotations

from collections.abc import Callable

from trainer.evaluation.validator import ValidationStopped
from trainer.protocol import BEST_WEIGHTS
from trainer.training.rollback import save_checkpoint, save_for_inference
from trainer.training.run import Run

START = -1
"""The 0-based number of the epoch that the weights at the start stand for; people read epoch 0."""


def measure_start(run: Run) -> bool:
    """Measures the weights before anything is learned, so that no worse ones are called the best.

    Returns False if a signal asked to stop before the end; a resume then measures the weights.
    """
    progress, settings = run.state.progress, run.settings
    if not settings.measures_start or not settings.can_measure or progress.micro_step > 0 or progress.start:
        return True
    run.reporter.start_epoch(START, settings.epochs, run.schedule.batches_per_epoch, 0)
    try:
        metrics = run.validator.validate(run.state.ema, on_batch=validation_beat(run))
    except ValidationStopped:
        return False
    progress.start = {"epoch": START, **metrics.row()}
    progress.class_map = metrics.class_map()
    progress.consider(START, metrics.fitness)
    if run.collectives.env.is_main:
        run.results.write(progress.history, progress.start)
        run.reporter.end_epoch(settings.epochs, progress.start, is_best=False)
        if settings.save:
            save_for_inference(run, BEST_WEIGHTS)
    if settings.save:
        save_checkpoint(run)
    return True


def measure_epoch(run: Run, row: dict[str, float]) -> bool:
    """Measures the average after the epoch in progress and adds it to ``row``; returns whether it is the best so far.

    Raises ValidationStopped on all ranks if a signal asked to stop.
    """
    metrics = run.validator.validate(run.state.ema, on_batch=validation_beat(run))
    row.update(metrics.row())
    run.state.progress.class_map = metrics.class_map()
    return run.state.progress.consider(run.state.progress.epoch, metrics.fitness)


def is_measured(run: Run, epoch: int) -> bool:
    """Returns whether an epoch ends with a validation."""
    settings = run.settings
    return settings.can_measure and (settings.validate_each_epoch or epoch + 1 == settings.epochs)


def out_of_patience(run: Run) -> bool:
    """Returns whether the best epoch lies ``patience`` epochs back; equal on all ranks, as their metrics are."""
    progress, patience = run.state.progress, run.settings.patience
    if patience == 0 or not progress.is_judged or not run.settings.validate_each_epoch:
        return False
    return progress.epoch - 1 - progress.best_epoch >= patience


def validation_beat(run: Run) -> Callable[[int, int], bool]:
    """Returns a callback that shows the progress of a validation and asks it to stop after a signal."""

    def beat(done: int, total: int) -> bool:
        run.heartbeat.beat("val", run.state.progress.epoch, run.state.progress.micro_step)
        run.reporter.phase("validating", done, total)
        return not run.local_requests.stop_requested

    return beat

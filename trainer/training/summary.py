"""Draws pictures when a run starts; validates, reports, writes and draws when it ends."""

from __future__ import annotations

import copy
import json
import logging
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from trainer.boxes import xyxy_from_cxcywh_numpy
from trainer.data.collate import Batch
from trainer.errors import DiskError, WeightsError
from trainer.evaluation import plot_boxes, plots
from trainer.evaluation.evaluator import Metrics
from trainer.protocol import BEST_WEIGHTS, LAST_WEIGHTS, RunFiles, replace_text
from trainer.training.run import Run
from trainer.training.run_data import Data
from trainer.training.selection import START, validation_beat
from trainer.training.state import Progress
from trainer.weights.checkpoint import read_checkpoint

PICTURED_IMAGES = 16
SLOW_DATA_SHARE = 0.3
NOT_JUDGED = (
    "this run could not be judged: no validation image has a label, so nothing was measured. There is no best epoch "
    f"and no {BEST_WEIGHTS}; {LAST_WEIGHTS} has the weights after the last epoch"
)

_log = logging.getLogger(__name__)


def draw_start(run: Run, data: Data, run_dir: Path, *, pictures: bool) -> None:
    """Draws label statistics and the first training samples with their boxes, only on rank 0 of a fresh run."""
    if not pictures or not run.collectives.env.is_main or run.state.progress.micro_step > 0:
        return
    _draw(lambda: plots.save_label_statistics(run_dir / "labels.png", data.train.boxes.rows, data.names))
    batch = run.epoch_loader.preview(PICTURED_IMAGES)
    _draw(
        lambda: plot_boxes.save_image_mosaic(
            run_dir / "train_samples.jpg",
            batch.images_bchw.numpy(),
            _boxes_of(batch),
            data.names,
            [data.train.paths[index].name for index in batch.indices.tolist()],
            title="The first training samples as the model sees them",
        )
    )


def keep_weights(run: Run, *, finished: bool) -> None:
    """Returns once every weights file is on the disk. Raises DiskError on all ranks if one cannot be written."""
    run.checkpoints.close()
    unwritten, why = run.collectives.broadcast((run.checkpoints.unwritten, run.checkpoints.last_error))
    if unwritten:
        ended = "came to its end" if finished else "was stopped"
        raise _lost(ended, f"{' and '.join(unwritten)} could not be written", f"{run.checkpoints.weights_dir}: {why}")


def _lost(ended: str, what: str, seen: str) -> DiskError:
    expected = "a disk with space; then resume the run, which goes on from its last good checkpoint"
    return DiskError(f"the training {ended}, but {what}", seen=seen, expected=expected)


def finish_run(run: Run, data: Data, run_dir: Path, *, pictures: bool) -> None:
    """Validates the best weights once more on all ranks; rank 0 prints the table, draws, and writes the summary.

    If nothing could be measured, a warning takes the table's place. Raises ValidationStopped on all ranks if a signal
    asked to stop; a resume then finishes the run.
    """
    metrics = weights_epoch = None
    if run.state.progress.is_judged:
        model, weights_epoch = best_model(run)
        metrics = run.validator.validate_model(model, validation_beat(run))
    if not run.collectives.env.is_main:
        return
    if metrics is None:
        run.reporter.warn(NOT_JUDGED)
    else:
        run.reporter.say(best_line(run.state.progress))
        print_table(run, metrics)
    advise(run)
    if pictures:
        draw_results(run, data, metrics, run_dir)
    summary = summarize(run, metrics, weights_epoch, run_dir)
    summary["data"] = {split: report.to_dict() for split, report in data.reports.items()}
    try:
        replace_text(RunFiles(run_dir).summary, json.dumps(summary, indent=2) + "\n")
    except OSError as error:
        raise _lost("came to its end", "its summary could not be written", f"{run_dir}: {error.strerror}") from None


def best_model(run: Run) -> tuple[Any, int]:
    """Returns the model in rank 0's best.pt and its 0-based epoch; the last epoch's if the file is unreadable."""
    model = copy.deepcopy(run.state.ema.model)
    progress, state = run.state.progress, dict[str, Any]()
    epoch = progress.epoch - 1
    if run.collectives.env.is_main:
        try:
            content = read_checkpoint(run.checkpoints.weights_dir / BEST_WEIGHTS)
            state, epoch = content["ema"]["model"], content["epoch"]
            if epoch != progress.best_epoch:
                better = progress.best_epoch + 1
                why = "was lost" if run.settings.save else "measured better and was not kept (--nosave)"
                run.reporter.warn(f"{BEST_WEIGHTS} is that of epoch {epoch + 1}; the one of {better} {why}")
        except WeightsError as error:
            run.reporter.warn(f"the best weights cannot be read ({error.what}); the last ones are measured instead")
            state = {name: tensor.cpu() for name, tensor in model.state_dict().items()}
    model.load_state_dict(run.collectives.broadcast(state))
    return model, epoch


def best_line(progress: Progress) -> str:
    """Describes which epoch was the best one, and what it gained over a start that was measured."""
    if progress.best_epoch == START:
        return "best: epoch 0, the weights you started from; no epoch after it measured better"
    line = f"best epoch: {progress.best_epoch + 1}"
    if progress.start:
        before, after = (row["metrics/mAP_0.5:0.95"] for row in (progress.start, progress.history[progress.best_epoch]))
        line += f" (mAP50-95 {after:.3f}; {before:.3f} at the start)"
    return line


def print_table(run: Run, metrics: Metrics) -> None:
    """Prints precision, recall and mAP over all classes and of each."""
    say = run.reporter.say
    width = max([len(row.name) for row in metrics.per_class] + [14])
    say(f"{'class':>{width}} {'images':>7} {'labels':>7} {'P':>7} {'R':>7} {'mAP50':>7} {'mAP50-95':>9}", "bold")
    head = (metrics.precision, metrics.recall, metrics.map50, metrics.map5095)
    say(f"{'all':>{width}} {metrics.images:>7} {metrics.boxes:>7} " + _metric_cells(head))
    if len(metrics.per_class) > 1:
        for row in metrics.per_class:
            numbers = (row.precision, row.recall, row.ap50, row.ap5095)
            say(f"{row.name:>{width}} {row.images:>7} {row.labels:>7} " + _metric_cells(numbers))


def advise(run: Run) -> None:
    """Reports the share of time spent waiting for images if it is large."""
    history = run.state.progress.history
    waited = np.average([row["data_wait"] for row in history], weights=[row["seconds"] for row in history])
    if waited > SLOW_DATA_SHARE:
        run.reporter.say(f"{waited:.0%} of the time went into waiting for images: try --cache ram, or more --workers")


def _metric_cells(values: Sequence[float]) -> str:
    precision, recall, map50, map5095 = values
    return f"{precision:>7.3f} {recall:>7.3f} {map50:>7.3f} {map5095:>9.3f}"


def summarize(run: Run, metrics: Metrics | None, weights_epoch: int | None, run_dir: Path) -> dict[str, Any]:
    """Returns the run in numbers, as --json prints it; None for what was not measured.

    Epochs count from 1; 0 are the weights at the start. ``weights_epoch`` (from 0) is the epoch of best.pt.
    """
    progress = run.state.progress
    start = progress.start
    history = progress.history
    seconds = sum(row["seconds"] for row in history)
    images = sum(row["seconds"] * row["images_per_second"] for row in history)
    return {
        "run_dir": str(run_dir),
        "epochs": progress.epoch,
        "is_judged": metrics is not None,
        "best_epoch": progress.best_epoch + 1 if progress.is_judged else None,
        "weights_epoch": None if weights_epoch is None else weights_epoch + 1,
        **{name: getattr(metrics, name, None) for name in ("precision", "recall", "map50", "map5095")},
        "start": {"map50": start["metrics/mAP_0.5"], "map5095": start["metrics/mAP_0.5:0.95"]} if start else None,
        "recipe": run.checkpoint_header["recipe"],
        "images_per_second": images / seconds if seconds else 0.0,
        "world_size": run.collectives.env.world_size,
        "global_batch_size": run.epoch_loader.global_batch_size,
        "local_batch_size": -(-run.epoch_loader.global_batch_size // run.collectives.env.world_size),
    }


def draw_results(run: Run, data: Data, metrics: Metrics | None, run_dir: Path) -> None:
    """Draws curves, confusion matrix, and validation images with labels beside predictions, as far as measured."""
    _draw(lambda: plots.save_training_curves(run_dir / "results.png", RunFiles(run_dir).results))
    if metrics is None:
        return
    names = [row.name for row in metrics.per_class]
    curves, ap50 = metrics.curves, np.array([row.ap50 for row in metrics.per_class])
    _draw(
        lambda: plots.save_pr_curve(
            run_dir / "PR_curve.png", curves.recall_points, curves.precision_at_recall, names, ap50
        )
    )
    _draw(lambda: plots.save_f1_curve(run_dir / "F1_curve.png", curves.confidence, curves.f1, names))
    _draw(lambda: plots.save_confusion_matrix(run_dir / "confusion_matrix.png", metrics.confusion, data.names))
    _draw(lambda: _draw_predictions(run, data, metrics, run_dir / "val_predictions.jpg"))


def _draw_predictions(run: Run, data: Data, metrics: Metrics, path: Path) -> None:
    batch = run.validator.first_batch()
    predictions = []
    for position, geometry in zip(batch.positions.tolist(), batch.geometry, strict=True):
        found = metrics.samples.get(position, np.zeros((0, 6), np.float32))
        boxes = found[:, :4] * np.tile(geometry.ratio_hw[::-1], 2) + np.tile(geometry.pad_xy, 2)
        predictions.append(np.concatenate((found[:, 5:6], boxes, found[:, 4:5]), axis=1))
    captions = [data.val.paths[index].name for index in batch.indices.tolist()]
    plot_boxes.save_labels_and_predictions(
        path, batch.images_bchw.numpy(), _boxes_of(batch), predictions, data.names, captions
    )


def _boxes_of(batch: Batch) -> list[np.ndarray]:
    """Returns per image (k, 5): class and xyxy in pixels."""
    height, width = batch.images_bchw.shape[2:]
    rows = batch.targets.numpy()
    boxes = xyxy_from_cxcywh_numpy(rows[:, 2:]) * np.array((width, height, width, height), np.float32)
    table = np.concatenate((rows[:, 1:2], boxes), axis=1)
    return [table[rows[:, 0] == index] for index in range(len(batch))]


def _draw(action: Callable[[], None]) -> None:
    """Draws a picture; a failure is a warning and does not end the run."""
    try:
        action()
    except Exception as error:
        _log.warning("a picture could not be drawn: %s: %s", type(error).__name__, error)

"""Prepares what a validation prints, writes and draws."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from trainer.boxes import xyxy_from_cxcywh_numpy
from trainer.data.collate import Batch, Collate
from trainer.data.loader import ValidationData
from trainer.data.sampler import SampleKey
from trainer.data.scan.label_cache import LabeledImages
from trainer.evaluation import plot_boxes, plots
from trainer.evaluation.metrics import Metrics

_log = logging.getLogger(__name__)


def table_lines(metrics: Metrics) -> Iterator[str]:
    """Yields precision, recall and mAP over all classes and of each, a head line first, if there are labels."""
    if not metrics.is_judged:
        yield f"nothing could be measured: none of the {metrics.images} images has a label"
        return
    width = max([len(row.name) for row in metrics.per_class] + [14])
    yield f"{'class':>{width}} {'images':>7} {'labels':>7} {'P':>7} {'R':>7} {'mAP50':>7} {'mAP50-95':>9}"
    whole = (metrics.precision, metrics.recall, metrics.map50, metrics.map5095)
    yield f"{'all':>{width}} {metrics.images:>7} {metrics.boxes:>7} {_cells(whole)}"
    if len(metrics.per_class) > 1:
        for row in metrics.per_class:
            numbers = (row.precision, row.recall, row.ap50, row.ap5095)
            yield f"{row.name:>{width}} {row.images:>7} {row.labels:>7} {_cells(numbers)}"


def speed_line(metrics: Metrics) -> str:
    """Returns 'per image: load 1.2 ms, inference ...'."""
    return "per image: " + ", ".join(f"{stage} {spent:.1f} ms" for stage, spent in metrics.speed_ms.items())


def summarize(metrics: Metrics) -> dict[str, Any]:
    """Returns the numbers as ``--json`` prints them; None for what could not be measured."""
    names = ("precision", "recall", "map50", "map5095")
    return {
        "is_judged": metrics.is_judged,
        **{name: getattr(metrics, name) if metrics.is_judged else None for name in names},
        "images": metrics.images,
        "boxes": metrics.boxes,
        "per_class": [
            {
                "class": row.class_index,
                "name": row.name,
                "images": row.images,
                "boxes": row.labels,
                "precision": row.precision,
                "recall": row.recall,
                "map50": row.ap50,
                "map5095": row.ap5095,
            }
            for row in metrics.per_class
        ],
        "speed_ms": metrics.speed_ms,
    }


def draw(metrics: Metrics, images: LabeledImages, names: Sequence[str], image_size: int, run_dir: Path) -> None:
    """Draws curves, confusion matrix, and the images with most errors; a failed picture is a warning.

    Without labels every detection would count as an error, so nothing is drawn.
    """
    if not metrics.is_judged:
        return
    curves, ap50 = metrics.curves, np.array([row.ap50 for row in metrics.per_class])
    rows = [row.name for row in metrics.per_class]
    pictures: dict[str, Callable[[Path], None]] = {
        "PR_curve.png": lambda path: plots.save_pr_curve(
            path, curves.recall_points, curves.precision_at_recall, rows, ap50
        ),
        "F1_curve.png": lambda path: plots.save_f1_curve(path, curves.confidence, curves.f1, rows),
        "confusion_matrix.png": lambda path: plots.save_confusion_matrix(path, metrics.confusion, names),
        "worst_images.jpg": lambda path: _draw_worst(path, metrics, images, names, image_size),
    }
    for name, save in pictures.items():
        try:
            save(run_dir / name)
        except Exception as error:
            _log.warning("%s could not be drawn: %s: %s", name, type(error).__name__, error)


def _draw_worst(path: Path, metrics: Metrics, images: LabeledImages, names: Sequence[str], image_size: int) -> None:
    """Draws the images with most missed and imagined objects, each with both numbers."""
    if not metrics.worst_images or metrics.detections is None:
        return
    data = ValidationData(images, image_size=image_size)
    keys = [SampleKey(0, row.index, row.index, (), (image_size, image_size)) for row in metrics.worst_images]
    batch = Collate((image_size, image_size))([data[key] for key in keys])
    found = [metrics.detections[row.position] for row in metrics.worst_images]
    captions = [
        f"{images.paths[row.index].name}: {row.missed} missed, {row.imagined} imagined" for row in metrics.worst_images
    ]
    plot_boxes.save_labels_and_predictions(
        path, batch.images_bchw.numpy(), _labels(batch), _in_batch(batch, found), names, captions
    )


def _labels(batch: Batch) -> list[np.ndarray]:
    """Returns per image (k, 5): class and xyxy in pixels of the batch."""
    height, width = batch.images_bchw.shape[2:]
    rows = batch.targets.numpy()
    boxes = xyxy_from_cxcywh_numpy(rows[:, 2:]) * np.array((width, height, width, height), np.float32)
    table = np.concatenate((rows[:, 1:2], boxes), axis=1)
    return [table[rows[:, 0] == index] for index in range(len(batch))]


def _in_batch(batch: Batch, detections: Sequence[np.ndarray]) -> list[np.ndarray]:
    """Returns detections in pixels of their files as rows of class, xyxy in pixels of the batch, confidence."""
    moved = []
    for found, geometry in zip(detections, batch.geometry, strict=True):
        boxes = found[:, :4] * np.tile(geometry.ratio_hw[::-1], 2) + np.tile(geometry.pad_xy, 2)
        moved.append(np.concatenate((found[:, 5:6], boxes, found[:, 4:5]), axis=1))
    return moved


def _cells(values: Sequence[float]) -> str:
    precision, recall, map50, map5095 = values
    return f"{precision:>7.3f} {recall:>7.3f} {map50:>7.3f} {map5095:>9.3f}"

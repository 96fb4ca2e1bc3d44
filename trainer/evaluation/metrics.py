"""Computes the result of a validation from the parts of all ranks.

Every rank joins the parts of all ranks and computes the same numbers as one rank alone would: images are sorted by
position first, and every sum over batches is exact or of whole numbers.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from trainer.evaluation.average_precision import CONFIDENCE_POINTS, RECALL_POINTS, ApResult, average_precision

# I = images, N = detections of all images, M = labels of all images, T = thresholds, C = classes,
# K = classes that have labels


@dataclass(frozen=True)
class ImageResult:
    """The part of a validation that belongs to one image, in pixels of the image's file."""

    position: int
    index: int
    detections: np.ndarray
    """float32 (n, 6): xyxy, confidence, class."""
    correct: np.ndarray
    """bool (n, T)."""
    label_class: np.ndarray
    """int64 (m,)."""
    missed: int
    """Labels that no detection above the reporting confidence finds."""
    imagined: int
    """False positives: detections above the reporting confidence that find no label."""


@dataclass(frozen=True)
class RankPart:
    """The results of one rank in few arrays, so that sending them costs little. Images are in the rank's order."""

    positions: np.ndarray
    """int64 (I,): each image's position in the data set, unique over all ranks."""
    indices: np.ndarray
    """int64 (I,)."""
    detection_counts: np.ndarray
    """int64 (I,)."""
    label_counts: np.ndarray
    """int64 (I,)."""
    errors: np.ndarray
    """int64 (I, 2): missed and imagined objects."""
    scores: np.ndarray
    """float32 (N, 2): confidence and class."""
    correct: np.ndarray
    """bool (N, T)."""
    label_class: np.ndarray
    """int64 (M,)."""
    confusion: np.ndarray
    """int64 (C + 1, C + 1)."""
    losses: np.ndarray
    """float64 (batches, 3)."""
    seconds: dict[str, float]
    """Time spent per stage."""
    samples: list[dict[int, np.ndarray]]
    """Detections (n, 6) by position, of the rank's first batches."""
    boxes: np.ndarray | None
    """float32 (N, 4) if all detections are kept, else None."""


@dataclass(frozen=True)
class ClassMetrics:
    """One class that has labels; precision and recall at the confidence of the highest mean F1."""

    name: str
    class_index: int
    images: int
    """Images with a label of this class."""
    labels: int
    precision: float
    recall: float
    ap50: float
    ap5095: float


@dataclass(frozen=True)
class Curves:
    """Curves of K classes for charts, at IoU 0.5."""

    classes: np.ndarray
    """(K,) int64."""
    confidence: np.ndarray
    """(1000,): confidences at which ``precision``, ``recall`` and ``f1`` are sampled."""
    precision: np.ndarray
    """(K, 1000)."""
    recall: np.ndarray
    """(K, 1000)."""
    f1: np.ndarray
    """(K, 1000)."""
    recall_points: np.ndarray
    """(101,): recalls at which ``precision_at_recall`` is sampled."""
    precision_at_recall: np.ndarray
    """(K, 101)."""


@dataclass(frozen=True)
class ImageErrors:
    """Numbers of missed objects (false negatives) and imagined objects (false positives) of an image."""

    position: int
    index: int
    missed: int
    imagined: int


@dataclass(frozen=True)
class Metrics:
    """The numbers of one validation, equal on every rank and for any number of ranks (times excepted)."""

    images: int
    boxes: int
    """Labeled boxes."""
    precision: float
    """Mean over classes that have labels, 0 if there are none, as in recall, map50 and map5095; at ``confidence``."""
    recall: float
    map50: float
    map5095: float
    confidence: float
    """Confidence at which the mean F1 of the classes is highest."""
    loss: tuple[float, float, float]
    """Box, objectness, class: the mean over batches; zeros if no loss was asked for."""
    per_class: tuple[ClassMetrics, ...]
    curves: Curves
    confusion: np.ndarray
    """(C + 1, C + 1): rows detected, columns labeled, the last of each background."""
    speed_ms: dict[str, float]
    """Per image: load, inference, nms, metrics."""
    samples: dict[int, np.ndarray]
    """Detections (n, 6) of the first batches by position, in pixels of the file, for pictures."""
    worst_images: tuple[ImageErrors, ...]
    """Most errors first."""
    detections: dict[int, np.ndarray] | None = None
    """Detections (n, 6) of every image by position, if asked for."""

    @property
    def is_judged(self) -> bool:
        """Whether there was a label to compare with; else the numbers say nothing."""
        return self.boxes > 0

    @property
    def fitness(self) -> float:
        """Value that is highest in the best epoch: 0.1 mAP50 + 0.9 mAP50-95, YOLOv5's weights."""
        return 0.1 * self.map50 + 0.9 * self.map5095

    def row(self) -> dict[str, float]:
        """Returns the validation's columns of results.csv, under YOLOv5's names."""
        box, obj, cls = self.loss
        return {
            "metrics/precision": self.precision,
            "metrics/recall": self.recall,
            "metrics/mAP_0.5": self.map50,
            "metrics/mAP_0.5:0.95": self.map5095,
            "val/box_loss": box,
            "val/obj_loss": obj,
            "val/cls_loss": cls,
        }

    def class_map(self) -> list[float]:
        """Returns mAP50-95 of every class; a class without labels gets the mean."""
        values = [self.map5095] * (len(self.confusion) - 1)
        for row in self.per_class:
            values[row.class_index] = row.ap5095
        return values


def join_parts(parts: Sequence[RankPart]) -> RankPart:
    """Joins parts into one, images by position. ``parts`` are in the order of ranks, which take batches in turn."""
    positions = np.concatenate([part.positions for part in parts])
    detection_counts = np.concatenate([part.detection_counts for part in parts])
    label_counts = np.concatenate([part.label_counts for part in parts])
    by_image = np.argsort(positions, kind="stable")
    by_detection = np.argsort(np.repeat(positions, detection_counts), kind="stable")
    by_label = np.argsort(np.repeat(positions, label_counts), kind="stable")
    boxes = [part.boxes for part in parts if part.boxes is not None]
    longest = max(len(part.samples) for part in parts)
    return RankPart(
        positions=positions[by_image],
        indices=np.concatenate([part.indices for part in parts])[by_image],
        detection_counts=detection_counts[by_image],
        label_counts=label_counts[by_image],
        errors=np.concatenate([part.errors for part in parts])[by_image],
        scores=np.concatenate([part.scores for part in parts])[by_detection],
        correct=np.concatenate([part.correct for part in parts])[by_detection],
        label_class=np.concatenate([part.label_class for part in parts])[by_label],
        confusion=np.sum([part.confusion for part in parts], axis=0),
        losses=np.concatenate([part.losses for part in parts]),
        seconds={stage: sum(part.seconds[stage] for part in parts) for stage in parts[0].seconds},
        samples=[part.samples[i] for i in range(longest) for part in parts if i < len(part.samples)],
        boxes=np.concatenate(boxes)[by_detection] if boxes else None,
    )


def summarize(part: RankPart, names: Sequence[str], *, sample_batches: int, worst_images: int) -> Metrics:
    """Computes the metrics of a part that holds every image. ``names``: of all C classes."""
    confidence, detected_class = part.scores.T
    result = average_precision(part.correct, confidence, detected_class, part.label_class, len(names))
    detections = None
    if part.boxes is not None:
        whole = np.concatenate((part.boxes, part.scores), axis=1)
        found = np.split(whole, part.detection_counts.cumsum()[:-1])
        detections = dict(zip(part.positions.tolist(), found, strict=False))
    images = len(part.positions)
    return Metrics(
        images=images,
        boxes=len(part.label_class),
        precision=_mean(result.precision),
        recall=_mean(result.recall),
        map50=result.map50,
        map5095=result.map5095,
        confidence=result.confidence,
        loss=_mean_loss(part.losses),
        per_class=_class_rows(part, result, names),
        curves=Curves(
            classes=result.classes,
            confidence=CONFIDENCE_POINTS,
            precision=result.precision_curve,
            recall=result.recall_curve,
            f1=result.f1_curve,
            recall_points=RECALL_POINTS,
            precision_at_recall=result.precision_at_recall,
        ),
        confusion=part.confusion,
        speed_ms={stage: 1e3 * spent / max(images, 1) for stage, spent in part.seconds.items()},
        samples={position: rows for batch in part.samples[:sample_batches] for position, rows in batch.items()},
        worst_images=_worst(part, worst_images),
        detections=detections,
    )


def _mean(values: np.ndarray) -> float:
    return float(values.mean()) if len(values) else 0.0


def _mean_loss(losses: np.ndarray) -> tuple[float, float, float]:
    """Returns the mean over batches; the sums are exact and thus the same in every order."""
    box, obj, cls = (math.fsum(column) / max(len(losses), 1) for column in losses.T.tolist())
    return box, obj, cls


def _class_rows(part: RankPart, result: ApResult, names: Sequence[str]) -> tuple[ClassMetrics, ...]:
    image = np.repeat(np.arange(len(part.positions)), part.label_counts)
    pairs = np.unique(image * len(names) + part.label_class)
    images_of_class = np.bincount(pairs % len(names), minlength=len(names))
    return tuple(
        ClassMetrics(
            name=names[class_index],
            class_index=class_index,
            images=int(images_of_class[class_index]),
            labels=int(result.label_counts[row]),
            precision=float(result.precision[row]),
            recall=float(result.recall[row]),
            ap50=float(result.ap[row, 0]),
            ap5095=float(result.ap[row].mean()),
        )
        for row, class_index in enumerate(result.classes.tolist())
    )


def _worst(part: RankPart, count: int) -> tuple[ImageErrors, ...]:
    total = part.errors.sum(axis=1)
    worst = np.argsort(-total, kind="stable")[:count]
    return tuple(
        ImageErrors(int(part.positions[i]), int(part.indices[i]), *map(int, part.errors[i])) for i in worst if total[i]
    )

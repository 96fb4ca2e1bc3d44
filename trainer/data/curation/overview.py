"""Counts what a split has: objects by class, sizes of images and of objects, boxes that lie on another."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from trainer.data.curation.split_choice import class_counts
from trainer.data.scan.label_cache import LabeledImages
from trainer.data.scan.report import Tally, tally
from trainer.data.scan.small_boxes import LEAST_PX
from trainer.reading.text_file import printable

SIZES = (("vanish", LEAST_PX), ("tiny", 8.0), ("small", 32.0), ("medium", 96.0), ("large", float("inf")))
"""By the square root of their area at the training size, in pixels below; the last three are COCO's. What vanishes is
below 2 pixels on its shorter side."""
_SAME_IOU = 0.9
_COMMON_SIZES = 5


@dataclass(frozen=True)
class SplitOverview:
    """What a split has."""

    images: int
    boxes: int
    boxes_by_class: list[int]
    images_by_class: list[int]
    """Images that have any of a class."""
    boxes_by_size: dict[str, int]
    """At the training size; see SIZES."""
    image_sizes: dict[str, int]
    """The most common, ``640x480`` (width and height) with their numbers, and how many ``others`` there are."""
    copies: Tally
    """Boxes that lie on another of their class and image with an IoU above 0.9: most often labeled twice."""


def overview_of(images: LabeledImages, num_classes: int, image_size: int) -> SplitOverview:
    """Returns what a split has; ``image_size`` is the size that it is trained at."""
    counts = class_counts(images, num_classes)
    return SplitOverview(
        images=len(images),
        boxes=len(images.boxes.rows),
        boxes_by_class=counts.sum(axis=0).astype(int).tolist(),
        images_by_class=(counts > 0).sum(axis=0).astype(int).tolist(),
        boxes_by_size=_boxes_by_size(images, image_size),
        image_sizes=_image_sizes(images.shapes_hw),
        copies=_find_copies(images),
    )


def _boxes_by_size(images: LabeledImages, image_size: int) -> dict[str, int]:
    shapes = images.shapes_hw.astype(np.float64)
    scale = image_size / np.maximum(shapes.max(axis=1, initial=1), 1)
    image = np.repeat(np.arange(len(images)), images.boxes.counts)
    sides = images.boxes.rows[:, 3:5] * shapes[image][:, ::-1] * scale[image][:, None]
    kind = np.searchsorted([limit for _, limit in SIZES[1:-1]], np.sqrt(sides.prod(axis=1)), side="right") + 1
    kind[sides.min(axis=1, initial=np.inf) < LEAST_PX] = 0
    return dict(zip((name for name, _ in SIZES), np.bincount(kind, minlength=len(SIZES)).tolist(), strict=True))


def _image_sizes(shapes_hw: np.ndarray) -> dict[str, int]:
    counted = Counter(f"{width}x{height}" for height, width in shapes_hw.tolist())
    common = dict(counted.most_common(_COMMON_SIZES))
    others = len(shapes_hw) - sum(common.values())
    return {**common, "others": others} if others else common


def _find_copies(images: LabeledImages) -> Tally:
    found = []
    for index, rows in enumerate(images.boxes):
        for first, second, iou in _same_boxes(rows):
            name = printable(images.paths[index])
            found.append(f"{name}: boxes {first + 1} and {second + 1} of class {int(rows[first, 0])}, IoU {iou:.2f}")
    return tally(found)


def _same_boxes(rows: np.ndarray) -> Sequence[tuple[int, int, float]]:
    """Returns pairs of rows (k, 5) of one class that cover the same place, with their IoU."""
    if len(rows) < 2:
        return []
    low, high = rows[:, 1:3] - rows[:, 3:5] / 2, rows[:, 1:3] + rows[:, 3:5] / 2
    sides = np.minimum(high[:, None], high[None]) - np.maximum(low[:, None], low[None])
    common = sides.clip(min=0).prod(axis=2)
    area = rows[:, 3:5].prod(axis=1)
    iou = common / np.maximum(area[:, None] + area[None] - common, 1e-12)
    alike = np.triu((iou > _SAME_IOU) & (rows[:, None, 0] == rows[None, :, 0]), 1)
    return [(int(a), int(b), float(iou[a, b])) for a, b in zip(*np.nonzero(alike), strict=True)]

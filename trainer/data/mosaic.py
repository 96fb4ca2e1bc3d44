"""Augmentations that combine places: a mosaic of four images, and objects pasted once more in their mirror place."""

from __future__ import annotations

from collections.abc import Sequence

import cv2
import numpy as np

from trainer.data.augment import Sample, join_segments
from trainer.data.images import FILL

_MAX_COVERED = 0.30
"""An object is not pasted where it would hide more than this share of another."""


def mosaic(samples: Sequence[Sample], image_size: int, generator: np.random.Generator) -> Sample:
    """Four samples around a random centre of a canvas twice ``image_size`` wide and high.

    The samples come to lie upper left, upper right, lower left, lower right, each touching the centre, which is
    drawn from 0.5 to 1.5 times ``image_size``. What reaches beyond the canvas is cut off.
    """
    side = 2 * image_size
    centre_y, centre_x = (int(generator.uniform(0.5 * image_size, 1.5 * image_size)) for _ in range(2))
    canvas = np.full((side, side, 3), FILL, np.uint8)
    placed = []
    for corner, sample in enumerate(samples):
        height, width = sample.shape_hw
        left = centre_x - width if corner in (0, 2) else centre_x
        top = centre_y - height if corner in (0, 1) else centre_y
        x1, y1, x2, y2 = max(left, 0), max(top, 0), min(left + width, side), min(top + height, side)
        canvas[y1:y2, x1:x2] = sample.image[y1 - top : y2 - top, x1 - left : x2 - left]
        placed.append(_moved(sample, left, top, side))
    return Sample(canvas, np.concatenate([sample.boxes for sample in placed]), join_segments(placed))


def _moved(sample: Sample, left: int, top: int, side: int) -> Sample:
    """The sample's objects in a canvas, cut at its borders; the image is left as it is."""
    boxes = sample.boxes.copy()
    boxes[:, 1:] = np.clip(boxes[:, 1:] + np.array((left, top, left, top), np.float32), 0, side)
    offset = np.array((left, top), np.float32)
    segments = [np.clip(polygon + offset, 0, side) for polygon in sample.segments]
    return Sample(sample.image, boxes, segments)


def copy_paste(sample: Sample, probability: float, generator: np.random.Generator) -> Sample:
    """Each object that has a polygon is pasted, mirrored, in its mirror place with ``probability``.

    Not where it would cover 30 % or more of an object (Ghiasi et al., "Simple copy-paste", 2021, as in YOLOv5).
    """
    candidates = [at for at, polygon in enumerate(sample.segments) if len(polygon)]
    if probability <= 0 or not candidates:
        return sample
    chosen = generator.permutation(len(candidates))[: round(probability * len(candidates))]
    width = sample.shape_hw[1]
    image, boxes, segments = sample.image.copy(), sample.boxes, list(sample.segments)
    for at in chosen:
        source = candidates[int(at)]
        class_index, left, top, right, bottom = sample.boxes[source]
        mirrored = np.array((class_index, width - right, top, width - left, bottom), np.float32)
        if (_covered_share(mirrored[1:], boxes[:, 1:]) >= _MAX_COVERED).any():
            continue
        polygon = sample.segments[source]
        _paste_mirrored(image, sample.image, polygon)
        boxes = np.concatenate((boxes, mirrored[None]))
        segments.append(np.stack((width - polygon[:, 0], polygon[:, 1]), axis=1))
    return Sample(image, boxes, segments)


def _covered_share(box_xyxy: np.ndarray, others_xyxy: np.ndarray) -> np.ndarray:
    """How much of each other box a box would hide, 0 to 1."""
    low = np.maximum(box_xyxy[:2], others_xyxy[:, :2])
    high = np.minimum(box_xyxy[2:], others_xyxy[:, 2:])
    sizes = others_xyxy[:, 2:] - others_xyxy[:, :2]
    return np.clip(high - low, 0, None).prod(axis=1) / (sizes.prod(axis=1) + 1e-9)


def _paste_mirrored(image: np.ndarray, source: np.ndarray, polygon: np.ndarray) -> None:
    """Writes the pixels inside a polygon of ``source`` into ``image`` at their mirror place."""
    height, width = source.shape[:2]
    x1, y1 = np.clip(np.floor(polygon.min(axis=0)).astype(int), 0, (width, height))
    x2, y2 = np.clip(np.ceil(polygon.max(axis=0)).astype(int), 0, (width, height))
    if x2 <= x1 or y2 <= y1:
        return
    mask = np.zeros((y2 - y1, x2 - x1), np.uint8)
    # A pixel's centre is half a pixel from its index; polygons are in the coordinates of its edges.
    corners = np.round(polygon - 0.5).astype(np.int32) - (x1, y1)
    cv2.fillPoly(mask, [corners.astype(np.int32)], 1)
    inside = mask[:, ::-1].astype(bool)
    image[y1:y2, width - x2 : width - x1][inside] = source[y1:y2, x1:x2][:, ::-1][inside]

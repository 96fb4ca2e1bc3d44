"""Combines parts of images: a mosaic of four images, and objects pasted once more at their mirrored position."""

from __future__ import annotations

from collections.abc import Sequence

import cv2
import numpy as np

from trainer.data.augment.basic import Sample
from trainer.data.augment.canvas import Canvas, Tile, place

_MAX_COVERED = 0.30
"""An object is not pasted if it would hide this share of another object, or more."""


def mosaic(samples: Sequence[Sample], image_size: int, generator: np.random.Generator) -> Canvas:
    """Puts four samples around a random center of a canvas twice ``image_size`` wide and high.

    The samples lie upper left, upper right, lower left and lower right, each touching the center, which is drawn from
    0.5 to 1.5 times ``image_size``. Parts of samples beyond the canvas are cut off.
    """
    center_y, center_x = (int(value) for value in generator.uniform(0.5 * image_size, 1.5 * image_size, 2))
    left_tops = [
        (
            center_x - sample.shape_hw[1] if corner in (0, 2) else center_x,
            center_y - sample.shape_hw[0] if corner in (0, 1) else center_y,
        )
        for corner, sample in enumerate(samples)
    ]
    return place(samples, left_tops, (2 * image_size, 2 * image_size))


def copy_paste(canvas: Canvas, probability: float, generator: np.random.Generator) -> Canvas:
    """Pastes mirrored copies of objects that have a polygon at their mirrored positions, each with ``probability``.

    An object that would cover 30 % or more of another is not pasted (Ghiasi et al., "Simple copy-paste", 2021, as in
    YOLOv5).
    """
    candidates = [at for at, polygon in enumerate(canvas.segments) if len(polygon)]
    if probability <= 0 or not candidates:
        return canvas
    chosen = generator.permutation(len(candidates))[: round(probability * len(candidates))]
    height, width = canvas.canvas_hw
    source = canvas.paint(0, 0, width, height)
    image, boxes, segments = source.copy(), canvas.boxes, list(canvas.segments)
    for at in chosen:
        row = candidates[int(at)]
        class_index, left, top, right, bottom = canvas.boxes[row]
        mirrored = np.array((class_index, width - right, top, width - left, bottom), np.float32)
        if (_covered_share(mirrored[1:], boxes[:, 1:]) >= _MAX_COVERED).any():
            continue
        polygon = canvas.segments[row]
        _paste_mirrored(image, source, polygon)
        boxes = np.concatenate((boxes, mirrored[None]))
        segments.append(np.stack((width - polygon[:, 0], polygon[:, 1]), axis=1))
    return Canvas((Tile(image, 0, 0),), canvas.canvas_hw, boxes, segments)


def _covered_share(box_xyxy: np.ndarray, others_xyxy: np.ndarray) -> np.ndarray:
    """Returns the share of each other box that a box would hide, 0 to 1."""
    low = np.maximum(box_xyxy[:2], others_xyxy[:, :2])
    high = np.minimum(box_xyxy[2:], others_xyxy[:, 2:])
    sizes = others_xyxy[:, 2:] - others_xyxy[:, :2]
    return np.clip(high - low, 0, None).prod(axis=1) / (sizes.prod(axis=1) + 1e-9)


def _paste_mirrored(image: np.ndarray, source: np.ndarray, polygon: np.ndarray) -> None:
    """Writes the pixels inside a polygon of ``source`` into ``image`` at their mirrored position."""
    height, width = source.shape[:2]
    x1, y1 = (int(v) for v in np.clip(np.floor(polygon.min(axis=0)), 0, (width, height)))
    x2, y2 = (int(v) for v in np.clip(np.ceil(polygon.max(axis=0)), 0, (width, height)))
    if x2 <= x1 or y2 <= y1:
        return
    mask = np.zeros((y2 - y1, x2 - x1), np.uint8)
    # A pixel's center is half a pixel from its index; polygons are in the coordinates of pixel edges.
    corners = np.round(polygon - 0.5).astype(np.int32) - np.array((x1, y1), np.int32)
    cv2.fillPoly(mask, [corners], (1,))
    inside = mask[:, ::-1].astype(bool)
    image[y1:y2, width - x2 : width - x1][inside] = source[y1:y2, x1:x2][:, ::-1][inside]

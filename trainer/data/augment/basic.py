"""Augments whole images: letterbox and blending.

The augmentations are those that YOLOv5 publishes, under the names of its hyperparameters. All randomness comes from
the generator passed in. ``mosaic`` and ``warp`` combine or move parts of images, ``finish`` has color and flips.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import cv2
import numpy as np

from trainer.data.images import FILL


@dataclass
class Sample:
    """An image with its objects. No function changes the arrays of a sample passed in."""

    image: np.ndarray
    """uint8 BGR (height, width, 3)."""
    boxes: np.ndarray
    """float32 (n, 5): class, then left, top, right, bottom in pixels."""
    segments: list[np.ndarray] = field(default_factory=list)
    """A float32 (points, 2) polygon in pixels per box, without points for plain boxes; empty if all boxes are plain."""

    @property
    def shape_hw(self) -> tuple[int, int]:
        """Rows and columns of the image."""
        return self.image.shape[0], self.image.shape[1]


@dataclass(frozen=True)
class AugmentationSettings:
    """Strength of each augmentation, under YOLOv5's hyperparameter names. The defaults change nothing."""

    hsv_h: float = 0.0
    hsv_s: float = 0.0
    hsv_v: float = 0.0
    degrees: float = 0.0
    translate: float = 0.0
    scale: float = 0.0
    shear: float = 0.0
    perspective: float = 0.0
    flipud: float = 0.0
    fliplr: float = 0.0
    mosaic: float = 0.0
    mixup: float = 0.0
    copy_paste: float = 0.0


@dataclass(frozen=True)
class Letterbox:
    """A letterbox: size and position of an image in a canvas."""

    resized_hw: tuple[int, int]
    ratio: float
    padding_wh: tuple[float, float]
    """Half of the free width and height in pixels, with half a pixel if the free width or height is odd."""
    canvas_hw: tuple[int, int]

    @property
    def left_top(self) -> tuple[int, int]:
        """Position of the image's first pixel in the canvas, in whole pixels."""
        return round(self.padding_wh[0] - 0.1), round(self.padding_wh[1] - 0.1)


def fit_letterbox(
    shape_hw: tuple[int, int], canvas_hw: tuple[int, int], *, auto: bool = False, scaleup: bool = True, stride: int = 32
) -> Letterbox:
    """Returns the letterbox of an image in a canvas; the image keeps its aspect ratio.

    ``auto`` cuts the canvas to the smallest multiple of ``stride``; without ``scaleup`` small images stay small.
    """
    height, width = shape_hw
    ratio = min(canvas_hw[0] / height, canvas_hw[1] / width)
    if not scaleup:
        ratio = min(ratio, 1.0)
    resized_h, resized_w = max(1, round(height * ratio)), max(1, round(width * ratio))
    free_h, free_w = canvas_hw[0] - resized_h, canvas_hw[1] - resized_w
    if auto:
        free_h, free_w = free_h % stride, free_w % stride
    return Letterbox((resized_h, resized_w), ratio, (free_w / 2, free_h / 2), (resized_h + free_h, resized_w + free_w))


def letterbox(image: np.ndarray, box: Letterbox) -> np.ndarray:
    """Draws the image in its canvas, gray around the image."""
    height, width = box.resized_hw
    if image.shape[:2] != (height, width):
        image = cv2.resize(image, (width, height), interpolation=cv2.INTER_LINEAR)
    left, top = box.left_top
    bottom, right = box.canvas_hw[0] - height - top, box.canvas_hw[1] - width - left
    if not any((left, top, right, bottom)):
        return image
    return cv2.copyMakeBorder(image, top, bottom, left, right, cv2.BORDER_CONSTANT, value=(FILL, FILL, FILL))


def mixup(sample: Sample, other: Sample, generator: np.random.Generator) -> Sample:
    """Blends two samples of one size and keeps the objects of both (Zhang et al., "mixup", 2018; beta 32, 32)."""
    share = float(generator.beta(32.0, 32.0))
    image = cv2.addWeighted(sample.image, share, other.image, 1.0 - share, 0.0)
    segments = join_segments([sample, other])
    return Sample(image, np.concatenate((sample.boxes, other.boxes)), segments)


def join_segments(samples: list[Sample]) -> list[np.ndarray]:
    """Joins the polygons of several samples, one a box; returns an empty list if no sample has polygons."""
    if not any(sample.segments for sample in samples):
        return []
    empty = np.zeros((0, 2), np.float32)
    return [polygon for sample in samples for polygon in (sample.segments or [empty] * len(sample.boxes))]

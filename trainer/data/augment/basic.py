"""Augments whole images: letterbox, flips, color, blending, most of them as one ``Sample -> Sample`` step.

The augmentations are those that YOLOv5 publishes, under the names of its hyperparameters. All randomness comes from
the generator passed in. ``mosaic`` and ``warp`` hold the augmentations that combine or move parts of images.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import cv2
import numpy as np

from trainer.data.images import FILL

_STRIP_ROWS = 64


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


def jitter_color(sample: Sample, settings: AugmentationSettings, generator: np.random.Generator) -> Sample:
    """Scales hue, saturation and brightness by factors from 1 - gain to 1 + gain."""
    gains = np.array((settings.hsv_h, settings.hsv_s, settings.hsv_v))
    factors = generator.uniform(-1.0, 1.0, 3) * gains + 1.0
    if not gains.any():
        return sample
    levels = np.arange(256, dtype=np.float64)
    tables = (
        (levels * factors[0] % 180).astype(np.uint8),
        np.clip(levels * factors[1], 0, 255).astype(np.uint8),
        np.clip(levels * factors[2], 0, 255).astype(np.uint8),
    )
    jittered = np.empty_like(sample.image)
    for top in range(0, sample.image.shape[0], _STRIP_ROWS):
        # Strips fit the processor's cache, and three tables are faster than one of three channels: half the time.
        rows = slice(top, top + _STRIP_ROWS)
        hsv = cv2.cvtColor(sample.image[rows], cv2.COLOR_BGR2HSV)
        channels = [cv2.LUT(channel, table) for channel, table in zip(cv2.split(hsv), tables, strict=True)]
        cv2.cvtColor(cv2.merge(channels), cv2.COLOR_HSV2BGR, dst=jittered[rows])
    return Sample(jittered, sample.boxes, sample.segments)


def flip_randomly(sample: Sample, settings: AugmentationSettings, generator: np.random.Generator) -> Sample:
    """Flips upside down with probability ``flipud`` and left to right with probability ``fliplr``."""
    upside_down, left_right = generator.random(2) < (settings.flipud, settings.fliplr)
    if upside_down:
        sample = flip(sample, axis=0)
    if left_right:
        sample = flip(sample, axis=1)
    return sample


def flip(sample: Sample, axis: int) -> Sample:
    """Mirrors a sample: rows reversed for axis 0, columns for axis 1."""
    size = sample.shape_hw[axis]
    low, high = (2, 4) if axis == 0 else (1, 3)
    boxes = sample.boxes.copy()
    boxes[:, low], boxes[:, high] = size - sample.boxes[:, high], size - sample.boxes[:, low]
    segments = [polygon.copy() for polygon in sample.segments]
    for polygon in segments:
        polygon[:, 1 - axis] = size - polygon[:, 1 - axis]
    return Sample(cv2.flip(sample.image, axis), boxes, segments)


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

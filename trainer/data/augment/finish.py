"""Ends the making of a sample: color, flips and the order of channels, in one pass from image to batch."""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np

from trainer.data.augment.basic import AugmentationSettings

_STRIP_ROWS = 64
"""Rows that fit the processor's cache: half the time of a whole image."""

ColorTables = tuple[np.ndarray, np.ndarray, np.ndarray]
"""New value by old one, for hue, saturation and brightness: uint8 (256,) each."""


@dataclass(frozen=True)
class Finish:
    """What is still to be done with a sample whose place and size are settled."""

    tables: ColorTables | None = None
    upside_down: bool = False
    left_right: bool = False

    def write(self, image: np.ndarray, planes: np.ndarray) -> None:
        """Writes an image, uint8 BGR (height, width, 3), finished into its place in a batch, RGB (3, height, width)."""
        height = image.shape[0]
        buffer = np.empty((0, 0, 3), np.uint8)
        for top in range(0, height, _STRIP_ROWS):
            bottom = min(top + _STRIP_ROWS, height)
            strip = image[top:bottom]
            if self.tables is not None:
                buffer = buffer if buffer.shape == strip.shape else np.empty_like(strip)
                _recolor(strip, self.tables, buffer)
                strip = buffer
            if self.upside_down:
                strip = cv2.flip(strip, 0)
            if self.left_right:
                strip = cv2.flip(strip, 1)
            rows = slice(height - bottom, height - top) if self.upside_down else slice(top, bottom)
            # Each channel goes straight into its plane: six times as fast as transposing and copying.
            cv2.split(strip, [planes[2, rows], planes[1, rows], planes[0, rows]])

    def boxes(self, boxes: np.ndarray, shape_hw: tuple[int, int]) -> np.ndarray:
        """Returns the boxes, float32 (n, 5) with xyxy in pixels, of a finished image of this size."""
        finished: np.ndarray = boxes.copy()
        if self.upside_down:
            finished[:, 2], finished[:, 4] = shape_hw[0] - boxes[:, 4], shape_hw[0] - boxes[:, 2]
        if self.left_right:
            finished[:, 1], finished[:, 3] = shape_hw[1] - boxes[:, 3], shape_hw[1] - boxes[:, 1]
        return finished


AS_IT_IS = Finish()


def draw_finish(settings: AugmentationSettings, generator: np.random.Generator) -> Finish:
    """Draws factors from 1 - gain to 1 + gain for hue, saturation and brightness, and flips by their probabilities.

    Always draws five numbers, so that one setting does not change the numbers of another.
    """
    gains = np.array((settings.hsv_h, settings.hsv_s, settings.hsv_v))
    factors = generator.uniform(-1.0, 1.0, 3) * gains + 1.0
    upside_down, left_right = generator.random(2) < (settings.flipud, settings.fliplr)
    tables = _color_tables(factors) if gains.any() else None
    return Finish(tables, upside_down=bool(upside_down), left_right=bool(left_right))


def _color_tables(factors: np.ndarray) -> ColorTables:
    levels = np.arange(256, dtype=np.float64)
    return (
        (levels * factors[0] % 180).astype(np.uint8),
        np.clip(levels * factors[1], 0, 255).astype(np.uint8),
        np.clip(levels * factors[2], 0, 255).astype(np.uint8),
    )


def _recolor(strip: np.ndarray, tables: ColorTables, recolored: np.ndarray) -> None:
    """Writes a strip, uint8 BGR, with its hue, saturation and brightness looked up in tables."""
    hsv = cv2.cvtColor(strip, cv2.COLOR_BGR2HSV)
    channels = cv2.split(hsv)
    for channel, table in zip(channels, tables, strict=True):  # faster than one table of three channels
        cv2.LUT(channel, table, dst=channel)
    cv2.cvtColor(cv2.merge(channels, dst=hsv), cv2.COLOR_HSV2BGR, dst=recolored)

"""Puts images on a canvas; pixels are painted only for the window of the canvas that is needed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from trainer.data.augment.basic import Sample, fit_letterbox, join_segments
from trainer.data.augment.polygons import clip_polygon
from trainer.data.images import FILL


@dataclass(frozen=True)
class Tile:
    """An image and the position of its first pixel on the canvas, which may lie outside."""

    image: np.ndarray
    left: int
    top: int


@dataclass(frozen=True)
class Canvas:
    """A gray canvas with images on it, none over another, and the objects of all of them."""

    tiles: tuple[Tile, ...]
    canvas_hw: tuple[int, int]
    boxes: np.ndarray
    """float32 (n, 5): class, then xyxy in pixels of the canvas."""
    segments: list[np.ndarray]
    """As in Sample."""

    def paint(self, left: int, top: int, right: int, bottom: int) -> np.ndarray:
        """Paints a window, uint8 BGR, which may reach beyond the canvas; the result may share memory with a tile."""
        if len(self.tiles) == 1:
            tile = self.tiles[0]
            height, width = tile.image.shape[:2]
            x1, y1, x2, y2 = left - tile.left, top - tile.top, right - tile.left, bottom - tile.top
            if x1 >= 0 and y1 >= 0 and x2 <= width and y2 <= height and self._holds(left, top, right, bottom):
                return tile.image[y1:y2, x1:x2]
        window = np.full((bottom - top, right - left, 3), FILL, np.uint8)
        for tile in self.tiles:
            height, width = tile.image.shape[:2]
            x1, x2 = max(tile.left, left, 0), min(tile.left + width, right, self.canvas_hw[1])
            y1, y2 = max(tile.top, top, 0), min(tile.top + height, bottom, self.canvas_hw[0])
            if x1 < x2 and y1 < y2:
                part = tile.image[y1 - tile.top : y2 - tile.top, x1 - tile.left : x2 - tile.left]
                window[y1 - top : y2 - top, x1 - left : x2 - left] = part
        return window

    def _holds(self, left: int, top: int, right: int, bottom: int) -> bool:
        return left >= 0 and top >= 0 and right <= self.canvas_hw[1] and bottom <= self.canvas_hw[0]


def place(samples: Sequence[Sample], left_tops: Sequence[tuple[int, int]], canvas_hw: tuple[int, int]) -> Canvas:
    """Puts samples on a canvas, each at its left and top; objects are cut at the canvas's border."""
    boxes, moved = [], []
    limits = np.array((canvas_hw[1], canvas_hw[0]), np.float32)
    for sample, left_top in zip(samples, left_tops, strict=True):
        offset = np.array(left_top, np.float32)
        rows = sample.boxes.copy()
        rows[:, 1:] = np.clip(rows[:, 1:] + np.tile(offset, 2), 0, np.tile(limits, 2))
        boxes.append(rows)
        moved.append(
            Sample(
                sample.image,
                rows,
                [clip_polygon(polygon + offset, canvas_hw) if len(polygon) else polygon for polygon in sample.segments],
            )
        )
    tiles = tuple(Tile(sample.image, *left_top) for sample, left_top in zip(samples, left_tops, strict=True))
    return Canvas(tiles, canvas_hw, np.concatenate(boxes), join_segments(moved))


def letterboxed(sample: Sample, canvas_hw: tuple[int, int]) -> Canvas:
    """Puts a sample in the middle of a canvas that is at least as large."""
    fit = fit_letterbox(sample.shape_hw, canvas_hw, scaleup=False)
    assert fit.resized_hw == sample.shape_hw, "the image is larger than its canvas"
    return place([sample], [fit.left_top], canvas_hw)

"""One label file: rows of numbers become boxes and polygons, or a reason with its line."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

_TOLERANCE = 1e-3
"""Rounding that writers of labels are forgiven: a coordinate this far outside 0..1 is moved to the border."""


class LabelError(Exception):
    """A label file that cannot be used. ``line`` counts from 1; ``out_of_range`` tells coordinates from nonsense."""

    def __init__(self, line: int, why: str, *, out_of_range: bool = False) -> None:
        super().__init__(why)
        self.line = line
        self.why = why
        self.out_of_range = out_of_range


@dataclass
class LabelRows:
    """The rows of a label file that can be trained on, and what was left out."""

    boxes: np.ndarray
    """float32 (k, 5): class, cx, cy, w, h; normalized to the image."""
    polygons: list[np.ndarray]
    """float32 (points, 2) per row, normalized, empty for rows that are boxes; an empty list if all rows are boxes."""
    lines: list[int]
    """The line of each row in the file, from 1."""
    duplicates: list[int] = field(default_factory=list)
    """Lines that repeat an earlier row."""
    empty_boxes: list[int] = field(default_factory=list)
    """Lines whose box has no width or no height."""


def read_label_file(path: Path) -> LabelRows | None:
    """The rows of a label file, or None where there is no such file. Raises LabelError."""
    try:
        content = path.read_bytes()
    except FileNotFoundError:
        return None
    except OSError as error:
        raise LabelError(1, error.strerror or str(error)) from error
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError:
        raise LabelError(1, "not a text file") from None
    return parse_label_rows(text)


def parse_label_rows(text: str) -> LabelRows:
    """The rows of a label file's text: a class, then 4 numbers of a box or 3 or more points. Raises LabelError."""
    boxes: list[list[float]] = []
    polygons: list[np.ndarray] = []
    rows = LabelRows(np.zeros((0, 5), np.float32), [], [])
    seen: set[tuple[float, ...]] = set()
    for line, row in enumerate(text.splitlines(), start=1):
        tokens = row.split()
        if not tokens:
            continue
        values = _parse_row(line, tokens)
        if values in seen:
            rows.duplicates.append(line)
            continue
        seen.add(values)
        polygon = np.array(values[1:] if len(values) > 5 else (), np.float32).reshape(-1, 2)
        box = _bounds(polygon) if len(polygon) else values[1:]
        if min(box[2], box[3]) <= 0:
            rows.empty_boxes.append(line)
            continue
        boxes.append([values[0], *box])
        polygons.append(polygon)
        rows.lines.append(line)
    rows.boxes = np.array(boxes, np.float32).reshape(-1, 5)
    rows.polygons = polygons if any(len(polygon) for polygon in polygons) else []
    return rows


def _parse_row(line: int, tokens: list[str]) -> tuple[float, ...]:
    """One row's numbers, checked."""
    try:
        values = [float(token) for token in tokens]
    except ValueError:
        wrong = next(token for token in tokens if not _is_number(token))
        raise LabelError(line, f"{wrong[:40]!r} is not a number") from None
    if not all(map(math.isfinite, values)):
        raise LabelError(line, "NaN or infinity")
    if len(values) == 6:
        raise LabelError(line, "6 columns: expected class cx cy w h; are these predictions with a confidence?")
    if len(values) != 5 and (len(values) < 7 or len(values) % 2 == 0):
        raise LabelError(line, f"{len(values)} columns: expected class cx cy w h, or class x1 y1 x2 y2 x3 y3 ...")
    if values[0] < 0 or values[0] != int(values[0]):
        raise LabelError(line, f"class {tokens[0]} is not a whole number from 0 on")
    low, high = min(values[1:]), max(values[1:])
    if low < -_TOLERANCE:
        raise LabelError(line, f"coordinate {low:g} is below 0", out_of_range=True)
    if high > 1 + _TOLERANCE:
        why = f"coordinate {high:g} is above 1: coordinates are fractions of the image, not pixels"
        raise LabelError(line, why, out_of_range=True)
    if low < 0 or high > 1:
        values[1:] = [min(max(value, 0.0), 1.0) for value in values[1:]]
    return tuple(values)


def _is_number(token: str) -> bool:
    try:
        float(token)
    except ValueError:
        return False
    return True


def _bounds(polygon: np.ndarray) -> tuple[float, float, float, float]:
    """cx, cy, w, h of the box around a polygon."""
    left, top = (float(v) for v in polygon.min(axis=0))
    right, bottom = (float(v) for v in polygon.max(axis=0))
    return (left + right) / 2, (top + bottom) / 2, right - left, bottom - top

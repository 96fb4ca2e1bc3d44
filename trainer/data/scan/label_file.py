"""Reads one label file: rows of numbers become boxes and polygons, or a reason with its line."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from trainer.reading.text_file import TextFileError, read_text

LIMIT_BYTES = 64 * 2**20
_TOLERANCE = 1e-3
"""Rounding that writers of labels are forgiven: a coordinate this far outside 0..1 is moved to the border."""
_CLIPPED = 0.05
"""A coordinate this far outside means a box that is cut at the border, and counted; further out are pixels."""


class LabelError(Exception):
    """A label file that cannot be used. ``line`` counts from 1; ``out_of_range`` is for coordinates."""

    def __init__(self, line: int, why: str, *, out_of_range: bool = False, unreadable: bool = False) -> None:
        super().__init__(why)
        self.line = line
        self.why = why
        self.out_of_range = out_of_range
        self.unreadable = unreadable


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
    clipped: list[tuple[int, float]] = field(default_factory=list)
    """Lines whose box was cut at the border, and the coordinate furthest out."""
    keypoint_like: list[int] = field(default_factory=list)
    """Lines read as polygons that look like a box with keypoints."""
    is_blank: bool = False
    """The file has no row at all, which says that the image shows nothing."""


def read_label_file(path: Path, keypoint_numbers: int = 0) -> LabelRows | None:
    """Returns the rows of a label file, None if there is no such file; see ``parse_label_rows``. Raises LabelError."""
    try:
        return parse_label_rows(read_text(path, limit_bytes=LIMIT_BYTES), keypoint_numbers)
    except (FileNotFoundError, NotADirectoryError):
        return None
    except TextFileError as error:
        raise LabelError(1, error.seen) from None
    except OSError as error:
        raise LabelError(1, error.strerror or str(error), unreadable=True) from error


def parse_label_rows(text: str, keypoint_numbers: int = 0) -> LabelRows:
    """Returns the rows of a label file's text: a class, then 4 numbers of a box or 3 or more points.

    With ``keypoint_numbers``, from the data set's kpt_shape, that many follow the box and are left out. Raises
    LabelError.
    """
    lines = [(line, row.split()) for line, row in enumerate(text.splitlines(), start=1)]
    return check_rows((line, _parse_row(line, tokens, keypoint_numbers), None) for line, tokens in lines if tokens)


def check_rows(found: Iterable[tuple[int, tuple[float, ...], np.ndarray | None]]) -> LabelRows:
    """Returns what can be trained on of (line, values, polygon), and what was left out.

    Values are a class and a box or the points of a polygon, as fractions of the image. A polygon apart, float32
    (points, 2), is one beside its box; without points there is none. Raises LabelError.
    """
    boxes: list[list[float]] = []
    polygons: list[np.ndarray] = []
    rows = LabelRows(np.zeros((0, 5), np.float32), [], [], is_blank=True)
    seen: set[tuple[tuple[float, ...], bytes]] = set()
    for line, values, apart in found:
        rows.is_blank = False
        content = values, b"" if apart is None else apart.tobytes()
        if content in seen:
            rows.duplicates.append(line)
            continue
        seen.add(content)
        if not all(map(math.isfinite, values)):
            raise LabelError(line, "NaN or infinity")
        inside = _moved_inside(line, values)
        if inside is not values and (furthest := _furthest(values)) > _TOLERANCE:
            rows.clipped.append((line, furthest))
        if apart is not None:
            polygon, box = apart.clip(0, 1), inside[1:]
        else:
            polygon = np.array(inside[1:] if len(inside) > 5 else (), np.float32).reshape(-1, 2)
            box = _bounds(polygon) if len(polygon) else inside[1:]
        if min(box[2], box[3]) <= 0:
            rows.empty_boxes.append(line)
            continue
        if apart is None and len(polygon) and _looks_like_keypoints(values):
            rows.keypoint_like.append(line)
        boxes.append([values[0], *box])
        polygons.append(polygon)
        rows.lines.append(line)
    rows.boxes = np.array(boxes, np.float32).reshape(-1, 5)
    rows.polygons = polygons if any(len(polygon) for polygon in polygons) else []
    return rows


def _parse_row(line: int, tokens: list[str], keypoint_numbers: int) -> tuple[float, ...]:
    """Returns one row's numbers without keypoints, checked but for their range. Raises LabelError."""
    try:
        values = [float(token) for token in tokens]
    except ValueError:
        wrong = next(token for token in tokens if not _is_number(token))
        raise LabelError(line, f"{wrong[:40]!r} is not a number") from None
    if not all(map(math.isfinite, values)):
        raise LabelError(line, "NaN or infinity")
    if keypoint_numbers:
        if len(values) not in (5, 5 + keypoint_numbers):
            wanted = f"{5 + keypoint_numbers}, a box and the {keypoint_numbers} numbers of kpt_shape"
            raise LabelError(line, f"{len(values)} columns: expected {wanted}")
        del values[5:]
    if len(values) == 6:
        raise LabelError(line, "6 columns: expected class cx cy w h; are these predictions with a confidence?")
    if len(values) != 5 and (len(values) < 7 or len(values) % 2 == 0):
        hint = "; are these keypoints? then the YAML file needs kpt_shape" if len(values) > 7 else ""
        raise LabelError(line, f"{len(values)} columns: expected class cx cy w h, or class x1 y1 x2 y2 x3 y3 ...{hint}")
    if values[0] < 0 or values[0] != int(values[0]) or values[0] > 2**31:
        raise LabelError(line, f"class {tokens[0][:40]} is not a whole number from 0 on")
    return tuple(values)


def _moved_inside(line: int, values: tuple[float, ...]) -> tuple[float, ...]:
    """Returns the row with what lies a little outside the image cut at its border; the same object if all is inside.

    Raises LabelError for a coordinate that lies further outside.
    """
    low, high = min(values[1:]), max(values[1:])
    is_box = len(values) == 5
    if low < -_CLIPPED or (is_box and min(values[3:]) < -_TOLERANCE):
        raise LabelError(line, f"coordinate {low:g} is below 0", out_of_range=True)
    if high > 1 + _CLIPPED:
        hint = "; are these keypoints? then the YAML file needs kpt_shape" if _looks_like_keypoints(values) else ""
        why = f"coordinate {high:g} is above 1: coordinates are fractions of the image, not pixels{hint}"
        raise LabelError(line, why, out_of_range=True)
    if low >= 0 and high <= 1:
        return values
    if not is_box or _furthest(values) <= _TOLERANCE:
        return (values[0], *(min(max(value, 0.0), 1.0) for value in values[1:]))
    _, x, y, width, height = values
    left, right = (min(max(x + side * width / 2, 0.0), 1.0) for side in (-1, 1))
    top, bottom = (min(max(y + side * height / 2, 0.0), 1.0) for side in (-1, 1))
    return values[0], (left + right) / 2, (top + bottom) / 2, right - left, bottom - top


def _furthest(values: tuple[float, ...]) -> float:
    """Returns how far outside the image the row's outermost coordinate lies."""
    return max(-min(values[1:]), max(values[1:]) - 1)


def _looks_like_keypoints(values: tuple[float, ...]) -> bool:
    """Returns whether a polygon could be a box and points of x, y and a visibility of 0, 1 or 2, some of them not 0."""
    seen = values[7::3]
    return len(values) > 7 and (len(values) - 5) % 3 == 0 and set(seen) <= {0.0, 1.0, 2.0} and any(seen)


def _is_number(token: str) -> bool:
    try:
        float(token)
    except ValueError:
        return False
    return True


def _bounds(polygon: np.ndarray) -> tuple[float, float, float, float]:
    """Returns cx, cy, w, h of the box around a polygon."""
    left, top = (float(v) for v in polygon.min(axis=0))
    right, bottom = (float(v) for v in polygon.max(axis=0))
    return (left + right) / 2, (top + bottom) / 2, right - left, bottom - top

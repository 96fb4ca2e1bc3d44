"""Gathers the annotations of a split image by image, for formats that have a file an image or few rows."""

from __future__ import annotations

import itertools
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from trainer.data.annotations.tables import SplitAnnotations
from trainer.data.scan.tables import PathTable, RowTable
from trainer.errors import DataError
from trainer.reading.text_file import printable


@dataclass
class ImageRows:
    """What a source says of one image; numbers are pixels."""

    path: str
    size_hw: tuple[int, int] = (0, 0)
    """0 if the source does not say it."""
    source: str = ""
    """The file that was read, '' for an image that none names."""
    rows: list[tuple[str, int, tuple[float, float, float, float], Sequence[tuple[float, float]]]] = field(
        default_factory=list
    )
    """Class name, number in the source, (left, top, right, bottom), points of a polygon."""

    def add(
        self,
        name: str,
        number: int,
        ltrb: tuple[float, float, float, float],
        points: Sequence[tuple[float, float]] = (),
    ) -> None:
        """Adds a row."""
        self.rows.append((name, number, ltrb, points))


def names_in(splits: Mapping[str, Sequence[ImageRows]]) -> tuple[str, ...]:
    """Returns the class names of all splits, sorted, for formats that have no list of them."""
    return tuple(sorted({row[0] for images in splits.values() for image in images for row in image.rows}))


def bounds(points: Sequence[tuple[float, float]]) -> tuple[float, float, float, float]:
    """Returns left, top, right, bottom around some points."""
    xs, ys = [x for x, _ in points], [y for _, y in points]
    return min(xs), min(ys), max(xs), max(ys)


def build(
    images: Sequence[ImageRows], names: Sequence[str], unit: str, left_out: Mapping[str, int]
) -> SplitAnnotations:
    """Returns the tables of a split. Raises DataError for an image that stands twice."""
    ordered = sorted(images, key=lambda image: image.path)
    for first, second in itertools.pairwise(ordered):
        if first.path == second.path:
            raise image_twice(first.path, f"{first.source} and {second.source}")
    class_of = {name: index for index, name in enumerate(names)}
    sources = sorted({image.source for image in ordered if image.source})
    at = {source: index for index, source in enumerate(sources)}
    boxes, points, ids = [], [], []
    for image in ordered:
        height, width = image.size_hw if all(image.size_hw) else (1, 1)
        for name, number, (left, top, right, bottom), polygon in image.rows:
            center = (left + right) / 2 / width, (top + bottom) / 2 / height
            boxes.append((class_of[name], *center, (right - left) / width, (bottom - top) / height))
            points.append((np.array(polygon, np.float64).reshape(-1, 2) / (width, height)).astype(np.float32))
            ids.append(number)
    counts = np.array([len(image.rows) for image in ordered], np.int64)
    return SplitAnnotations(
        images=PathTable(image.path for image in ordered),
        sizes_hw=np.array([image.size_hw for image in ordered], np.int32).reshape(-1, 2),
        boxes=RowTable(np.array(boxes, np.float64).reshape(-1, 5), counts),
        points=RowTable.of(points, 2),
        ids=np.array(ids, np.int64),
        sources=tuple(sources),
        source_of=np.array([at.get(image.source, -1) for image in ordered], np.int32),
        unit=unit,
        left_out=dict(left_out),
    )


def image_twice(path: str | Path, where: str) -> DataError:
    """Returns the error for an image that has two entries."""
    return DataError(
        f"The image {os.path.basename(path)} stands twice in the annotations",
        seen=printable(where),
        expected="one entry for each image, with all its objects",
        next_command="join the two entries, or take one out",
    )

"""The annotations of a split in a few arrays: for each image its rows, and for each row where it was written."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property

import numpy as np

from trainer.data.scan.tables import PathTable, RowTable
from trainer.reading.text_file import printable

Row = tuple[int, tuple[float, ...], np.ndarray]
"""The number that a row has in its source; class, cx, cy, w, h as fractions; a polygon (points, 2), often empty."""


@dataclass(frozen=True)
class SplitAnnotations:
    """The images of a split that has no label file an image, in path order.

    Boxes and polygons are fractions of ``sizes_hw``; where that is 0, of which the source says nothing, pixels.
    """

    images: PathTable
    sizes_hw: np.ndarray
    """int32 (n, 2): the size that the boxes are for, 0 if the source does not say it."""
    boxes: RowTable
    """Per image float64 (k, 5): class, cx, cy, w, h."""
    points: RowTable
    """Per row float32 (points, 2), without points for a box."""
    ids: np.ndarray
    """int64 (m,): the number of each row in its source: a line, an id or a place in a list."""
    sources: tuple[str, ...]
    """Files that the rows were read from."""
    source_of: np.ndarray
    """int32 (n,): per image, which of ``sources`` it has its rows from; -1 for an image that none names."""
    unit: str
    """What the numbers of rows count: 'line', 'annotation id', ..."""
    left_out: dict[str, int] = field(default_factory=dict)
    """Rows that are not trained on, by the reason."""

    def __len__(self) -> int:
        return len(self.images)

    def rows(self, image: str, shape_hw: tuple[int, int]) -> Iterator[Row]:
        """Yields the rows of an image, which as shown has ``shape_hw`` pixels."""
        index = self._index[image]
        start = int(self._row_ends[index])
        scale = np.ones(2) if self.sizes_hw[index].all() else np.array(shape_hw[::-1], np.float64)
        boxes = self.boxes[index] / np.concatenate(([1.0], scale, scale))
        for row, values in enumerate(boxes.tolist()):
            yield int(self.ids[start + row]), tuple(values), (self.points[start + row] / scale).astype(np.float32)

    def size_hw(self, image: str) -> tuple[int, int]:
        """Returns the size that the boxes of an image are for, zeros if its source does not say it."""
        height, width = self.sizes_hw[self._index[image]].tolist()
        return height, width

    def source(self, image: str) -> str:
        """Returns the file that an image has its rows from, '' if there is none."""
        at = int(self.source_of[self._index[image]])
        return self.sources[at] if at >= 0 else ""

    def place(self, image: str, number: int) -> str:
        """Returns where a row stands, for a person: ``a.xml:12``, or ``a.json: annotation id 12 (0001.jpg)``."""
        source = self.source(image)
        if self.unit == "line":
            return printable(f"{source}:{number}")
        return printable(f"{source}: {self.unit} {number} ({os.path.basename(image)})")

    def with_classes(self, to: Sequence[int]) -> SplitAnnotations:
        """Returns the same with class i as ``to[i]``."""
        rows = self.boxes.rows.copy()
        rows[:, 0] = np.asarray(to, np.float64)[rows[:, 0].astype(int)] if len(rows) else rows[:, 0]
        return replace(self, boxes=RowTable(rows, self.boxes.counts))

    @cached_property
    def _index(self) -> dict[str, int]:
        return {path: index for index, path in enumerate(self.images.texts())}

    @cached_property
    def _row_ends(self) -> np.ndarray:
        return np.concatenate(([0], np.cumsum(self.boxes.counts)))

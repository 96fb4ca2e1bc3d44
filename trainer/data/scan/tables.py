"""What a split has for each of its images, in a few arrays instead of an object an image.

A million objects take seconds to make, and each process that is forked afterwards copies the memory of every one that
it looks at, since looking changes an object's count of references.
"""

from __future__ import annotations

import itertools
import os
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import overload

import numpy as np

_ENDS = np.int64


class PathTable(Sequence[Path]):
    """Paths, made into objects when they are asked for."""

    def __init__(self, paths: Iterable[str | Path]) -> None:
        texts = [os.fsencode(path) for path in paths]
        self._blob = b"".join(texts)
        self._ends = np.cumsum([0, *map(len, texts)], dtype=_ENDS)

    def __len__(self) -> int:
        return len(self._ends) - 1

    @overload
    def __getitem__(self, index: int) -> Path: ...
    @overload
    def __getitem__(self, index: slice) -> PathTable: ...
    def __getitem__(self, index: int | slice) -> Path | PathTable:
        if isinstance(index, slice):
            return PathTable(self.text(at) for at in range(*index.indices(len(self))))
        return Path(self.text(index))

    def __iter__(self) -> Iterator[Path]:
        return map(Path, self.texts())

    def __eq__(self, other: object) -> bool:
        if isinstance(other, PathTable):
            return self._blob == other._blob and np.array_equal(self._ends, other._ends)
        return isinstance(other, Sequence) and list(self) == list(other)

    __hash__ = None  # type: ignore[assignment]

    def text(self, index: int) -> str:
        """Returns a path as text. Raises IndexError."""
        at = range(len(self))[index]
        return os.fsdecode(self._blob[self._ends[at] : self._ends[at + 1]])

    def texts(self) -> Iterator[str]:
        """Yields every path as text."""
        ends = self._ends.tolist()
        for start, end in itertools.pairwise(ends):
            yield os.fsdecode(self._blob[start:end])


class RowTable(Sequence[np.ndarray]):
    """Rows of numbers, some for each image: an image's are a view of those of all."""

    def __init__(self, rows: np.ndarray, counts: np.ndarray) -> None:
        """Takes ``rows`` (n, k) by image and ``counts`` (images,), which add up to n. Raises ValueError otherwise."""
        if int(counts.sum()) != len(rows):
            raise ValueError(f"{len(rows)} rows for counts of {int(counts.sum())}")
        self.rows = rows
        self.counts = counts
        self._ends = np.concatenate(([0], np.cumsum(counts, dtype=_ENDS)))

    @classmethod
    def of(cls, each: Sequence[np.ndarray], width: int) -> RowTable:
        """Returns the table of one array (rows, ``width``) an image."""
        rows = np.concatenate([np.zeros((0, width), np.float32), *each])
        return cls(rows, np.array([len(one) for one in each], np.int64))

    def __len__(self) -> int:
        return len(self.counts)

    @overload
    def __getitem__(self, index: int) -> np.ndarray: ...
    @overload
    def __getitem__(self, index: slice) -> list[np.ndarray]: ...
    def __getitem__(self, index: int | slice) -> np.ndarray | list[np.ndarray]:
        if isinstance(index, slice):
            return [self[at] for at in range(*index.indices(len(self)))]
        at = range(len(self))[index]
        return self.rows[self._ends[at] : self._ends[at + 1]]

    def __iter__(self) -> Iterator[np.ndarray]:
        ends = self._ends.tolist()
        return (self.rows[start:end] for start, end in itertools.pairwise(ends))


class PolygonTable(Sequence["list[np.ndarray]"]):
    """Polygons, one a box where an image has any: points (n, 2), without points for a plain box."""

    def __init__(self, points: RowTable, box_counts: np.ndarray) -> None:
        """Takes the points of each box, by image, and the number of boxes of each image."""
        self.points = points
        self._ends = np.concatenate(([0], np.cumsum(box_counts, dtype=_ENDS)))

    @classmethod
    def of(cls, each: Sequence[Sequence[np.ndarray]], box_counts: np.ndarray) -> PolygonTable:
        """Returns the table of one list of polygons an image, which is empty where every box is plain."""
        plain = np.zeros((0, 2), np.float32)
        polygons = [
            polygon
            for row, count in zip(each, box_counts.tolist(), strict=True)
            for polygon in (row if len(row) else [plain] * count)
        ]
        return cls(RowTable.of(polygons, 2), box_counts)

    def __len__(self) -> int:
        return len(self._ends) - 1

    @overload
    def __getitem__(self, index: int) -> list[np.ndarray]: ...
    @overload
    def __getitem__(self, index: slice) -> list[list[np.ndarray]]: ...
    def __getitem__(self, index: int | slice) -> list[np.ndarray] | list[list[np.ndarray]]:
        if isinstance(index, slice):
            return [self[at] for at in range(*index.indices(len(self)))]
        at = range(len(self))[index]
        start, end = self._ends[at], self._ends[at + 1]
        return self.points[start:end] if self.points.counts[start:end].any() else []

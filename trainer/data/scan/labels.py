"""Reads the labels of one image, from its label file or its split's annotations, and says where they stand."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from trainer.data.dataset import DatasetFile, label_path_for
from trainer.data.scan.label_file import LabelError, LabelRows, check_rows, read_label_file
from trainer.reading.text_file import printable

_SAME_SHAPE = 0.01
"""Difference between the proportions of two sizes that rounding leaves, as of a picture made smaller."""


class Labels:
    """The labels of a split, one image at a time."""

    def __init__(self, dataset: DatasetFile, split: str) -> None:
        self._keypoint_numbers = dataset.keypoint_numbers
        self.annotations = dataset.annotations.get(split)
        """The split's rows, None if it has a label file an image."""

    def read(self, image: Path, shape_hw: tuple[int, int]) -> LabelRows | None:
        """Returns the checked rows of an image of ``shape_hw`` pixels as shown, None without a label file.

        Raises LabelError.
        """
        table = self.annotations
        if table is None:
            return read_label_file(label_path_for(image), self._keypoint_numbers)
        text = str(image)
        if not table.source(text):
            return None
        stated = table.size_hw(text)
        if all(stated) and abs(stated[0] * shape_hw[1] / (stated[1] * shape_hw[0]) - 1) > _shape_tolerance(shape_hw):
            sizes = f"{stated[1]} x {stated[0]} in the annotations, {shape_hw[1]} x {shape_hw[0]} as shown"
            raise LabelError(0, f"the boxes are for a picture of other proportions: {sizes}")
        rows = table.rows(text, shape_hw)
        no_points = np.zeros((0, 2), np.float32)
        return check_rows(
            (number, values, polygon if len(polygon) > 2 else no_points) for number, values, polygon in rows
        )

    def place(self, image: Path | str, line: int = 0) -> str:
        """Returns where a row of an image stands, or, for line 0, where its labels do."""
        if self.annotations is None:
            path = printable(label_path_for(Path(image)))
            return f"{path}:{line}" if line else path
        source = self.annotations.source(str(image))
        if line:
            return self.annotations.place(str(image), line)
        return printable(f"{source} ({Path(image).name})" if source else str(image))


def _shape_tolerance(shape_hw: tuple[int, int]) -> float:
    return max(_SAME_SHAPE, 1.5 / min(shape_hw))

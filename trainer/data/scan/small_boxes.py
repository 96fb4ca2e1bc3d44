"""Counts the boxes of which too little is left once their image has the size that a detector sees."""

from __future__ import annotations

import numpy as np

from trainer.data.scan.label_cache import LabeledImages
from trainer.data.scan.label_file import LabelError
from trainer.data.scan.labels import Labels
from trainer.data.scan.report import MAX_EXAMPLES, Tally

LEAST_PX = 2.0
"""A box whose shorter side has fewer pixels is not learned: its loss is nothing, and no anchor is as small."""
_ENOUGH = 0.99
_STEP = 32


def find_small_boxes(images: LabeledImages, image_size: int, labels: Labels) -> tuple[Tally, int]:
    """Returns the boxes below 2 pixels at ``image_size``, and the image size at which 99 in 100 boxes are not below.

    If none is below, the size is ``image_size``.
    """
    if not len(images):
        return Tally(), image_size
    shapes = images.shapes_hw.astype(np.float64)
    image = np.repeat(np.arange(len(images)), images.boxes.counts)
    width, height = images.boxes.rows[:, 3] * shapes[image, 1], images.boxes.rows[:, 4] * shapes[image, 0]
    shorter = np.minimum(width, height) * (1.0 / shapes.max(axis=1))[image]
    small = np.flatnonzero(shorter * image_size < LEAST_PX)
    if not len(small):
        return Tally(), image_size
    examples: list[str] = []
    starts = np.cumsum(images.boxes.counts) - images.boxes.counts
    for index in dict.fromkeys(image[small[:MAX_EXAMPLES]].tolist()):
        rows = small[image[small] == index][:MAX_EXAMPLES] - starts[index]
        sides = shorter[starts[index] : starts[index] + images.boxes.counts[index]]
        examples += _located(images, index, rows, sides * image_size, labels)
    needed = np.quantile(LEAST_PX / shorter, _ENOUGH, method="higher")
    return Tally(len(small), tuple(examples[:MAX_EXAMPLES])), int(-(-max(needed, image_size) // _STEP) * _STEP)


def _located(images: LabeledImages, index: int, rows: np.ndarray, sides_px: np.ndarray, labels: Labels) -> list[str]:
    """Returns where the boxes ``rows`` of an image stand; reads the file again, since a scan keeps no line numbers."""
    image = images.paths[index]
    height, width = images.shapes_hw[index].tolist()
    try:
        found = labels.read(image, (height, width))
    except LabelError:
        found = None
    lines = found.lines if found is not None and len(found.lines) == len(images.boxes[index]) else None
    where = [labels.place(image, lines[row] if lines else 0) for row in rows.tolist()]
    return [f"{at}: {sides_px[row]:.1f} pixels" for at, row in zip(where, rows.tolist(), strict=True)]

"""Checks on a picture that an exported file computes what the model in PyTorch does."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from trainer.boxes import pairwise_iou
from trainer.data.augment.basic import fit_letterbox, letterbox
from trainer.data.demo.dataset import draw_picture
from trainer.data.images import ImageReadError, decode_image
from trainer.errors import DataError, UserError
from trainer.reading.text_file import printable

TOLERANCE = {torch.float32: 1e-3, torch.float16: 3e-2}
"""Largest difference that passes: of scores as they are, of boxes as parts of the image."""
_SAME_BOX_IOU = {torch.float32: 0.98, torch.float16: 0.85}
_NEAR_THRESHOLD = {torch.float32: 1e-3, torch.float16: 3e-2}
_STRAYS = {torch.float32: 0.0, torch.float16: 0.1}
"""Part of the detections that may differ: rounding to float16 moves an IoU across the threshold now and then."""


class ExportError(UserError):
    """An exported file that does not compute what the model does."""


def check_picture(path: Path | None, size_hw: tuple[int, int]) -> Tensor:
    """Returns a picture, or one of the embedded data set, as images_bchw uint8 (1, 3, height, width).

    Raises DataError for a picture that cannot be read.
    """
    if path is None:
        pixels = draw_picture(np.random.default_rng(4)).image
    else:
        try:
            pixels = decode_image(path)
        except ImageReadError as error:
            raise DataError(
                "the picture for the check cannot be read",
                seen=printable(f"{path}: {error}"),
                expected="a picture",
                next_command="give another one, or leave --image out: an embedded picture is used then",
            ) from None
    canvas = letterbox(pixels, fit_letterbox((pixels.shape[0], pixels.shape[1]), size_hw))
    return torch.from_numpy(np.ascontiguousarray(canvas[..., ::-1].transpose(2, 0, 1)))[None]


def largest_difference(expected: Tensor, found: Tensor, image_size: int) -> float:
    """Returns the largest difference of predictions (B, N, 5 + classes); infinite for NaN or another shape.

    Boxes count as parts of the image, scores as they are.
    """
    if expected.shape != found.shape:
        return float("inf")
    difference = (expected.double() - found.double()).abs()
    difference[..., :4] /= image_size
    return float(torch.nan_to_num(difference, nan=float("inf")).max())


def check_predictions(expected: Tensor, found: Tensor, image_size: int, dtype: torch.dtype) -> float:
    """Returns the largest difference. Raises ExportError if it is too large."""
    difference = largest_difference(expected, found, image_size)
    if difference > TOLERANCE[dtype]:
        raise ExportError(
            "the exported file does not compute what the model does, and was not kept",
            seen=f"a difference of {difference:.2g}",
            expected=f"at most {TOLERANCE[dtype]:g}",
        )
    return difference


def check_detections(expected: list[Tensor], found: Tensor, threshold: float, dtype: torch.dtype) -> int:
    """Returns how many detections agree. Raises ExportError if too many are missing, moved or imagined.

    ``expected``: (k, 6) an image, xyxy, score, class. ``found``: (K, 7), the image's number first. What lies at the
    threshold may be on either side of it.
    """
    agreeing = 0
    for image, wanted in enumerate(expected):
        given = found[found[:, 0] == image][:, 1:]
        for name, rows, others in (("missing", wanted, given), ("imagined", given, wanted)):
            clear = rows[rows[:, 4] > threshold + _NEAR_THRESHOLD[dtype]]
            alone = clear[~_has_twin(clear, others, dtype)]
            if len(alone) > _STRAYS[dtype] * len(clear):
                raise ExportError(
                    "the exported file does not find what the model does, and was not kept",
                    seen=f"{len(alone)} of {len(clear)} detections {name}, such as {alone[0].tolist()}",
                    expected="the same detections",
                )
            agreeing += (len(clear) - len(alone)) * (name == "missing")
    return agreeing


def _has_twin(rows: Tensor, others: Tensor, dtype: torch.dtype) -> Tensor:
    """Marks the rows that have another of their class at their place with their score."""
    if not len(others):
        return torch.zeros(len(rows), dtype=torch.bool)
    same = rows[:, None, 5] == others[None, :, 5]
    near = (rows[:, None, 4] - others[None, :, 4]).abs() <= TOLERANCE[dtype]
    return (same & near & (pairwise_iou(rows[:, :4], others[:, :4]) >= _SAME_BOX_IOU[dtype])).any(dim=1)

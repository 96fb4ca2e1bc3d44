"""Joins samples to one batch: channels first, red first, still one byte a value."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from trainer.boxes import cxcywh_from_xyxy_numpy
from trainer.data.augment.finish import AS_IT_IS, Finish
from trainer.loss import Matches


class ImageGeometry(NamedTuple):
    """How an image lies in a batch: pixel of the batch = pixel of the file * ratio + padding."""

    original_hw: tuple[int, int]
    ratio_hw: tuple[float, float]
    pad_xy: tuple[int, int]


@dataclass(frozen=True)
class LoadedSample:
    """One image, ready for a batch."""

    image: np.ndarray
    """uint8 BGR (height, width, 3), the same size all over a batch; still without its finish."""
    boxes: np.ndarray
    """float32 (n, 5): class, then xyxy in pixels of the finished image."""
    position: int
    index: int
    geometry: ImageGeometry | None = None
    finish: Finish = AS_IT_IS


@dataclass(frozen=True)
class Batch:
    """What a step or a validation works on. Rows of ``targets`` are in the order of the images."""

    images_bchw: Tensor
    """uint8 RGB (B, 3, height, width)."""
    targets: Tensor
    """float32 (T, 6): image within the batch, class, cx, cy, w, h; normalized to the batch's images."""
    positions: Tensor
    """int64 (B,): position in the epoch's order; for validation the image's index."""
    indices: Tensor
    """int64 (B,): index of the image in the split."""
    geometry: tuple[ImageGeometry, ...] = ()
    """Per image, for validation."""
    matches: Matches | None = None
    """What the loss compares with; None: still to be found."""

    def __len__(self) -> int:
        return self.images_bchw.shape[0]

    def pin_memory(self) -> Batch:
        """Returns the batch in page-locked memory, from which copies to a GPU run beside other work."""
        return replace(
            self,
            images_bchw=self.images_bchw.pin_memory(),
            targets=self.targets.pin_memory(),
            matches=self.matches.pin_memory() if self.matches is not None else None,
        )

    def to(self, device: torch.device) -> Batch:
        """Returns images and matches on a device; from pinned memory without waiting. Everything else stays."""
        return replace(
            self,
            images_bchw=self.images_bchw.to(device, non_blocking=True),
            matches=self.matches.to(device) if self.matches is not None else None,
        )

    def device_tensors(self) -> tuple[Tensor, ...]:
        """Returns the tensors that ``to`` moves."""
        matches = () if self.matches is None else (self.matches.integers, self.matches.reals)
        return (self.images_bchw, *matches)


Match = Callable[[Tensor, tuple[int, int]], Matches]
"""Finds the matches of a batch's targets, by them and the height and width of its images."""


class Collate:
    """Joins samples; a batch without any has the size ``empty_hw``."""

    def __init__(self, empty_hw: tuple[int, int], match: Match | None = None) -> None:
        self.empty_hw = empty_hw
        self.match = match

    def __call__(self, samples: Sequence[LoadedSample]) -> Batch:
        """Joins samples of one size to one batch."""
        height, width = samples[0].image.shape[:2] if samples else self.empty_hw
        images = torch.empty((len(samples), 3, height, width), dtype=torch.uint8)
        for image, sample in zip(images.numpy(), samples, strict=True):
            sample.finish.write(sample.image, image)
        rows = [np.zeros((0, 6), np.float32)]
        rows += [numbered_rows(at, sample.boxes, (height, width)) for at, sample in enumerate(samples)]
        targets = torch.from_numpy(np.concatenate(rows))
        return Batch(
            images_bchw=images,
            targets=targets,
            positions=torch.tensor([sample.position for sample in samples], dtype=torch.int64),
            indices=torch.tensor([sample.index for sample in samples], dtype=torch.int64),
            geometry=tuple(sample.geometry for sample in samples if sample.geometry is not None),
            matches=self.match(targets, (height, width)) if self.match is not None else None,
        )


def numbered_rows(at: int, boxes: np.ndarray, canvas_hw: tuple[int, int]) -> np.ndarray:
    """Returns the target rows of one image of a batch, as in ``Batch``, for its boxes as in ``LoadedSample``."""
    height, width = canvas_hw
    scaled = cxcywh_from_xyxy_numpy(boxes[:, 1:]) / np.array((width, height, width, height), np.float32)
    numbers = np.full((len(boxes), 1), at, np.float32)
    return np.concatenate((numbers, boxes[:, :1], scaled), axis=1).astype(np.float32)

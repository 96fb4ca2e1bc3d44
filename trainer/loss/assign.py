"""Assigns targets to anchors and grid cells.

The assignment reads targets and grid sizes, never predictions. It can therefore run before the forward pass, on the
loader's CPU tensors, and its counts can be summed over ranks meanwhile.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

# L = levels, A = anchors of a level, T = targets, M = matches of all levels, m = matches of one level

_OFFSETS_XY = ((0.0, 0.0), (0.5, 0.0), (0.0, 0.5), (-0.5, 0.0), (0.0, -0.5))
"""Subtracted from a target's center to reach its own cell, then the left, upper, right and lower one."""


@dataclass(frozen=True)
class LevelMatches:
    """The matches of one pyramid level, one row each: own cells, then left, upper, right, lower neighbors."""

    image: Tensor
    """(m,) int64: image within the batch."""
    anchor: Tensor
    """(m,) int64: anchor within the level."""
    grid_y: Tensor
    """(m,) int64: row of the cell."""
    grid_x: Tensor
    """(m,) int64: column of the cell."""
    class_index: Tensor
    """(m,) int64."""
    last_row: Tensor
    """(m,) int64: the last row with the image, anchor and cell of this row; the row's own number if none collides."""
    boxes_cxcywh: Tensor
    """(m, 4) in grid units; the center is measured from the cell's corner."""
    anchors_wh: Tensor
    """(m, 2) in grid units."""

    def __len__(self) -> int:
        return len(self.image)


@dataclass(frozen=True)
class Matches(Sequence[LevelMatches]):
    """The matches of each level, of all together in two tensors, which a batch carries to the device."""

    integers: Tensor
    """(6, M) int64: image, anchor, grid_y, grid_x, class_index and last_row, as in ``LevelMatches``."""
    reals: Tensor
    """(M, 6): boxes_cxcywh and anchors_wh."""
    counts: tuple[int, ...]
    """Number of matches of each level."""

    def pin_memory(self) -> Matches:
        """Returns the matches in page-locked memory, from which copies to a GPU run beside other work."""
        return Matches(self.integers.pin_memory(), self.reals.pin_memory(), self.counts)

    def to(self, device: torch.device) -> Matches:
        """Returns the matches on a device; from pinned memory without waiting."""
        integers, reals = (tensor.to(device, non_blocking=True) for tensor in (self.integers, self.reals))
        return Matches(integers, reals, self.counts)

    def __len__(self) -> int:
        return len(self.counts)

    def __getitem__(self, level: Any) -> Any:
        return self._levels[level]

    @cached_property
    def _levels(self) -> list[LevelMatches]:
        parts = zip(self.integers.split(self.counts, dim=1), self.reals.split(self.counts), strict=True)
        return [_level_matches(whole, real) for whole, real in parts]


def match_targets(
    targets: Tensor, anchors: Tensor, grid_sizes: Sequence[tuple[int, int]], anchor_threshold: float
) -> Matches:
    """Assigns every target to each anchor of a similar shape, in the target's own cell and in up to two neighbors.

    A target fits an anchor if max(w ratio, 1 / w ratio, h ratio, 1 / h ratio) < ``anchor_threshold``. A target whose
    center lies in the left (upper) half of its own cell also takes the left (upper) neighbor; the right (lower)
    neighbor follows the same rule from the far edge. ``targets``: (T, 6) image, class, cx, cy, w, h, normalized.
    ``anchors``: (L, A, 2) in grid units. ``grid_sizes``: (rows, columns) per level. The result lies where
    ``targets`` do; with CUDA targets this call waits for the device twice. Source: YOLOv5 architecture description,
    "Build Targets".
    """
    anchors = anchors.to(targets)
    sizes_xy = targets.new_tensor([(columns, rows) for rows, columns in grid_sizes])
    centers, sides = (targets[None, :, low : low + 2] * sizes_xy[:, None] for low in (2, 4))  # (L, T, 2)

    ratios = sides[:, None] / anchors[:, :, None]
    is_similar = torch.maximum(ratios, 1 / ratios).amax(dim=3) < anchor_threshold  # (L, A, T)
    reaches = _reached_cells(centers, sizes_xy)  # (L, 5, T)
    level, direction, anchor, target = (reaches[:, :, None] & is_similar[:, None]).nonzero().unbind(1)

    centers, sides = centers[level, target], sides[level, target]
    cells = (centers - targets.new_tensor(_OFFSETS_XY)[direction]).floor()
    cells = torch.minimum(cells.clamp(min=0), sizes_xy[level] - 1)
    image, class_index = targets[target, :2].long().unbind(1)
    grid_x, grid_y = cells.long().unbind(1)
    last_row = _last_rows(level, image, anchor, grid_y, grid_x, grid_sizes, anchors.shape[1])

    integers = torch.stack((image, anchor, grid_y, grid_x, class_index, last_row))
    reals = torch.cat((centers - cells, sides, anchors[level, anchor]), dim=1)
    counts = torch.bincount(level, minlength=len(grid_sizes)).tolist()
    return Matches(integers, reals, tuple(counts))


def to_device(tensor: Tensor, device: torch.device) -> Tensor:
    """Copies a small CPU tensor to a device; from page-locked memory, so that the host need not wait for a GPU."""
    if device.type == "cuda" and tensor.device.type == "cpu":
        tensor = tensor.pin_memory()
    return tensor.to(device, non_blocking=True)


def _level_matches(integers: Tensor, reals: Tensor) -> LevelMatches:
    image, anchor, grid_y, grid_x, class_index, last_row = integers.unbind(0)
    return LevelMatches(image, anchor, grid_y, grid_x, class_index, last_row, reals[:, :4], reals[:, 4:])


def _reached_cells(centers: Tensor, sizes_xy: Tensor) -> Tensor:
    """Returns which of its own cell and the four neighbors each target takes: bool (L, 5, T)."""
    from_far_edge = sizes_xy[:, None] - centers
    takes_near = (centers % 1 < 0.5) & (centers > 1)
    takes_far = (from_far_edge % 1 < 0.5) & (from_far_edge > 1)
    own = torch.ones_like(takes_near[..., 0])
    return torch.stack((own, *takes_near.unbind(2), *takes_far.unbind(2)), dim=1)


def _last_rows(
    level: Tensor,
    image: Tensor,
    anchor: Tensor,
    grid_y: Tensor,
    grid_x: Tensor,
    grid_sizes: Sequence[tuple[int, int]],
    num_anchors: int,
) -> Tensor:
    """Returns for every match the last row, within its level, of the matches with its cell and anchor: int64 (M,)."""
    rows, columns = max(size[0] for size in grid_sizes), max(size[1] for size in grid_sizes)
    cell = (image * len(grid_sizes) + level) * num_anchors + anchor
    cell = (cell * rows + grid_y) * columns + grid_x
    ordered, order = cell.sort(stable=True)
    last = order[torch.searchsorted(ordered, cell, right=True) - 1]
    first_of_level = torch.searchsorted(level, level)
    return last - first_of_level

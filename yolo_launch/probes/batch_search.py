"""Searches for the largest batch that fits, by trials that the caller makes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

BATCH_MULTIPLE = 8
MOST_REFINEMENTS = 4


@dataclass(frozen=True)
class BatchSearch:
    """The batch size that was found, 0 if not even one image fits, and each trial: (images, bytes or None)."""

    batch_size: int
    tried: tuple[tuple[int, int | None], ...]


def search_largest(trial: Callable[[int], int | None], budget_bytes: int, most: int) -> BatchSearch:
    """Returns the largest batch, at most ``most``, whose trial stays within the budget, rounded down to a multiple.

    ``trial`` returns the peak memory in bytes, or None if memory ran out. Sizes double until one does not fit; then
    the size predicted by linear growth of the memory is tried too.
    """
    tried: list[tuple[int, int | None]] = []

    def peak_of(size: int) -> int | None:
        peak = trial(size)
        tried.append((size, peak))
        return peak if peak is not None and peak <= budget_bytes else None

    fitting: list[tuple[int, int]] = []
    size = 1
    while (peak := peak_of(size)) is not None:
        fitting.append((size, peak))
        if size >= most:
            return BatchSearch(round_down(size), tuple(tried))
        size = min(2 * size, most)
    if not fitting:
        return BatchSearch(0, tuple(tried))
    lowest = round_down(fitting[-1][0])
    candidate = round_down(min(size - 1, _predict(fitting, budget_bytes, size)))
    for _ in range(MOST_REFINEMENTS):
        if candidate <= lowest:
            break
        if peak_of(candidate) is not None:
            return BatchSearch(candidate, tuple(tried))
        candidate = round_down((lowest + candidate) // 2)
    return BatchSearch(lowest, tuple(tried))


def _predict(fitting: list[tuple[int, int]], budget_bytes: int, too_large: int) -> int:
    """Predicts how many images fit by the slope between the last two sizes that did; half-way without a slope."""
    (size, peak) = fitting[-1]
    if len(fitting) > 1 and peak > fitting[-2][1]:
        slope = (peak - fitting[-2][1]) / (size - fitting[-2][0])
        return size + int((budget_bytes - peak) / slope)
    return (size + too_large) // 2


def round_down(size: int) -> int:
    """Rounds down to a multiple of 8 from 8 on; smaller sizes stay as they are."""
    return size // BATCH_MULTIPLE * BATCH_MULTIPLE if size >= BATCH_MULTIPLE else size

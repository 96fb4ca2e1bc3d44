"""Finds the box around a mask in COCO's run-length encoding, without making the mask."""

from __future__ import annotations

from collections.abc import Sequence


def rle_bounds(counts: Sequence[int] | str, size_hw: tuple[int, int]) -> tuple[float, float, float, float] | None:
    """Returns left, top, right, bottom of a mask's pixels, None for an empty mask.

    ``counts`` are lengths of runs of 0 and 1 in turn, down one column after the other, or these as COCO's text.
    Raises ValueError for counts that do not fill the image.
    """
    height, width = size_hw
    runs = _decompress(counts) if isinstance(counts, str) else counts
    if height <= 0 or any(run < 0 for run in runs) or sum(runs) != height * width:
        raise ValueError(f"{sum(runs)} pixels of {height} x {width}")
    at, left, right, top, bottom = 0, width, 0, height, 0
    for index, run in enumerate(runs):
        if index % 2 and run:
            (first_column, first), (last_column, last) = divmod(at, height), divmod(at + run - 1, height)
            left, right = min(left, first_column), max(right, last_column + 1)
            wraps = last_column > first_column
            top, bottom = min(top, 0 if wraps else first), max(bottom, height if wraps else last + 1)
        at += run
    return None if right == 0 else (float(left), float(top), float(right), float(bottom))


def _decompress(text: str) -> list[int]:
    """Returns the runs of COCO's text: 5 bits a character, differences to the run before the last from the third on."""
    runs: list[int] = []
    value, shift = 0, 0
    for character in text:
        bits = ord(character) - 48
        if not 0 <= bits < 64:
            raise ValueError(f"{character!r} in the counts")
        value |= (bits & 31) << shift
        shift += 5
        if bits & 32:
            continue
        if bits & 16:
            value -= 1 << shift
        runs.append(value + (runs[-2] if len(runs) > 2 else 0))
        value, shift = 0, 0
    return runs

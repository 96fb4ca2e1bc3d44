"""Finds images that look the same: other sizes, qualities, brightness or borders of one picture.

Each image has six perceptual hashes of 64 bits, of the whole and of the whole without a border of 5 %: the signs of the
lowest frequencies of its cosine transform about their median (pHash, Zauner 2010). Two images are near if the whole of
one is within a few bits of any of the other's.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import cv2
import numpy as np
from scipy.sparse import coo_matrix
from scipy.sparse.csgraph import connected_components

MAX_BITS = 8
"""Of 64 that may differ. Unlike pictures differ in 14 and more (475 of cells, streets and drawings, one pair aside)."""
_SIDE, _LOW = 32, 8
_CUT = 0.05
# (top, left) of what is kept, as shares of the border that is cut: the whole has none.
_CUTS = ((0.5, 0.5), (0.0, 0.0), (0.0, 1.0), (1.0, 0.0), (1.0, 1.0))
HASHES = 1 + len(_CUTS)
_LEAST_CONTRAST = 2.0
"""Standard deviation in gray levels below which an image shows nothing that could be compared."""
_ENOUGH_PX = 128
_REDUCED = (
    (8, cv2.IMREAD_REDUCED_GRAYSCALE_8),
    (4, cv2.IMREAD_REDUCED_GRAYSCALE_4),
    (2, cv2.IMREAD_REDUCED_GRAYSCALE_2),
)
_BANDS, _BAND_BITS = 4, 16
_CHUNK = 1 << 12


def hash_images(
    paths: Sequence[Path], shapes_hw: np.ndarray, workers: int, on_progress: Callable[[int, int], None] | None = None
) -> np.ndarray:
    """Returns the hashes of each image (images, 6) as uint64; zeros for one that shows nothing or cannot be read."""
    hashes = np.zeros((len(paths), HASHES), np.uint64)
    with ThreadPoolExecutor(max(1, workers)) as pool:
        for index, each in enumerate(pool.map(_hash_file, paths, shapes_hw.tolist())):
            hashes[index] = np.array(each, np.uint64)
            if on_progress is not None and (index + 1) % 64 == 0:
                on_progress(index + 1, len(paths))
    return hashes


def near_groups(hashes: np.ndarray, max_bits: int = MAX_BITS) -> np.ndarray:
    """Returns the number of each image's group (images,): those that are near, or near to one that is, share one."""
    wholes, first, place = np.unique(hashes[:, 0], return_index=True, return_inverse=True)
    pairs = near_pairs(hashes[first], max_bits)
    links = coo_matrix((np.ones(len(pairs)), (pairs[:, 0], pairs[:, 1])), shape=(len(wholes), len(wholes)))
    groups = connected_components(links, directed=False)[1][place.reshape(-1)]
    # What shows nothing is like nothing else.
    empty = np.flatnonzero(hashes[:, 0] == 0)
    groups[empty] = groups.max(initial=0) + 1 + np.arange(len(empty))
    return np.unique(groups, return_inverse=True)[1].reshape(-1)


def near_pairs(hashes: np.ndarray, max_bits: int = MAX_BITS) -> np.ndarray:
    """Returns the pairs (n, 2) of indices into ``hashes`` (images, 6) of which one's whole is near any of the other's.

    Of four bands of 16 bits, one at least differs in no more than a quarter of the bits: only images that agree in a
    band as far as that are compared.
    """
    every = hashes.reshape(-1)
    owner = np.repeat(np.arange(len(hashes)), hashes.shape[1])
    flips = _flips(max_bits // _BANDS)
    found = [np.zeros((0, 2), np.int64)]
    for band in range(_BANDS):
        shift = np.uint64(band * _BAND_BITS)
        of_all = ((every >> shift) & np.uint64(0xFFFF)).astype(np.int64)
        order = np.argsort(of_all, kind="stable")
        starts = np.concatenate(([0], np.cumsum(np.bincount(of_all, minlength=1 << _BAND_BITS))))
        for begin in range(0, len(hashes), _CHUNK):
            wholes = hashes[begin : begin + _CHUNK, 0]
            keys = ((wholes >> shift) & np.uint64(0xFFFF)).astype(np.int64)
            for flip in flips:
                found.append(_compare(wholes, keys ^ flip, begin, every, owner, order, starts, max_bits))
    pairs = np.concatenate(found)
    pairs = np.sort(pairs[pairs[:, 0] != pairs[:, 1]], axis=1)
    return np.unique(pairs, axis=0)


def _compare(  # noqa: PLR0913 (one lookup of near_pairs, of which every value is an array of its own)
    wholes: np.ndarray,
    keys: np.ndarray,
    begin: int,
    every: np.ndarray,
    owner: np.ndarray,
    order: np.ndarray,
    starts: np.ndarray,
    max_bits: int,
) -> np.ndarray:
    """Returns the pairs of those that have a band of ``keys``."""
    low = starts[keys]
    counts = starts[keys + 1] - low
    asking = np.repeat(np.arange(len(keys)), counts)
    within = np.arange(counts.sum()) - np.repeat(np.cumsum(counts) - counts, counts)
    answer = order[low[asking] + within]
    near = _bits(wholes[asking] ^ every[answer]) <= max_bits
    return np.stack([begin + asking[near], owner[answer[near]]], axis=1)


def _flips(bits: int) -> list[int]:
    """Returns every mask of a band with at most so many bits."""
    masks = {0}
    for _ in range(bits):
        masks |= {mask | 1 << bit for mask in masks for bit in range(_BAND_BITS)}
    return sorted(masks)


_COUNTS = np.array([bin(value).count("1") for value in range(1 << 16)], np.uint8)


def _bits(values: np.ndarray) -> np.ndarray:
    """Returns the number of bits that are set in each uint64."""
    counted: np.ndarray = _COUNTS[np.ascontiguousarray(values).view(np.uint16).reshape(-1, 4)].sum(axis=1)
    return counted


def _hash_file(path: Path, shape_hw: Sequence[int]) -> list[int]:
    """Returns the hashes of a file."""
    by = next((flag for factor, flag in _REDUCED if min(shape_hw) >= factor * _ENOUGH_PX), cv2.IMREAD_GRAYSCALE)
    try:
        gray = cv2.imdecode(np.frombuffer(path.read_bytes(), np.uint8), by)
    except (OSError, cv2.error):
        gray = None
    return [0] * HASHES if gray is None else hashes_of(gray)


def hashes_of(gray: np.ndarray) -> list[int]:
    """Returns the six hashes of a gray image (h, w), the whole's first; zeros if it shows nothing."""
    height, width = gray.shape
    if float(gray.std()) < _LEAST_CONTRAST:
        return [0] * HASHES
    kept_h, kept_w = max(1, round(height * (1 - _CUT))), max(1, round(width * (1 - _CUT)))
    parts = [gray]
    for top, left in _CUTS:
        y, x = round((height - kept_h) * top), round((width - kept_w) * left)
        parts.append(gray[y : y + kept_h, x : x + kept_w])
    return [_hash(part) for part in parts]


def _hash(gray: np.ndarray) -> int:
    small = cv2.resize(gray, (_SIDE, _SIDE), interpolation=cv2.INTER_AREA).astype(np.float32)
    low = cv2.dct(small)[:_LOW, :_LOW].reshape(-1)
    # The first is the mean of all; it would count brightness.
    signs = low > np.median(low[1:])
    return int(np.packbits(signs).view(">u8")[0])

"""Chooses which sample comes when: a pure function of (seed, epoch, position), whatever ranks, workers and restarts.

Global step t of an epoch is positions [t*B, (t+1)*B) of the epoch's order; a rank takes its slice of each step. All
randomness is Philox (Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", 2011), whose stream is given by
numbers, not by history. Torch-free.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from trainer.data.loading.partners import draw_from_lane, lane_candidates
from trainer.protocol import DEFAULT_IMAGE_SIZE

NUM_PARTNERS = 7
"""Other images that a sample may need: three for its mosaic, four for the mosaic that mixup blends in."""

_SAMPLE_STREAM, _ORDER_STREAM, _BATCH_STREAM, _PARTNER_STREAM, _STEP_STREAM = range(5)
_MASK64 = (1 << 64) - 1


@dataclass(frozen=True, slots=True)
class SampleKey:
    """All that decides a training sample, beside the seed and the data."""

    epoch: int
    position: int
    """In the epoch's order, counted over all ranks."""
    index: int
    """Of the image."""
    partners: tuple[int, ...] = ()
    """Images to combine with, from its lane or drawn by weight; empty: drawn evenly from the set."""
    canvas_hw: tuple[int, int] = (0, 0)
    """Size of a rectangular batch; (0, 0): square."""


def sample_generator(seed: int, epoch: int, position: int) -> np.random.Generator:
    """Returns the generator of one sample's random numbers; no two (seed, epoch, position) share any."""
    return np.random.Generator(_philox(seed, _SAMPLE_STREAM, epoch, position))


def step_generator(seed: int, epoch: int, step: int) -> np.random.Generator:
    """Returns the generator of what all samples of a global step share, such as its image size."""
    return np.random.Generator(_philox(seed, _STEP_STREAM, epoch, step))


def epoch_order(seed: int, epoch: int, num_samples: int, weights: np.ndarray | None = None) -> np.ndarray:
    """Returns int64 (num_samples,): a permutation, or with ``weights`` as many draws with replacement.

    Only raw 64-bit integers of the generator are used, so that no numpy version shuffles in another way.
    """
    words = _philox(seed, _ORDER_STREAM, epoch).random_raw(num_samples)
    if weights is None:
        return np.argsort(words, kind="stable").astype(np.int64)
    return _draw_by_weight(words, np.cumsum(np.asarray(weights, np.float64)))


def rank_slice(count: int, rank: int, world_size: int) -> slice:
    """Returns a rank's part of ``count`` things in order, as even as possible; low ranks get the rest."""
    base, rest = divmod(count, world_size)
    start = rank * base + min(rank, rest)
    return slice(start, start + base + (rank < rest))


class EpochBatches:
    """A rank's batches of keys, for a DataLoader's ``batch_sampler``; a step without images for it is an empty list.

    With ``aspect_ratios`` (height / width per image) each global batch holds images of like shape, on a canvas as
    small as they allow; their order changes by epoch all the same.
    """

    def __init__(  # noqa: PLR0913 (an order is a function of all of them)
        self,
        seed: int,
        num_samples: int,
        global_batch_size: int,
        rank: int,
        world_size: int,
        *,
        aspect_ratios: np.ndarray | None = None,
        image_size: int = DEFAULT_IMAGE_SIZE,
        stride: int = 32,
        window: int = 0,
    ) -> None:
        """Draws partners from ``window`` steps of a sample's lane, or from the whole set if that is 0."""
        self.seed = seed
        self.num_samples = num_samples
        self.global_batch_size = global_batch_size
        self.rank = rank
        self.world_size = world_size
        self._aspect_ratios = aspect_ratios
        self._image_size = image_size
        self._stride = stride
        self.window = window
        self.set_epoch(0)

    @property
    def local_batch_size(self) -> int:
        """Returns the largest number of images that this rank has in a step."""
        mine = rank_slice(min(self.global_batch_size, self.num_samples), self.rank, self.world_size)
        return mine.stop - mine.start

    @property
    def largest_canvas_hw(self) -> tuple[int, int]:
        """Returns the size of a square batch; rectangular ones are no larger."""
        return self._image_size, self._image_size

    @property
    def steps_per_epoch(self) -> int:
        """Returns the number of global batches in a whole epoch; the last may be smaller."""
        return math.ceil(self.num_samples / self.global_batch_size)

    def set_epoch(self, epoch: int, start_step: int = 0, weights: np.ndarray | None = None) -> None:
        """Makes the next iteration that of ``epoch`` from ``start_step`` on.

        With ``weights``, one an image, images are drawn by them. Raises ValueError for weights of another number or
        without a sum above 0.
        """
        if weights is not None and (len(weights) != self.num_samples or not np.sum(weights) > 0):
            raise ValueError(f"weights must be {self.num_samples} numbers with a sum above 0, got {len(weights)}")
        self.epoch = epoch
        self.start_step = start_step
        self.weights = weights

    def __len__(self) -> int:
        return max(0, self.steps_per_epoch - self.start_step)

    def __iter__(self) -> Iterator[list[SampleKey]]:
        # Bound here and now: a later set_epoch must not reach batches of this epoch that are not drawn yet.
        return self.batches(self.epoch, self.start_step, self.weights)

    def order(self, epoch: int, weights: np.ndarray | None = None) -> np.ndarray:
        """Returns int64 (num_samples,): the image of each position of an epoch."""
        order = epoch_order(self.seed, epoch, self.num_samples, weights)
        return order if self._aspect_ratios is None else self._group_by_shape(order, epoch)

    def global_batch(self, epoch: int, step: int, weights: np.ndarray | None = None) -> list[SampleKey]:
        """Returns the keys of a step over all ranks."""
        return self._keys(epoch, step, self.order(epoch, weights), _running_sum(weights), 0, 1)

    def batches(
        self, epoch: int, start_step: int, weights: np.ndarray | None, rows: slice = slice(None)
    ) -> Iterator[list[SampleKey]]:
        """Yields this rank's keys of each step from ``start_step`` on; of each batch only these rows."""
        order, edges = self.order(epoch, weights), _running_sum(weights)
        for step in range(start_step, self.steps_per_epoch):
            yield self._keys(epoch, step, order, edges, self.rank, self.world_size, rows)

    def _keys(
        self,
        epoch: int,
        step: int,
        order: np.ndarray,
        edges: np.ndarray | None,
        rank: int,
        world_size: int,
        rows: slice = slice(None),
    ) -> list[SampleKey]:
        """Returns a rank's keys of a step; ``edges`` is the running sum of the weights, if there are any."""
        first = step * self.global_batch_size
        batch = order[first : first + self.global_batch_size]
        canvas_hw = (0, 0)
        if self._aspect_ratios is not None:
            canvas_hw = batch_canvas(self._aspect_ratios[batch], self._image_size, self._stride, margin=0.0)
        mine = rank_slice(len(batch), rank, world_size)
        return [
            SampleKey(
                epoch, first + at, int(batch[at]), self._draw_partners(epoch, first + at, order, edges), canvas_hw
            )
            for at in range(mine.start, mine.stop)[rows]
        ]

    def _draw_partners(self, epoch: int, position: int, order: np.ndarray, edges: np.ndarray | None) -> tuple[int, ...]:
        """Draws images to combine a sample with: from its lane, or from the whole set by weight."""
        from_lane = self.window > 0 and self._aspect_ratios is None  # rectangular batches have no mosaics
        if not from_lane and edges is None:
            return ()
        words = _philox(self.seed, _PARTNER_STREAM, epoch, position).random_raw(max(NUM_PARTNERS, self.window))
        if from_lane:
            candidates = lane_candidates(position, self.num_samples, self.global_batch_size, self.window)
            return tuple(order[draw_from_lane(words, candidates, NUM_PARTNERS)].tolist())
        assert edges is not None
        return tuple(int(index) for index in _draw_by_weight(words[:NUM_PARTNERS], edges))

    def _group_by_shape(self, order: np.ndarray, epoch: int) -> np.ndarray:
        """Returns the order with like shapes together: whole batches of them, shuffled, and the smaller batch last."""
        assert self._aspect_ratios is not None
        grouped = order[np.argsort(self._aspect_ratios[order], kind="stable")]
        whole = self.num_samples // self.global_batch_size
        words = _philox(self.seed, _BATCH_STREAM, epoch).random_raw(whole + 1)
        if self.num_samples % self.global_batch_size:
            # The smaller batch comes from anywhere in the range of shapes, and is trained on last.
            first = int(words[whole] % np.uint64(whole + 1)) * self.global_batch_size
            after = first + self.num_samples % self.global_batch_size
            small, grouped = grouped[first:after], np.concatenate((grouped[:first], grouped[after:]))
        else:
            small = grouped[:0]
        batches = grouped.reshape(whole, self.global_batch_size)[np.argsort(words[:whole], kind="stable")]
        return np.concatenate((batches.ravel(), small))


class ValidationBatches:
    """Whole validation batches dealt to ranks: batch r, r + world_size, ... for rank r.

    Images are in order of height / width, ties by name; batches, and the canvas of each, depend on shapes, image size
    and batch size alone, so any number of ranks computes the same numbers.
    """

    def __init__(
        self, shapes_hw: np.ndarray, batch_size: int, *, image_size: int, stride: int = 32, rectangular: bool = True
    ) -> None:
        ratios = shapes_hw[:, 0] / np.maximum(shapes_hw[:, 1], 1)
        order = np.argsort(ratios, kind="stable") if rectangular else np.arange(len(ratios))
        self.batches = [
            [int(index) for index in order[start : start + batch_size]] for start in range(0, len(order), batch_size)
        ]
        square = np.ones(1)
        self.canvases = [
            batch_canvas(ratios[batch] if rectangular else square, image_size, stride, margin=0.5 if rectangular else 0)
            for batch in self.batches
        ]

    def rank_batches(self, rank: int, world_size: int) -> list[list[SampleKey]]:
        """Returns a rank's batches; the position of each key is the image's index."""
        mine = range(rank, len(self.batches), world_size)
        return [[SampleKey(0, index, index, (), self.canvases[b]) for index in self.batches[b]] for b in mine]


class RankBatches:
    """A rank's validation batches, for a loader: the same in every epoch."""

    weights = None
    epoch = start_step = 0

    def __init__(self, batches: ValidationBatches, rank: int, world_size: int) -> None:
        self._mine = batches.rank_batches(rank, world_size)
        self.num_samples = sum(map(len, self._mine))
        self.local_batch_size = max(map(len, self._mine), default=0)
        self.largest_canvas_hw = max((keys[0].canvas_hw for keys in self._mine), key=math.prod, default=(0, 0))

    @property
    def steps_per_epoch(self) -> int:
        """Returns the number of batches."""
        return len(self._mine)

    def __len__(self) -> int:
        return len(self._mine)

    def batches(
        self, epoch: int, start_step: int, weights: np.ndarray | None, rows: slice = slice(None)
    ) -> Iterator[list[SampleKey]]:
        """Yields the keys of each batch; of each only these rows."""
        for keys in self._mine[start_step:]:
            yield keys[rows]


def batch_canvas(
    aspect_ratios: Sequence[float] | np.ndarray, image_size: int, stride: int, margin: float
) -> tuple[int, int]:
    """Returns (height, width), in multiples of ``stride``, that holds images of these height / width ratios.

    Each side is ceil(fraction * image_size / stride + margin) strides.
    """
    lowest, highest = float(np.min(aspect_ratios)), float(np.max(aspect_ratios))
    height, width = 1.0, 1.0
    if highest < 1:
        height = highest
    elif lowest > 1:
        width = 1 / lowest
    rows, columns = (math.ceil(side * image_size / stride + margin) * stride for side in (height, width))
    return rows, columns


def _philox(seed: int, stream: int, epoch: int, position: int = 0) -> np.random.Philox:
    """Returns a generator of its own for each argument tuple, by the 64-bit parts of the counter that do not count."""
    key = np.array([seed & _MASK64, stream], dtype=np.uint64)
    return np.random.Philox(key=key, counter=np.array([0, position, epoch, 0], dtype=np.uint64))


def _running_sum(weights: np.ndarray | None) -> np.ndarray | None:
    return None if weights is None else np.cumsum(np.asarray(weights, np.float64))


def _draw_by_weight(words: np.ndarray, edges: np.ndarray) -> np.ndarray:
    """Returns indices drawn with replacement, one per random integer; ``edges`` is the running sum of the weights."""
    uniform = (words >> np.uint64(11)) * 2.0**-53
    indices = np.searchsorted(edges, uniform * edges[-1], side="right")
    return np.minimum(indices, len(edges) - 1).astype(np.int64)

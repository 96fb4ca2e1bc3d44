"""Runs in a loader process: makes some rows of every batch of its rank, a few batches ahead."""

from __future__ import annotations

import traceback
from collections.abc import Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection
from typing import TYPE_CHECKING

import cv2
import numpy as np

from trainer.data.collate import ImageGeometry, numbered_rows
from trainer.data.loading.shared_batches import SharedBatches
from trainer.data.sampler import EpochBatches, RankBatches, SampleKey
from trainer.runtime.process_guard import loader_init

if TYPE_CHECKING:
    from trainer.data.loader import TrainingData, ValidationData


@dataclass(frozen=True)
class EpochOrder:
    """Asks for the batches of an epoch; what was asked for before is not wanted any more."""

    generation: int
    epoch: int
    start_step: int
    by_weight: bool
    """True if the weights lie in the shared array."""


@dataclass(frozen=True)
class BufferFreed:
    """Says that one more batch may be made."""

    generation: int


@dataclass(frozen=True)
class BatchPart:
    """A process's rows of a batch; the pixels lie in the shared buffer."""

    process: int
    generation: int
    number: int
    """Of the batch, counted from the first one of the order."""
    canvas_hw: tuple[int, int]
    """(0, 0) if the process has no row."""
    targets: np.ndarray
    """float32 (t, 6), as in Batch."""
    positions: np.ndarray
    indices: np.ndarray
    geometry: tuple[ImageGeometry, ...]


@dataclass(frozen=True)
class PartFailed:
    """Says that a sample could not be made."""

    process: int
    generation: int
    number: int
    """Of the batch that needs the sample."""
    cause: str
    """The image, and what was raised."""
    stack: str


class LoaderProcess:
    """A loader process's side: it obeys its worker, and never works further ahead than the buffers allow."""

    def __init__(
        self,
        connection: Connection,
        data: TrainingData | ValidationData,
        sampler: EpochBatches | RankBatches,
        rows: slice,
        room: SharedBatches,
        weights: np.ndarray,
    ) -> None:
        self._connection = connection
        self._data = data
        self._sampler = sampler
        self._rows = rows
        self._room = room
        self._weights = weights
        self._allowed = 0

    def run(self, number: int, inherited: Sequence[Connection]) -> None:
        """Works until the worker closes its end; ``inherited`` are ends that belong to others."""
        prepare_loader_process(number)
        for connection in inherited:
            connection.close()
        try:
            order = self._obey(None)
            while order is not None:
                order = self._make_epoch(order)
        except (EOFError, BrokenPipeError, ConnectionResetError):
            return  # the worker is gone, or has closed its loader

    def _make_epoch(self, order: EpochOrder) -> EpochOrder | None:
        """Makes the rows of all batches of an epoch; returns the next order."""
        self._allowed = self._room.count
        weights = self._weights.copy() if order.by_weight else None
        batches = self._sampler.batches(order.epoch, order.start_step, weights, self._rows)
        for number, keys in enumerate(batches):
            newer = self._obey(order, until=number)
            if newer is not None:
                return newer
            self._data.begin_step(order.epoch, order.start_step + number)
            part = self._make_part(order.generation, number, keys)
            self._connection.send(part)
            if isinstance(part, PartFailed):
                break
        return self._obey(None)

    def _obey(self, order: EpochOrder | None, until: int = 0) -> EpochOrder | None:
        """Reads what the worker said; waits until it asks for another epoch or, within one, for batch ``until``."""
        while order is None or until >= self._allowed or self._connection.poll():
            message = self._connection.recv()
            if isinstance(message, EpochOrder):
                return message
            if order is not None and message.generation == order.generation:
                self._allowed += 1
        return None

    def _make_part(self, generation: int, number: int, keys: Sequence[SampleKey]) -> BatchPart | PartFailed:
        targets = [np.zeros((0, 6), np.float32)]
        geometry: list[ImageGeometry] = []
        canvas_hw = (0, 0)
        for row, key in zip(range(self._rows.start, self._room.batch_size, self._rows.step), keys, strict=False):
            try:
                sample = self._data[key]
                canvas_hw = sample.image.shape[0], sample.image.shape[1]
                sample.finish.write(sample.image, self._room.planes(number, row, canvas_hw))
            except Exception as error:
                cause = f"{self._data.images.paths[key.index]}: {type(error).__name__}: {error}"
                return PartFailed(self._rows.start, generation, number, cause, traceback.format_exc())
            targets.append(numbered_rows(row, sample.boxes, canvas_hw))
            geometry += [sample.geometry] if sample.geometry is not None else []
        positions, indices = ([getattr(key, name) for key in keys] for name in ("position", "index"))
        return BatchPart(
            self._rows.start,
            generation,
            number,
            canvas_hw,
            np.concatenate(targets),
            np.array(positions, np.int64),
            np.array(indices, np.int64),
            tuple(geometry),
        )


def prepare_loader_process(number: int) -> None:
    """Runs in a new loader process before its first sample."""
    loader_init(number)
    # A pool of threads does not survive the fork.
    cv2.setNumThreads(0)

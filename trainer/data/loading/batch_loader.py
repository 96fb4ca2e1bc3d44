"""Loads a rank's batches in their order, made by processes of its own a few batches ahead.

Each process makes the same rows of every batch, straight into memory that all share, so that an image which several
steps of a lane show is decoded once. A process that dies is named at once; no process outlives its worker.
"""

from __future__ import annotations

import logging
import mmap
import multiprocessing
import os
import signal
import time
import weakref
from collections.abc import Iterator, Sequence
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from typing import TYPE_CHECKING

import numpy as np
import torch

from trainer.data.collate import Batch, Collate, Match
from trainer.data.loading.loader_process import BatchPart, BufferFreed, EpochOrder, LoaderProcess, PartFailed
from trainer.data.loading.shared_batches import SharedBatches
from trainer.data.sampler import EpochBatches, RankBatches

if TYPE_CHECKING:
    from trainer.data.loader import TrainingData, ValidationData

logger = logging.getLogger(__name__)

_END_TIMEOUT_S = 5.0


class LoaderProcessError(RuntimeError):
    """A loader process died, or could not make a sample."""


class BatchLoader:
    """Batches of a rank; one that was yielded keeps its memory until the next one is asked for."""

    def __init__(
        self,
        data: TrainingData | ValidationData,
        sampler: EpochBatches | RankBatches,
        *,
        num_workers: int,
        prefetch: int,
        pin_memory: bool = False,
        match: Match | None = None,
    ) -> None:
        """Starts no process yet. ``prefetch`` is the number of batches made ahead of the one in use."""
        self.data = data
        self.sampler = sampler
        self.collate = Collate(sampler.largest_canvas_hw, match)
        self._pin_memory = pin_memory
        self._prefetch = prefetch
        rows = max(1, sampler.local_batch_size)
        # As many as make an equal number of rows each, or one less: more would wait for those with most.
        self._num_processes = -(-rows // -(-rows // num_workers)) if num_workers else 0
        self._processes: _Processes | None = None
        self._begun: tuple[int, int] | None = None

    def __len__(self) -> int:
        return len(self.sampler)

    def __iter__(self) -> Iterator[Batch]:
        return self.epoch(self.sampler.epoch, self.sampler.start_step, self.sampler.weights)

    def begin(self, epoch: int, start_step: int, weights: np.ndarray | None = None) -> None:
        """Has the processes begin an epoch, whose batches are taken later."""
        self._begun = None
        if self._num_processes:
            if self._processes is None:
                self._processes = _Processes(self.data, self.sampler, self._num_processes, self._prefetch + 1)
                if self._pin_memory:
                    self._processes.room.pin()
            self._processes.begin(epoch, start_step, weights)
            self._begun = (epoch, start_step) if weights is None else None

    def epoch(self, epoch: int, start_step: int, weights: np.ndarray | None = None) -> Iterator[Batch]:
        """Returns the batches of an epoch from ``start_step`` on.

        Raises LoaderProcessError.
        """
        if not self._num_processes:
            return self._make_here(epoch, start_step, weights)
        if weights is not None or self._begun != (epoch, start_step):
            self.begin(epoch, start_step, weights)
        self._begun = None
        assert self._processes is not None
        num_batches = max(0, self.sampler.steps_per_epoch - start_step)
        return _EpochIterator(self._processes, num_batches, self.collate.match, self._pin_memory)

    def first_batch(self) -> Batch:
        """Makes the first batch of epoch 0 in this process, whatever the processes are doing."""
        return next(self._make_here(0, 0, None))

    def _make_here(self, epoch: int, start_step: int, weights: np.ndarray | None) -> Iterator[Batch]:
        for step, keys in enumerate(self.sampler.batches(epoch, start_step, weights), start=start_step):
            self.data.begin_step(epoch, step)
            batch = self.collate([self.data[key] for key in keys])
            yield batch.pin_memory() if self._pin_memory else batch


class _Processes:
    """The loader processes of a rank, and the memory that they share with it."""

    def __init__(
        self,
        data: TrainingData | ValidationData,
        sampler: EpochBatches | RankBatches,
        count: int,
        num_buffers: int,
    ) -> None:
        self.empty_hw = sampler.largest_canvas_hw
        self.room = SharedBatches(num_buffers, sampler.local_batch_size, sampler.largest_canvas_hw)
        self.generation = 0
        self._weights = np.frombuffer(mmap.mmap(-1, 8 * max(1, sampler.num_samples)), np.float64)
        self.workers: list[BaseProcess] = []
        self.connections: list[Connection] = []
        # Labels and caches are shared with a forked process at no cost. Such a process dies with its parent, so it
        # cannot keep a GPU that it inherited.
        context = multiprocessing.get_context("fork")
        for number in range(count):
            ours, theirs = context.Pipe()
            rows = slice(number, None, count)
            work = LoaderProcess(theirs, data, sampler, rows, self.room, self._weights)
            process = context.Process(
                target=work.run, args=(number, (*self.connections, ours)), name=f"loader{number}", daemon=True
            )
            process.start()
            theirs.close()
            self.workers.append(process)
            self.connections.append(ours)
        weakref.finalize(self, _end, os.getpid(), self.workers, self.connections)

    def begin(self, epoch: int, start_step: int, weights: np.ndarray | None) -> None:
        """Sends the order for an epoch; parts of an earlier one that still come are to be left out."""
        self.generation += 1
        if weights is not None:
            self._weights[...] = weights  # too large for a pipe whose reader may be writing
        self._send(EpochOrder(self.generation, epoch, start_step, weights is not None))

    def free_buffer(self) -> None:
        """Lets the processes overwrite the oldest batch."""
        self._send(BufferFreed(self.generation))

    def receive(self) -> list[BatchPart | PartFailed]:
        """Waits for parts of the current epoch. Raises LoaderProcessError for a process that died."""
        parts: list[BatchPart | PartFailed] = []
        ready = wait([*self.connections, *(process.sentinel for process in self.workers)])
        for process, connection in zip(self.workers, self.connections, strict=True):
            if connection not in ready and process.sentinel not in ready:
                continue
            try:
                message = connection.recv() if connection.poll() else None
            except (EOFError, ConnectionResetError):
                message = None
            if message is None:
                raise _death(process)
            if message.generation == self.generation:
                parts.append(message)
        return parts

    def _send(self, message: EpochOrder | BufferFreed) -> None:
        for process, connection in zip(self.workers, self.connections, strict=True):
            try:
                connection.send(message)
            except (BrokenPipeError, ConnectionResetError):
                raise _death(process) from None


class _EpochIterator(Iterator[Batch]):
    """Joins the parts of each batch as they come in."""

    def __init__(self, processes: _Processes, num_batches: int, match: Match | None, pin_memory: bool) -> None:
        self._processes = processes
        self._workers = processes.workers
        self._generation = processes.generation
        self._num_batches = num_batches
        self._match = match
        self._pin_memory = pin_memory
        self._taken = 0
        self._parts: dict[int, dict[int, BatchPart | PartFailed]] = {}

    def __next__(self) -> Batch:
        if self._generation != self._processes.generation:
            raise RuntimeError("another epoch was begun: this one has no more batches")
        if self._taken >= self._num_batches:
            raise StopIteration
        if self._taken:
            self._processes.free_buffer()
        number, count = self._taken, len(self._workers)
        while len(self._parts.get(number, ())) < count:
            for part in self._processes.receive():
                self._parts.setdefault(part.number, {})[part.process] = part
        self._taken += 1
        by_process = self._parts.pop(number)
        batch = self._join(number, [_made(by_process[process]) for process in range(count)])
        return batch.pin_memory() if self._pin_memory else batch

    def _join(self, number: int, parts: Sequence[BatchPart]) -> Batch:
        """Makes the batch as if one process had made all of its rows."""
        rows = sum(len(part.indices) for part in parts)
        canvas_hw = next((part.canvas_hw for part in parts if len(part.indices)), self._processes.empty_hw)
        rows_of_targets = np.concatenate([part.targets for part in parts])
        targets = torch.from_numpy(rows_of_targets[np.argsort(rows_of_targets[:, 0], kind="stable")])
        positions, indices = np.empty((2, rows), np.int64)
        for at, part in enumerate(parts):
            positions[at :: len(parts)], indices[at :: len(parts)] = part.positions, part.indices
        placed = (
            parts[row % len(parts)].geometry[row // len(parts)] for row in range(rows if parts[0].geometry else 0)
        )
        return Batch(
            images_bchw=self._processes.room.batch(number, rows, canvas_hw),
            targets=targets,
            positions=torch.from_numpy(positions),
            indices=torch.from_numpy(indices),
            geometry=tuple(placed),
            matches=self._match(targets, canvas_hw) if self._match is not None else None,
        )


def _made(part: BatchPart | PartFailed) -> BatchPart:
    """Returns a part that was made. A failure is raised with its batch, however far ahead it was found."""
    if isinstance(part, BatchPart):
        return part
    logger.error("loader process %d:\n%s", part.process, part.stack)
    raise LoaderProcessError(f"loader process {part.process} could not make a sample of {part.cause}")


def _death(process: BaseProcess) -> LoaderProcessError:
    """Returns the error for a process that is gone."""
    process.join(_END_TIMEOUT_S)
    code = process.exitcode
    if code is not None and code < 0:
        how = f"is killed by signal: {signal.strsignal(-code)}"
    else:
        how = f"ended by itself with exit code {code}"
    return LoaderProcessError(f"loader process {process.name} (pid {process.pid}) {how}")


def _end(owner: int, workers: Sequence[BaseProcess], connections: Sequence[Connection]) -> None:
    """Ends the processes: they leave when their worker's end is closed, or are told to."""
    if os.getpid() != owner:
        return  # a forked copy of the owner
    for connection in connections:
        connection.close()
    for process in workers:
        process.terminate()
    deadline = time.monotonic() + _END_TIMEOUT_S
    for process in workers:
        process.join(max(0.0, deadline - time.monotonic()))
        if process.is_alive():
            process.kill()

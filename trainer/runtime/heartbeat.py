"""Keeps the heartbeat of one rank up to date."""

from __future__ import annotations

import contextlib
import os
import threading
import time

from trainer.protocol import Heartbeat, LogFiles, Phase, write_heartbeat


class HeartbeatWriter:
    """A small file that says what a rank is doing; a watcher compares its content over time."""

    def __init__(self, files: LogFiles, rank: int, interval_s: float = 1.0) -> None:
        self.path = files.heartbeat(rank)
        self._rank = rank
        self._interval_s = interval_s
        self._written_at = 0.0
        self.epoch = 0
        self.step = 0
        self.phase: Phase = "start"
        self._device_marks = self._collective_marks = -1
        self._collective = ""
        self._lock = threading.Lock()

    def beat(self, phase: Phase, epoch: int | None = None, step: int | None = None) -> None:
        """Says how far this rank has come; writes at most once per interval, and at once when the phase changes."""
        changed = phase != self.phase
        if changed and self.phase == "scan":  # whose steps are files: nothing has been learned
            self.epoch = self.step = 0
        self.phase = phase
        self.epoch = self.epoch if epoch is None else epoch
        self.step = self.step if step is None else step
        if changed or not self._written_at or time.time() - self._written_at >= self._interval_s:
            self._write()

    def device_reached(self, marks: int) -> None:
        """Says what the GPU has come to, from another thread: it may go on, or stand still, while the host waits."""
        if marks != self._device_marks:
            self._device_marks = marks
            self._collective_marks, self._collective = -1, ""  # it stands still no more
            self._write()

    def device_waits(self, collective_marks: int, collective: str) -> None:
        """Says, from another thread, in which collective the GPU stands still."""
        if (collective_marks, collective) != (self._collective_marks, self._collective):
            self._collective_marks, self._collective = collective_marks, collective
            self._write()

    def _write(self) -> None:
        with self._lock, contextlib.suppress(OSError):  # a full disk must not stop training
            self._written_at = time.time()
            beat = Heartbeat(
                rank=self._rank,
                phase=self.phase,
                epoch=self.epoch,
                step=self.step,
                written_at=self._written_at,
                pid=os.getpid(),
                device_marks=self._device_marks,
                collective_marks=self._collective_marks,
                collective=self._collective,
            )
            write_heartbeat(self.path, beat)

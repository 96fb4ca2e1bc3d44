"""Keeps the heartbeat of one rank up to date."""

from __future__ import annotations

import contextlib
import os
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

    def beat(self, phase: Phase, epoch: int | None = None, step: int | None = None) -> None:
        """Says how far this rank has come; writes at most once per interval, and at once when the phase changes."""
        changed = phase != self.phase
        if changed and self.phase == "scan":  # whose steps are files: nothing has been learned
            self.epoch = self.step = 0
        self.phase = phase
        self.epoch = self.epoch if epoch is None else epoch
        self.step = self.step if step is None else step
        now = time.time()
        if not changed and self._written_at and now - self._written_at < self._interval_s:
            return
        self._written_at = now
        with contextlib.suppress(OSError):  # a full disk must not stop training
            write_heartbeat(self.path, Heartbeat(self._rank, phase, self.epoch, self.step, now, os.getpid()))

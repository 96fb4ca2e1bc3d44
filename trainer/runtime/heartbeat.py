"""Writes the heartbeat of one rank."""

from __future__ import annotations

import contextlib
import json
import os
import time
from pathlib import Path
from typing import Any

from trainer.runtime.files import replace_text


class Heartbeat:
    """A small file that says what a rank is doing; a watcher compares its content over time."""

    def __init__(self, path: Path, rank: int, interval_s: float = 1.0) -> None:
        self.path = path
        self._rank = rank
        self._interval_s = interval_s
        self._written_at = 0.0
        self._said: tuple[Any, ...] = ()
        self.epoch = 0
        self.step = 0
        self.phase = "start"

    def beat(self, phase: str, epoch: int | None = None, step: int | None = None) -> None:
        """Say where this rank is; writes at most once per interval, and at once when the phase changes."""
        changed = phase != self.phase
        self.phase = phase
        self.epoch = self.epoch if epoch is None else epoch
        self.step = self.step if step is None else step
        now = time.time()
        if not changed and now - self._written_at < self._interval_s and self._said:
            return
        self._written_at = now
        self._said = (phase, self.epoch, self.step)
        content = {
            "rank": self._rank,
            "pid": os.getpid(),
            "phase": phase,
            "epoch": self.epoch,
            "step": self.step,
            "time": now,
        }
        with contextlib.suppress(OSError):  # a full disk must not stop training
            replace_text(self.path, json.dumps(content))

"""Watches how far a GPU has come, so that a hang names the rank whose GPU stands still and not the one that waits."""

from __future__ import annotations

import threading
import time
from collections import deque

import torch

from trainer.runtime.collective_trace import trace_collectives
from trainer.runtime.heartbeat import HeartbeatWriter

_INTERVAL_S = 1.0
_QUIET_S = 5.0
"""A GPU that passes no mark for so long is asked for its collectives."""


class DeviceProgress:
    """Events after each forward pass and each step; a thread tells the heartbeat of those that the GPU has passed.

    Nothing waits: an event is asked whether it was reached. On a CPU this does nothing.
    """

    def __init__(self, heartbeat: HeartbeatWriter, device: torch.device, interval_s: float = _INTERVAL_S) -> None:
        self._heartbeat = heartbeat
        self._is_used = device.type == "cuda"
        self._interval_s = interval_s
        self._ahead: deque[tuple[int, torch.cuda.Event]] = deque()
        self._passed_at = time.monotonic()
        self._thread: threading.Thread | None = None

    def forward_done(self, step: int) -> None:
        """Marks the end of a step's forward pass among what the device is to do."""
        self._mark(2 * step + 1)

    def step_done(self, step: int) -> None:
        """Marks the end of a step."""
        self._mark(2 * step + 2)

    def look(self) -> None:
        """Tells the heartbeat of the newest mark that the device has passed, or of what it has long waited in."""
        passed = -1
        while self._ahead and self._ahead[0][1].query():  # type: ignore[no-untyped-call]
            passed = self._ahead.popleft()[0]
        if passed >= 0:
            self._passed_at = time.monotonic()
            self._heartbeat.device_reached(passed)
        elif self._ahead and time.monotonic() - self._passed_at >= _QUIET_S:
            self._heartbeat.device_waits(*trace_collectives("nccl"))

    def _mark(self, number: int) -> None:
        if not self._is_used:
            return
        event = torch.cuda.Event()  # type: ignore[no-untyped-call]
        event.record()
        self._ahead.append((number, event))
        if self._thread is None:
            self._thread = threading.Thread(target=self._watch, name="device progress", daemon=True)
            self._thread.start()

    def _watch(self) -> None:
        pause = threading.Event()
        while not pause.wait(self._interval_s):
            try:
                self.look()
            except RuntimeError:
                return  # the device failed: the main thread learns it where it waits

"""Follows a run from its files alone, whoever started it: the lines of its log as they come, and how far it is."""

from __future__ import annotations

import socket
import time
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import psutil

from trainer.protocol import STEP_PHASES, Heartbeat, RunFiles, read_heartbeat
from yolo_launch.jobs import run_directory
from yolo_launch.jobs.overview import RunOverview, holder_of, look_at

SPEED_SPAN_S = 20.0
LAST_WORDS_S = 10.0
_MOST_BYTES = 1 << 20


class LogTail:
    """Reads what has been added to a file; its first piece are the last lines that were there."""

    def __init__(self, path: Path, lines: int) -> None:
        self.path = path
        self._lines: int | None = lines
        self._position = 0
        self._rest = b""

    def new_lines(self) -> list[str]:
        """Returns the whole lines that were added; those of a file that began anew from its beginning."""
        try:
            size = self.path.stat().st_size
            if size < self._position:
                self._position, self._rest = 0, b""
            with self.path.open("rb") as file:
                file.seek(max(self._position, size - _MOST_BYTES))
                added = file.read(_MOST_BYTES)
                self._position = file.tell()
        except OSError:
            return []
        *whole, self._rest = (self._rest + added).split(b"\n")
        # A terminal would show what follows the last return to the line's beginning.
        lines = [line.rstrip(b"\r").rpartition(b"\r")[2].decode(errors="replace") for line in whole]
        if self._lines is not None and lines:
            lines, self._lines = lines[max(0, len(lines) - self._lines) :], None
        return lines


def log_of(run_dir: Path) -> Path:
    """Returns the log to follow: what the launcher says, if it has left its terminal, else what rank 0 does."""
    log = run_directory.launcher_log(run_dir)
    return log if log.is_file() else RunFiles(run_dir).logs.log(0)


@dataclass(frozen=True)
class Glance:
    """What is known of a run at one moment."""

    overview: RunOverview
    lines: list[str]
    """Of its log, since the glance before."""
    progress: str
    """Where it is, in one line."""


def glances(run_dir: Path, *, lines: int, every_s: float) -> Iterator[Glance]:
    """Looks at a run at intervals until it does not run any more; the last glance has its launcher's last lines."""
    tail, positions = LogTail(log_of(run_dir), lines), Speed(run_dir)
    was_running = False
    while True:
        overview = look_at(run_dir)
        if was_running and overview.state != "running":
            _await_last_words(run_dir)
        heartbeat = read_heartbeat(RunFiles(run_dir).logs, 0)
        yield Glance(overview, tail.new_lines(), progress_text(overview, heartbeat, positions.add(heartbeat)))
        was_running = overview.state == "running"
        if not was_running:
            return
        time.sleep(every_s)


def _await_last_words(run_dir: Path) -> None:
    """Waits until a launcher that has given its run free has said how it ended, and is gone."""
    pid, host = holder_of(run_dir)
    deadline = time.monotonic() + LAST_WORDS_S
    while time.monotonic() < deadline:
        is_here = host == socket.gethostname()
        if not psutil.pid_exists(pid) if is_here else run_directory.read_outcome(run_dir):
            return
        time.sleep(0.05)


def progress_text(overview: RunOverview, heartbeat: Heartbeat | None, images_per_s: float) -> str:
    """Returns where a run is, such as ``epoch 3/60, step 41: train, 35.2 images/s, best mAP50-95 0.410``."""
    if heartbeat is None:
        return "starting" if overview.state == "running" else overview.state
    place = ""
    if heartbeat.phase in STEP_PHASES - {"done"}:
        of = f"/{overview.epochs}" if overview.epochs else ""
        place = f"epoch {heartbeat.epoch + 1}{of}, step {heartbeat.step}: "
    speed = f", {images_per_s:.1f} images/s" if images_per_s else ""
    best = "" if overview.map5095 is None else f", best mAP50-95 {overview.map5095:.3f}"
    return f"{place}{heartbeat.phase}{speed}{best}"


class Speed:
    """Measures images a second of the last seconds."""

    def __init__(self, run_dir: Path) -> None:
        batch = run_directory.read_plan(run_dir).get("global_batch_size")
        self._batch = batch if isinstance(batch, int) else 0
        self._steps: deque[tuple[float, int]] = deque()

    def add(self, heartbeat: Heartbeat | None) -> float:
        """Returns the speed; 0 if it is not known."""
        if heartbeat is None:
            return 0.0
        if not self._steps or self._steps[-1][1] != heartbeat.step:
            self._steps.append((heartbeat.written_at, heartbeat.step))
        while len(self._steps) > 2 and heartbeat.written_at - self._steps[0][0] > SPEED_SPAN_S:
            self._steps.popleft()
        (began_at, first), (ended_at, last) = self._steps[0], self._steps[-1]
        if ended_at <= began_at or last <= first:
            return 0.0
        return (last - first) * self._batch / (ended_at - began_at)

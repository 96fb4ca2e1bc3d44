"""Shows how rank 0 trains: with a live line and a row an epoch on a terminal, with plain lines elsewhere."""

from __future__ import annotations

import contextlib
import io
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, TextIO

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, Progress, TaskID, TextColumn

from trainer.protocol import output_is_data
from trainer.reading.text_file import printable

_HEADER = f"{'epoch':>9} {'box':>8} {'obj':>8} {'cls':>8} {'P':>7} {'R':>7} {'mAP50':>7} {'mAP50-95':>9} {'img/s':>7}"


def output_stream() -> TextIO:
    """Returns stdout, or stderr if the caller keeps stdout for data."""
    stream = sys.stderr if output_is_data(os.environ) else sys.stdout
    if isinstance(stream, io.TextIOWrapper):
        stream.reconfigure(errors="backslashreplace")  # a path's signs that the terminal's encoding does not have
    return stream


class Reporter:
    """Prints for people. A rank that must not print has one with ``enabled=False``."""

    def __init__(self, *, enabled: bool, log_path: Path | None = None) -> None:
        self.enabled = enabled
        self._console = Console(file=output_stream(), highlight=False, soft_wrap=True)
        self._live = enabled and self._console.is_terminal
        self._log_path = log_path if enabled else None
        self._bar: Progress | None = None
        self._task: TaskID | None = None
        self._shown_at = 0.0
        self._printed_header = False

    def say(self, text: str, style: str = "") -> None:
        """Writes one line, on the screen and in the log of rank 0."""
        if not self.enabled:
            return
        text = printable(text)
        self._log(text)
        self._show(lambda: self._console.print(f"[{style}]{escape(text)}[/]" if style else escape(text)))

    def warn(self, text: str) -> None:
        """Writes a warning, in yellow on a terminal with colors."""
        self.say(f"warning: {text}", "yellow")

    def start_epoch(self, epoch: int, epochs: int, batches: int, done: int) -> None:
        """Begins the live line of an epoch, ``done`` batches in."""
        if not self._live:
            return
        self._bar = Progress(
            TextColumn("{task.description}"),
            BarColumn(bar_width=24),
            TextColumn("{task.completed}/{task.total}"),
            TextColumn("{task.fields[detail]}"),
            console=self._console,
            transient=True,
        )
        self._task = self._bar.add_task(f"epoch {epoch + 1}/{epochs}", total=batches, completed=done, detail="")
        self._show(self._bar.start)

    def due(self) -> bool:
        """Returns True if the live line is old enough for new numbers; that reads nothing from a device."""
        return self._bar is not None and time.monotonic() - self._shown_at > 0.25

    def step(self, done: int, detail: str) -> None:
        """Puts new numbers on the live line."""
        self._update(completed=done, detail=detail)

    def phase(self, text: str, done: int, total: int) -> None:
        """Shows another activity, such as validation, on the live line."""
        if self.due() or done == 0:
            self._update(description=text, completed=done, total=total, detail="")

    def end_epoch(self, epochs: int, row: dict[str, float], *, is_best: bool) -> None:
        """Replaces the live line by the epoch's row."""
        self.stop()
        if not self._printed_header:
            self.say(_HEADER, "bold")
            self._printed_header = True
        cells = [_cell(row.get(f"train/{name}_loss"), 8, 4) for name in ("box", "obj", "cls")]
        cells += [_cell(row.get(f"metrics/{name}"), 7, 3) for name in ("precision", "recall", "mAP_0.5")]
        cells += [_cell(row.get("metrics/mAP_0.5:0.95"), 9, 3), _cell(row.get("images_per_second"), 7, 1)]
        line = f"{int(row['epoch']) + 1:>4}/{epochs:<4} " + " ".join(cells)
        self.say(line + ("  best" if is_best else ""))

    def stop(self) -> None:
        """Removes the live line."""
        bar, self._bar = self._bar, None
        if bar is not None:
            self._show(bar.stop)

    def _update(self, **values: Any) -> None:
        bar, task = self._bar, self._task
        if bar is not None and task is not None:
            self._shown_at = time.monotonic()
            self._show(lambda: bar.update(task, **values))

    def _show(self, action: Callable[[], None]) -> None:
        """Writes to the screen; a full disk or a closed pipe behind it ends the output, not the training."""
        try:
            action()
        except (OSError, SystemExit):  # rich makes an exit of a closed pipe
            self._live, self._bar = False, None
            with contextlib.suppress(OSError, ValueError), open(os.devnull, "wb") as nowhere:
                os.dup2(nowhere.fileno(), self._console.file.fileno())  # what is still buffered goes there too

    def _log(self, text: str) -> None:
        if self._log_path is None:
            return
        try:
            with self._log_path.open("a", encoding="utf-8") as file:
                file.write(text + "\n")
        except OSError:
            self._log_path = None


def _cell(value: float | None, width: int, digits: int) -> str:
    """Formats a number of a table; a dash for one that was not measured."""
    return f"{'-':>{width}}" if value is None else f"{value:>{width}.{digits}f}"


def duration(seconds: float) -> str:
    """Formats a duration: '41s', '3m05s' or '2h14m'."""
    whole = int(seconds)
    if whole < 60:
        return f"{whole}s"
    if whole < 3600:
        return f"{whole // 60}m{whole % 60:02d}s"
    return f"{whole // 3600}h{whole % 3600 // 60:02d}m"

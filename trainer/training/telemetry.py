"""Writes results and curves of a run and measures its speed."""

from __future__ import annotations

import csv
import io
import json
import logging
import time
from collections import deque
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from trainer.protocol import RunFiles, replace_text

_log = logging.getLogger(__name__)

RESULT_COLUMNS = (
    "epoch",
    "train/box_loss",
    "train/obj_loss",
    "train/cls_loss",
    "metrics/precision",
    "metrics/recall",
    "metrics/mAP_0.5",
    "metrics/mAP_0.5:0.95",
    "val/box_loss",
    "val/obj_loss",
    "val/cls_loss",
    "x/lr0",
    "x/lr1",
    "x/lr2",
)
"""The columns of results.csv, under YOLOv5's names."""


class ResultsWriter:
    """results.csv and metrics.jsonl of the run directory, always equal to the run's history.

    Epochs count from 1 there, as on the terminal. The weights at the start have a row in metrics.jsonl alone, under
    epoch 0.
    """

    def __init__(self, run_dir: Path, tensorboard: bool = True) -> None:
        self.files = RunFiles(run_dir)
        self._board = _make_board(run_dir) if tensorboard else None

    def write(self, history: list[dict[str, float]], start: dict[str, float]) -> None:
        """Writes the rows of all finished epochs, and that of the start if it was measured; a failure is a warning."""
        history, started = _counted_from_1(history), _counted_from_1([start] if start else [])
        table = io.StringIO()
        rows = csv.writer(table, lineterminator="\n")
        rows.writerow(RESULT_COLUMNS)
        for row in history:
            rows.writerow(_cell(row.get(column, float("nan"))) for column in RESULT_COLUMNS)
        try:
            replace_text(self.files.results, table.getvalue())
            lines = [json.dumps(row) + "\n" for row in started + history]
            replace_text(self.files.metrics, "".join(lines))
        except OSError as error:
            _log.warning("could not write the results (%s); they are kept in the checkpoint", error)
        if history:
            self._on_board(lambda board: _add_row(board, history[-1]))

    def close(self) -> None:
        """Flushes TensorBoard's file."""
        self._on_board(lambda board: board.close())

    def _on_board(self, action: Callable[[Any], None]) -> None:
        """Runs an action on TensorBoard; a failure is a warning, and no further action is tried."""
        if self._board is None:
            return
        try:
            action(self._board)
        except Exception as error:
            _log.warning("TensorBoard gets no more curves of this run (%s)", error)
            self._board = None


def _counted_from_1(rows: list[dict[str, float]]) -> list[dict[str, float]]:
    return [{**row, "epoch": row["epoch"] + 1} for row in rows]


def _add_row(board: Any, row: dict[str, float]) -> None:
    for name, value in row.items():
        board.add_scalar(name, value, int(row["epoch"]))


def _cell(value: float) -> str:
    return str(int(value)) if float(value).is_integer() and abs(value) < 1e9 else f"{value:.6g}"


def _make_board(run_dir: Path) -> Any:
    """Returns a TensorBoard writer, or None if the extra is not installed or the writer fails."""
    try:
        from torch.utils.tensorboard import SummaryWriter

        return SummaryWriter(str(run_dir))
    except ImportError:
        return None
    except OSError as error:
        _log.warning("TensorBoard gets no curves of this run (%s)", error)
        return None


MOST_SKIPPED = 20
"""Updates in a row that loss scaling may leave out while it looks for a scale: 2 ** 20 is more than it begins with."""


class NonFiniteDetector:
    """Finds the first step whose loss was not finite without making any step wait.

    On a CPU the answer is at hand. On CUDA each step's flag is copied to pinned memory and read once it has arrived,
    a step or two later.
    """

    def __init__(self) -> None:
        self.bad_step: int | None = None
        """The first micro step seen with a NaN or infinite loss."""
        self._traveling: deque[tuple[int, Tensor, torch.cuda.Event]] = deque()
        self._skipped: Tensor | None = None

    def note(self, micro_step: int, items: Tensor) -> None:
        """Checks a step's items for NaN and infinity; ``items`` is a tensor of any shape."""
        finite = torch.isfinite(items).all()
        if items.device.type != "cuda":
            self._found(micro_step, bool(finite))
            return
        flag = torch.empty((), dtype=torch.bool, pin_memory=True)
        flag.copy_(finite, non_blocking=True)
        arrived = torch.cuda.Event()
        arrived.record()
        self._traveling.append((micro_step, flag, arrived))
        while self._traveling and self._traveling[0][2].query():
            step, flag, _ = self._traveling.popleft()
            self._found(step, bool(flag))

    def note_skipped(self, micro_step: int, norm: Tensor) -> None:
        """Counts on the device the updates that loss scaling leaves out: too many in a row are a bad step."""
        if self._skipped is None or self._skipped.device != norm.device:
            self._skipped = torch.zeros((), device=norm.device)
        is_skipped = (~torch.isfinite(norm)).to(self._skipped)
        self._skipped = (self._skipped + 1) * is_skipped
        self.note(micro_step, torch.where(self._skipped > MOST_SKIPPED, torch.inf, 0.0))

    def settle(self) -> None:
        """Waits for every flag that is still being copied."""
        while self._traveling:
            step, flag, arrived = self._traveling.popleft()
            arrived.synchronize()
            self._found(step, bool(flag))

    def reset(self) -> None:
        """Forgets what was seen, after a return to an earlier state."""
        self._traveling.clear()
        self._skipped = None
        self.bad_step = None

    def _found(self, step: int, finite: bool) -> None:
        if not finite and self.bad_step is None:
            self.bad_step = step


class ThroughputMeter:
    """Images a second of an epoch, and the part of its time that went into waiting for data."""

    def __init__(self) -> None:
        self.start()

    def start(self) -> None:
        """Begins an epoch."""
        self._started_at = time.monotonic()
        self._images = 0
        self.data_wait_s = 0.0

    def add(self, images: int) -> None:
        """Counts the images of a step."""
        self._images += images

    @property
    def elapsed_s(self) -> float:
        """Returns the seconds since the epoch began."""
        return time.monotonic() - self._started_at

    @property
    def images_per_second(self) -> float:
        """Returns the mean over the epoch so far, in images per second."""
        return self._images / max(self.elapsed_s, 1e-9)

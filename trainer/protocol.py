"""Holds what launcher and worker agree on, so that each fact stands once. It needs the standard library only.

Names of environment variables and files, exit codes, the records that one side writes and the other reads, the loaders'
share of a machine, and the defaults that both sides show. No other module of either package repeats one of them.
"""

from __future__ import annotations

import contextlib
import json
import os
import time
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal

PARENT_VARIABLE = "YOLO_PARENT_PID"
"""A launcher's process id; the worker that finds itself with another parent has lost it already."""
LOGS_VARIABLE = "YOLO_LOGS_DIR"
"""Folder of the files that ``LogFiles`` names."""
OUTPUT_VARIABLE = "YOLO_TRAINER_OUTPUT"
"""``OUTPUT_ON_STDERR`` keeps a worker's stdout free for data."""
OUTPUT_ON_STDERR = "stderr"
DEVICE_VARIABLE = "YOLO_DEVICE"
"""The kind of device that was planned for a worker, ``cpu`` or ``cuda``; it takes no other."""
ERROR_FILE_VARIABLE = "TORCHELASTIC_ERROR_FILE"
"""Where a failing worker leaves a ``FailureRecord``; torch's agent knows it too."""
RUN_ID_VARIABLE = "TORCHELASTIC_RUN_ID"
"""Set in every worker of an elastic agent, whoever started it."""

CONFIG_FILE = "config.yaml"
SUMMARY_FILE = "summary.json"
RESULTS_FILE = "results.csv"
METRICS_FILE = "metrics.jsonl"
LAST_WEIGHTS, PREVIOUS_WEIGHTS, BEST_WEIGHTS = "last.pt", "last.previous.pt", "best.pt"
HEARTBEAT_PATTERN = "rank*.heartbeat.json"

EXIT_DONE = 0
EXIT_FAILED = 1
EXIT_USAGE = 2
"""The worker refused its input."""
EXIT_ENVIRONMENT = 3
"""The machine cannot do it."""
EXIT_SAVED_AND_STOPPED = 75
"""A signal asked to stop and the state is saved."""

PREFETCHED_BATCHES = 4
"""Batches that a rank's loader processes together work ahead."""

DEFAULT_IMAGE_SIZE = 640
DEFAULT_BATCH_SIZE = 16
MAX_BAD_SHARE = 0.1
"""A split of which more than this share (and more than one image) cannot be used is refused."""
VAL_CONFIDENCE, VAL_IOU = 0.001, 0.6
"""Thresholds of a measurement: nearly every box counts."""
PREDICT_CONFIDENCE, PREDICT_IOU = 0.25, 0.45
"""Thresholds for people, and for whoever runs an exported model."""
MAX_DETECTIONS = 300
"""Boxes of an image that are measured or exported."""
PREDICT_MAX_DETECTIONS = 1000
VAL_BATCH_SIZE, PREDICT_BATCH_SIZE = 32, 8

Phase = Literal["start", "scan", "train", "val", "save", "done"]
"""What a worker is doing."""
STEP_PHASES: frozenset[Phase] = frozenset({"train", "val", "save", "done"})
"""Phases in which epoch and step say how far a run has come."""


class LogFiles:
    """The files of each rank in a run's folder of logs."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def log(self, rank: int) -> Path:
        """Returns the path of a rank's output; rank 0 writes to the terminal, and to this file by itself."""
        return self.folder / f"rank{rank}.log"

    def error(self, rank: int) -> Path:
        """Returns the path of the ``FailureRecord`` that a failing worker writes."""
        return self.folder / f"rank{rank}.error.json"

    def heartbeat(self, rank: int) -> Path:
        """Returns the path of the ``Heartbeat`` that a worker keeps up to date."""
        return self.folder / HEARTBEAT_PATTERN.replace("*", str(rank))

    def finished(self, rank: int) -> Path:
        """Returns the path of an empty file that a script's worker makes after its last line."""
        return self.folder / f"rank{rank}.finished"

    def stacks(self, rank: int) -> Path:
        """Returns the path of Python stacks, written by a worker on SIGUSR2."""
        return self.folder / f"rank{rank}.stacks"


class RunFiles:
    """The files of a run directory that both sides know."""

    def __init__(self, run_dir: Path) -> None:
        self.run_dir = run_dir
        self.config = run_dir / CONFIG_FILE
        self.summary = run_dir / SUMMARY_FILE
        self.results = run_dir / RESULTS_FILE
        self.metrics = run_dir / METRICS_FILE
        self.weights = run_dir / "weights"
        self.best_weights = self.weights / BEST_WEIGHTS
        self.logs = LogFiles(run_dir / "logs")

    def make_folders(self) -> None:
        """Makes the folders of weights and logs, and the run directory itself. Raises OSError."""
        for folder in (self.weights, self.logs.folder):
            folder.mkdir(parents=True, exist_ok=True)


def rank_in(environ: Mapping[str, str]) -> int:
    """Returns the rank that a torchrun-style launcher gave a process; 0 for a lone process."""
    text = environ.get("RANK", "")
    return int(text) if text.isdigit() else 0


OUT_OF_GPU_MEMORY = (
    r"CUDA out of memory|OutOfMemoryError|CUDA error: out of memory|(?:CUDNN|CUBLAS)_STATUS_ALLOC_FAILED"
    r"|unable to find an engine to execute this computation|CUFFT_ALLOC_FAILED|CUSOLVER_STATUS_ALLOC_FAILED"
    r"|NCCL.*out of memory|Cuda failure 2\b|HIP out of memory|cudaErrorMemoryAllocation"
)
"""A pattern of what torch and the libraries below it say when a GPU has no memory left."""


def output_is_data(environ: Mapping[str, str]) -> bool:
    """Returns True if a worker's stdout belongs to data, so that everything else goes to stderr."""
    return environ.get(OUTPUT_VARIABLE) == OUTPUT_ON_STDERR


@contextlib.contextmanager
def replacing(path: Path, *, beside: Path | None = None) -> Iterator[Path]:
    """Yields a path to write, which takes the place of ``path`` if the block succeeds and is removed if it fails.

    A reader sees the old content or the new one. ``beside`` is that path, in the same folder; without it the name is
    hidden, ends in .tmp and is not given twice, on this machine or on another that shares the folder.
    """
    temporary = beside or path.with_name(f".{path.name}.{os.getpid()}-{os.urandom(4).hex()}.tmp")
    try:
        yield temporary
        os.replace(temporary, path)
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)  # also after a rename onto the same file, which does nothing


def replace_text(path: Path, text: str, *, sync: bool = False) -> None:
    """Replaces a file's content at once; with ``sync`` only after the disk has it. Raises OSError."""
    with replacing(path) as temporary, temporary.open("w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        if sync:
            os.fsync(file.fileno())


@dataclass(frozen=True)
class Heartbeat:
    """What one rank is doing: phase, epoch, step and the wall-clock second of writing."""

    rank: int
    phase: str
    epoch: int
    step: int
    written_at: float
    pid: int = 0
    device_marks: int = -1
    """What its GPU has done: 2 n of n steps, one more after the forward pass of the next; -1 if nothing is known."""
    collective_marks: int = -1
    """The same of collectives: 2 n after n, one more once the next has begun; told where the GPU stands still."""
    collective: str = ""
    """The oldest collective that its GPU has not finished."""

    @property
    def finished_a_step(self) -> bool:
        """Returns True if this rank has learned something since the run began."""
        return self.phase in STEP_PHASES and (self.epoch, self.step) > (0, 0)


def write_heartbeat(path: Path, heartbeat: Heartbeat) -> None:
    """Replaces a rank's heartbeat. Raises OSError."""
    content = asdict(heartbeat)
    content["time"] = content.pop("written_at")
    replace_text(path, json.dumps(content))


def read_heartbeat(files: LogFiles, rank: int) -> Heartbeat | None:
    """Reads the rank's heartbeat; None if there is none or a foreign script wrote something else."""
    try:
        content = json.loads(files.heartbeat(rank).read_text(encoding="utf-8"))
        return Heartbeat(
            rank=rank,
            phase=str(content.get("phase", "")),
            epoch=int(content.get("epoch") or 0),
            step=int(content.get("step") or 0),
            written_at=float(content.get("time") or 0.0),
            pid=int(content.get("pid") or 0),
            device_marks=int(content.get("device_marks", -1)),
            collective_marks=int(content.get("collective_marks", -1)),
            collective=str(content.get("collective", "")),
        )
    except (OSError, ValueError, TypeError, AttributeError):
        return None


@dataclass(frozen=True)
class FailureRecord:
    """Why a rank failed, by its own account."""

    rank: int
    message: str
    traceback: str = ""
    user_error: dict[str, str] | None = None
    """The four parts and the kind of a mistake of the user's."""
    relayed: bool = False
    """Another rank raised it first."""
    by_torch: bool | None = None
    """Torch raised it, not the program; None if the writer does not say."""
    phase: str = ""
    epoch: int | None = None
    step: int | None = None
    written_at: float = 0.0
    """Of the file, in wall-clock seconds: finer than what torch's format holds."""


def write_failure(path: Path, record: FailureRecord) -> None:
    """Writes a record in the elastic agent's format with more fields. Raises OSError."""
    now = time.time()
    content = {
        "message": {
            "message": record.message,
            "extraInfo": {"py_callstack": record.traceback, "timestamp": str(int(now))},
        },
        "user_error": record.user_error,
        "rank": record.rank,
        "relayed": record.relayed,
        "by_torch": record.by_torch,
        "phase": record.phase,
        "epoch": record.epoch,
        "step": record.step,
        "time": now,
    }
    replace_text(path, json.dumps(content))


def read_failure(files: LogFiles, rank: int) -> FailureRecord | None:
    """Reads the failure that a rank, or torch's @record in a script, wrote; None if nothing, or half, was written."""
    path = files.error(rank)
    try:
        written_at = path.stat().st_mtime
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    if not isinstance(content, dict) or not content:
        return None
    return replace(_failure_of(rank, content), written_at=written_at)


def _failure_of(rank: int, content: Mapping[str, Any]) -> FailureRecord:
    message, traceback = content.get("message", ""), ""
    if isinstance(message, dict):
        extra = message.get("extraInfo")
        traceback = str(extra.get("py_callstack", "")) if isinstance(extra, dict) else ""
        message = message.get("message", "")
    user_error = content.get("user_error")
    return FailureRecord(
        rank=rank,
        message=str(message),
        traceback=traceback,
        user_error={str(k): str(v) for k, v in user_error.items()} if isinstance(user_error, dict) else None,
        relayed=content.get("relayed") is True,
        by_torch=content["by_torch"] if isinstance(content.get("by_torch"), bool) else None,
        phase=str(content.get("phase") or ""),
        epoch=_whole(content.get("epoch")),
        step=_whole(content.get("step")),
    )


def _whole(value: object) -> int | None:
    return int(value) if isinstance(value, (int, float)) and not isinstance(value, bool) else None


def affinity_cores() -> int:
    """Cores that this process may run on, whatever a control group's quota."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def default_loader_workers(cores: int, ranks: int, *, on_cpu: bool) -> int:
    """Returns the loader processes of each of a machine's ranks if nobody asked for a number.

    On a GPU all of the rank's cores but one, which the training loop needs. On a CPU the model wants the cores too, so
    loaders get a quarter of them, and none of a few.
    """
    cores_per_rank = max(1, cores // ranks)
    return cores_per_rank // 4 if on_cpu else max(1, cores_per_rank - 1)

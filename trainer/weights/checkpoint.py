"""Writes and reads checkpoints: a temporary file renamed, verified by its checksum, the previous file kept.

A file is a dictionary that ``torch.load(weights_only=True)`` reads. The entry ``checksum`` is the SHA-256 of all other
entries, so a flipped bit in any of them is found.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import os
import queue
import shutil
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from trainer.errors import WeightsError
from trainer.protocol import BEST_WEIGHTS, LAST_WEIGHTS, PREVIOUS_WEIGHTS, replacing

FORMAT = "yolo-launch checkpoint"
VERSION = 1
RETRY_S = 10.0
"""Seconds from a failed write to the next attempt."""

_log = logging.getLogger(__name__)


def checksum(content: Any) -> str:
    """Returns the SHA-256 over keys, plain values and tensors (dtype, shape and bytes) in order."""
    digest = hashlib.sha256()
    for part in _byte_parts(content):
        digest.update(part)
    return digest.hexdigest()


def _byte_parts(value: Any) -> Iterator[Any]:
    if isinstance(value, Tensor):
        yield f"T{value.dtype}{tuple(value.shape)}".encode()
        # A view as bytes, since numpy has no bfloat16.
        yield value.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data
    elif isinstance(value, dict):
        for key, item in value.items():
            yield f"K{key}".encode()
            yield from _byte_parts(item)
    elif isinstance(value, (list, tuple)):
        yield f"L{len(value)}".encode()
        for item in value:
            yield from _byte_parts(item)
    else:
        yield json.dumps(value).encode()


def write_checkpoint(path: Path, content: dict[str, Any], keep_previous: Path | None = None) -> None:
    """Writes, flushes, verifies and renames; at every moment ``path`` is absent or whole.

    The file that was at ``path`` before stays as ``keep_previous``. Raises OSError.
    """
    full = {"format": FORMAT, "version": VERSION, **content}
    full["checksum"] = checksum({key: full[key] for key in sorted(full)})
    try:
        with replacing(path) as temporary:
            with temporary.open("wb") as file:
                torch.save(full, file)
                file.flush()
                os.fsync(file.fileno())
            read_checkpoint(temporary)
            if keep_previous is not None and path.exists():
                _link_over(path, keep_previous)
        _sync(path.parent)
    except RuntimeError as error:  # torch.save's own message for a full disk is "unexpected pos"
        raise _disk_error_behind(error) from error
    except WeightsError as error:
        raise OSError(f"what was written does not read back: {error}") from error


def _disk_error_behind(error: BaseException) -> OSError:
    """Returns the OSError that an error came from, or one with the error's text."""
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, OSError):
            return OSError(cause.errno, cause.strerror)
        cause = cause.__cause__ or cause.__context__
    return OSError(str(error))


def _link_over(source: Path, target: Path) -> None:
    with replacing(target) as beside:
        try:
            os.link(source, beside)
        except OSError:  # FAT, some network shares and bucket mounts have no hard links
            shutil.copyfile(source, beside)
            _sync(beside)


def _sync(path: Path) -> None:
    """Flushes a file's content, or a folder's names, to the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def read_checkpoint(path: Path) -> dict[str, Any]:
    """Reads a checkpoint to the CPU. Raises WeightsError for a missing, damaged, foreign or newer file."""
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError:
        raise WeightsError(
            "the weights file is missing",
            seen=str(path),
            expected="a checkpoint as yolo-launch wrote it",
            next_command="resume from another checkpoint of the run, or start anew",
        ) from None
    except Exception as error:  # torch raises errors of many types on damaged bytes
        why = (str(error) or type(error).__name__).splitlines()[0]
        what = f"{path.name} is damaged or not a checkpoint of yolo-launch"
        raise WeightsError(
            what,
            seen=f"{path}: {why}",
            expected="a checkpoint as yolo-launch wrote it",
            next_command="resume from another checkpoint of the run, or start anew",
        ) from None
    if not isinstance(content, dict) or content.get("format") != FORMAT:
        raise WeightsError(
            f"{path.name} is not a checkpoint of yolo-launch",
            seen=str(path),
            expected="a checkpoint as yolo-launch wrote it",
            next_command="resume from another checkpoint of the run, or start anew",
        )
    if not isinstance(content.get("version"), int) or content["version"] > VERSION:
        raise WeightsError(
            f"{path.name} was written by a newer yolo-launch",
            seen=f"format version {content.get('version')}",
            expected=f"at most {VERSION}",
            next_command="resume from another checkpoint of the run, or start anew",
        )
    stated = content.pop("checksum", "")
    if stated != checksum({key: content[key] for key in sorted(content)}):
        raise WeightsError(
            f"{path.name} is damaged: its checksum does not fit its content",
            seen=str(path),
            expected="a checkpoint as yolo-launch wrote it",
            next_command="resume from another checkpoint of the run, or start anew",
        )
    return content


def newest_good(weights_dir: Path) -> tuple[dict[str, Any] | None, list[str]]:
    """Returns the newest resumable checkpoint of a run and one line of text for each file that is not usable."""
    damaged: list[tuple[Path, WeightsError]] = []
    content = None
    for path in (weights_dir / LAST_WEIGHTS, weights_dir / PREVIOUS_WEIGHTS):
        if not path.exists():
            continue
        try:
            content = read_checkpoint(path)
            break
        except WeightsError as error:
            damaged.append((path, error))
    instead = "the one before it is used" if content is not None else "none is left, so training starts at step 0"
    return content, [f"{path} cannot be used ({error.what}); {instead}" for path, error in damaged]


def set_aside(weights_dir: Path) -> None:
    """Renames a refused ``last.pt``, so that the next write does not replace the good previous file by it."""
    with contextlib.suppress(OSError):
        (weights_dir / LAST_WEIGHTS).replace(weights_dir / f"{LAST_WEIGHTS}.refused")


def remove_leftovers(weights_dir: Path) -> None:
    """Removes partly written files of killed writers. To be called before this run's own writer starts."""
    for leftover in weights_dir.glob(".*.pt.*.tmp"):
        with contextlib.suppress(OSError):
            leftover.unlink()


def copied(value: Any) -> Any:
    """Returns a deep copy on the CPU that later steps cannot change."""
    if isinstance(value, Tensor):
        return value.detach().to("cpu", copy=True)
    if isinstance(value, dict):
        return {key: copied(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return type(value)(copied(item) for item in value)
    return value


@dataclass(frozen=True)
class _Job:
    name: str
    content: dict[str, Any]
    keep_previous: bool


class CheckpointWriter:
    """Writes checkpoints in a background thread, one after another; a failed write is a warning, not an error.

    A failed write of ``last.pt`` or ``best.pt`` is tried again every ``retry_s`` seconds, and once more at the end,
    until it succeeds or a newer file of that name replaces it.
    """

    def __init__(self, weights_dir: Path, retry_s: float = RETRY_S) -> None:
        self.weights_dir = weights_dir
        self.failures = 0
        self.last_error = ""
        self._retry_s = retry_s
        self._jobs: queue.Queue[_Job | None] = queue.Queue(maxsize=1)
        self._unwritten: dict[str, _Job] = {}
        self._thread: threading.Thread | None = None

    @property
    def unwritten(self) -> list[str]:
        """Files that could not be written so far; final after ``close``."""
        return sorted(self._unwritten)

    def submit(self, name: str, content: dict[str, Any], *, keep_previous: bool = False) -> None:
        """Queues a file of the weights folder; waits only while an earlier file is still queued."""
        if self._thread is None:
            self._thread = threading.Thread(target=self._run, name="checkpoint-writer", daemon=True)
            self._thread.start()
        self._jobs.put(_Job(name, content, keep_previous))

    def flush(self) -> None:
        """Waits until every submitted file is on the disk or has failed."""
        self._jobs.join()

    def close(self) -> None:
        """Writes what is queued and ends the thread."""
        if self._thread is not None:
            self._jobs.put(None)
            self._thread.join()
            self._thread = None

    def _run(self) -> None:
        while True:
            try:
                job = self._jobs.get(timeout=self._retry_s if self._unwritten else None)
            except queue.Empty:
                self._try_again()
                continue
            try:
                if job is None:
                    self._try_again()
                    return
                self._write(job)
            finally:
                self._jobs.task_done()

    def _try_again(self) -> None:
        for job in list(self._unwritten.values()):
            self._write(job, is_retry=True)

    def _write(self, job: _Job, *, is_retry: bool = False) -> None:
        path = self.weights_dir / job.name
        try:
            write_checkpoint(path, job.content, self.weights_dir / PREVIOUS_WEIGHTS if job.keep_previous else None)
        except Exception as error:  # also MemoryError: the next steps would wait forever for a thread that ended
            reason = error.strerror if isinstance(error, OSError) else None
            self.failures, self.last_error = self.failures + 1, reason or str(error) or type(error).__name__
            if not is_retry:
                _log.warning("could not write %s (%s); training goes on with the last good one", path, error)
            if job.name in (LAST_WEIGHTS, BEST_WEIGHTS):
                self._unwritten[job.name] = job
            return
        if self._unwritten.pop(job.name, None) is not None:
            _log.warning("%s could be written now", path)

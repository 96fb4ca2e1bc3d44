"""How each worker of an attempt ended, and which end came first."""

from __future__ import annotations

import json
import signal
import socket
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from yolo_launch.diagnosis.causes import describe_exit, is_consequence
from yolo_launch.diagnosis.heartbeat_monitor import Heartbeat
from yolo_launch.errors import ExitCode
from yolo_launch.spec import RankFailure
from yolo_launch.workers.files import WorkerFiles
from yolo_launch.workers.processes import Worker

FailureKey = tuple[float, float, float, float, float]
"""Whether the launcher ended it, whether a peer did, whether it aborted without a word, the time, the rank."""


@dataclass(frozen=True)
class WorkerEnd:
    """One rank's end: its exit code, and whether the launcher or the agent brought it about."""

    rank: int
    exit_code: int
    ended_at: float
    by_us: bool = False


def worker_ends(
    workers: Mapping[int, Worker], agent_exit_codes: Mapping[int, int], ranks: Iterable[int]
) -> list[WorkerEnd]:
    """The end of each of this machine's ranks.

    The watcher's exit codes go first, then the agent's; a rank nobody saw failing ended well.
    """
    ends = []
    for rank in ranks:
        worker = workers.get(rank)
        code = worker.exit_code if worker is not None else None
        if code is None:
            code = agent_exit_codes.get(rank, 0)
        told = worker is not None and -code in worker.told
        killed = worker is not None and worker.killed_by_us and code == -signal.SIGKILL
        ends.append(WorkerEnd(rank, code, worker.ended_at if worker is not None else 0.0, killed or told))
    return ends


def read_error(files: WorkerFiles, rank: int) -> tuple[dict[str, Any], float]:
    """A worker's error file and when it was written; empty where there is none, or only half of one."""
    path = files.error(rank)
    try:
        written_at = path.stat().st_mtime
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}, 0.0
    return (content, written_at) if isinstance(content, dict) else ({}, 0.0)


def failure_of(end: WorkerEnd, files: WorkerFiles, heartbeat: Heartbeat | None) -> RankFailure:
    """All that is known of one rank that did not end well."""
    content, written_at = read_error(files, end.rank)
    message, traceback = _message(content)
    if not message:
        message = describe_exit(end.exit_code)
        traceback = files.log_tail(end.rank)
    user_error = content.get("user_error")
    return RankFailure(
        rank=end.rank,
        local_rank=end.rank,
        # A worker that had failed by its own account and was then ended is no victim of SIGKILL.
        exit_code=int(ExitCode.WORKER_FAILED) if end.by_us and content else end.exit_code,
        message=message,
        traceback=traceback,
        user_error={str(k): str(v) for k, v in user_error.items()} if isinstance(user_error, dict) else None,
        epoch=_number(content.get("epoch"), heartbeat.epoch if heartbeat else None),
        step=_number(content.get("step"), heartbeat.step if heartbeat else None),
        phase=heartbeat.phase if heartbeat else "",
        log_path=str(files.log(end.rank)) if files.log(end.rank).exists() else "",
        host=socket.gethostname(),
        timestamp_s=min(t for t in (written_at, end.ended_at) if t) if written_at or end.ended_at else 0.0,
    )


def first_of(failures: Sequence[tuple[FailureKey, RankFailure]]) -> RankFailure | None:
    """The failure that the others follow from, or None where every rank ended well."""
    return min(failures, key=lambda pair: pair[0])[1] if failures else None


def rank_failures(
    ends: list[WorkerEnd], files: WorkerFiles, heartbeats: Mapping[int, Heartbeat]
) -> list[tuple[FailureKey, RankFailure]]:
    """Every failure with a key, the smallest of which is the cause: an own exception before a lost peer, then time.

    Times are file times, far finer than the whole seconds that torch's agent compares. A rank that the launcher or
    the agent ended is no cause, unless nothing else is left to name. The keys of several machines compare where their
    clocks agree.
    """
    failed = [end for end in ends if end.exit_code not in (0, ExitCode.SAVED_AND_STOPPED)]
    failures = [(end, failure_of(end, files, heartbeats.get(end.rank))) for end in failed]
    told_something = any(_is_own(end, failure) for end, failure in failures)

    def order(end: WorkerEnd, failure: RankFailure) -> FailureKey:
        # When one worker fails, the agent sends SIGTERM to the others.
        by_agent = told_something and end.exit_code == -signal.SIGTERM
        content, _ = read_error(files, end.rank)
        silent_abort = told_something and end.exit_code == -signal.SIGABRT and not content
        return (
            float((end.by_us and not content) or by_agent),
            float(is_consequence(failure.message) or content.get("relayed") is True),
            float(silent_abort),
            failure.timestamp_s,
            float(failure.rank),
        )

    return [(order(end, failure), failure) for end, failure in failures]


def _is_own(end: WorkerEnd, failure: RankFailure) -> bool:
    return (
        not end.by_us
        and not is_consequence(failure.message)
        and end.exit_code not in (-signal.SIGTERM, -signal.SIGABRT)
    )


def _message(content: Mapping[str, Any]) -> tuple[str, str]:
    """Message and traceback, as the trainer or torch's @record wrote them."""
    message = content.get("message", "")
    if isinstance(message, dict):
        extra = message.get("extraInfo")
        traceback = extra.get("py_callstack", "") if isinstance(extra, dict) else ""
        return str(message.get("message", "")), str(traceback)
    return str(message), ""


def _number(value: Any, otherwise: int | None) -> int | None:
    return int(value) if isinstance(value, (int, float)) and not isinstance(value, bool) else otherwise

"""Finds how each worker of an attempt ended, and which failure caused the others."""

from __future__ import annotations

import signal
import socket
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from trainer.protocol import FailureRecord, Heartbeat, read_failure
from yolo_launch.diagnosis.causes import describe_exit, is_consequence
from yolo_launch.errors import ExitCode
from yolo_launch.spec import RankFailure
from yolo_launch.workers.files import WorkerFiles
from yolo_launch.workers.processes import Worker

FailureKey = tuple[float, float, float, float, float]
"""Whether the launcher ended it, whether a peer did, whether it aborted without a message, the time, the rank."""


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
    """Returns the end of each of this machine's ranks.

    The monitor's exit codes go first, then the agent's; a rank without either ended well.
    """
    ends = []
    for rank in ranks:
        worker = workers.get(rank)
        code = worker.exit_code if worker is not None else None
        if code is None:
            code = agent_exit_codes.get(rank, 0)
        signaled = worker is not None and -code in worker.signals_sent
        killed = worker is not None and worker.killed_by_us and code == -signal.SIGKILL
        ends.append(WorkerEnd(rank, code, worker.ended_at if worker is not None else 0.0, killed or signaled))
    return ends


def failure_of(end: WorkerEnd, record: FailureRecord | None, files: WorkerFiles, beat: Heartbeat | None) -> RankFailure:
    """Returns all that is known of one rank that did not end well."""
    known = record or FailureRecord(end.rank, "")
    epoch, step = (
        (known.epoch, known.step) if beat is None else (_or(known.epoch, beat.epoch), _or(known.step, beat.step))
    )
    times = [moment for moment in (known.written_at, end.ended_at) if moment]
    return RankFailure(
        rank=end.rank,
        local_rank=end.rank,
        # A worker that wrote its error and was then killed did not fail because of SIGKILL.
        exit_code=int(ExitCode.WORKER_FAILED) if end.by_us and record else end.exit_code,
        message=known.message or describe_exit(end.exit_code),
        traceback=known.traceback if known.message else files.log_tail(end.rank),
        user_error=known.user_error,
        epoch=epoch,
        step=step,
        phase=beat.phase if beat else "",
        log_path=str(files.log(end.rank)) if files.log(end.rank).exists() else "",
        host=socket.gethostname(),
        timestamp_s=min(times, default=0.0),
    )


def first_of(failures: Sequence[tuple[FailureKey, RankFailure]]) -> RankFailure | None:
    """Returns the failure that caused the others, or None if every rank ended well."""
    return min(failures, key=lambda pair: pair[0])[1] if failures else None


def rank_failures(
    ends: list[WorkerEnd], files: WorkerFiles, heartbeats: Mapping[int, Heartbeat]
) -> list[tuple[FailureKey, RankFailure]]:
    """Returns each failure with a key, smallest for the cause: an own exception before a lost peer, then time.

    Times are file times, far finer than the whole seconds that torch's agent compares. A rank that the launcher or
    the agent ended is no cause, unless nothing else is left to name. The keys of several machines compare if their
    clocks agree.
    """
    failed = [end for end in ends if end.exit_code not in (ExitCode.DONE, ExitCode.SAVED_AND_STOPPED)]
    found = [(end, read_failure(files, end.rank)) for end in failed]
    failures = [(end, record, failure_of(end, record, files, heartbeats.get(end.rank))) for end, record in found]
    has_own_failure = any(_is_own(end, failure) for end, _, failure in failures)

    def order(end: WorkerEnd, record: FailureRecord | None, failure: RankFailure) -> FailureKey:
        # When one worker fails, the agent sends SIGTERM to the others.
        by_agent = has_own_failure and end.exit_code == -signal.SIGTERM
        silent_abort = has_own_failure and end.exit_code == -signal.SIGABRT and record is None
        return (
            float((end.by_us and record is None) or by_agent),
            float(is_consequence(failure.message) or (record is not None and record.relayed)),
            float(silent_abort),
            failure.timestamp_s,
            float(failure.rank),
        )

    return [(order(end, record, failure), failure) for end, record, failure in failures]


def _is_own(end: WorkerEnd, failure: RankFailure) -> bool:
    return (
        not end.by_us
        and not is_consequence(failure.message)
        and end.exit_code not in (-signal.SIGTERM, -signal.SIGABRT)
    )


def _or(value: int | None, otherwise: int) -> int:
    return otherwise if value is None else value

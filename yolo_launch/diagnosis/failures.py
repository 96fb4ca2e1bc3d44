"""Finds how each worker of an attempt ended, and which failure caused the others."""

from __future__ import annotations

import signal
import socket
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

from trainer.protocol import FailureRecord, Heartbeat, read_failure
from yolo_launch.diagnosis.causes import describe_exit, is_consequence
from yolo_launch.errors import ExitCode
from yolo_launch.spec import RankFailure
from yolo_launch.workers.files import WorkerFiles
from yolo_launch.workers.processes import Worker

_GOOD_ENDS = (ExitCode.DONE, ExitCode.SAVED_AND_STOPPED)
_SAME_MOMENT_S = 0.1
"""Ends that the monitor sees within this time may have come in either order."""
LEFT_EARLY = "every rank has to take part in each collective: look for a loop or an early exit that depends on the rank"

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
        phase=known.phase or (beat.phase if beat else ""),
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
    found = [_Found.of(end, files, heartbeats) for end in ends if end.exit_code not in _GOOD_ENDS]
    has_own_failure = any(one.is_own for one in found)

    def order(one: _Found) -> FailureKey:
        # When a worker fails, the agent sends SIGTERM to the others.
        by_agent = one.end.exit_code == -signal.SIGTERM and (
            has_own_failure or any(_ended_before(other.end, one.end) for other in found)
        )
        silent_abort = has_own_failure and one.end.exit_code == -signal.SIGABRT and one.record is None
        return (
            float((one.end.by_us and one.record is None) or by_agent),
            float(one.lost_a_peer),
            float(silent_abort),
            one.failure.timestamp_s,
            float(one.failure.rank),
        )

    keyed = [(order(one), one.failure) for one in found]
    if found and all(key[:2] != (0.0, 0.0) for key, _ in keyed):
        keyed += _left_early(ends, found, files)
    return keyed


def _left_early(
    ends: list[WorkerEnd], found: Sequence[_Found], files: WorkerFiles
) -> list[tuple[FailureKey, RankFailure]]:
    """Returns the first rank that ended well before others missed it; its end is what they fail of."""
    missed_at = min((one.failure.timestamp_s for one in found if one.lost_a_peer), default=0.0)
    early = [end for end in ends if end.exit_code == ExitCode.DONE and 0 < end.ended_at < missed_at + _SAME_MOMENT_S]
    if not early:
        return []
    first = min(early, key=lambda end: end.ended_at)
    message = "ended with exit code 0 while other ranks still waited for it"
    failure = replace(failure_of(first, None, files, None), message=message, hint=LEFT_EARLY)
    return [((0.0, 0.0, 0.0, first.ended_at, float(first.rank)), failure)]


@dataclass(frozen=True)
class _Found:
    """One rank's end that was not good, and what is known of it."""

    end: WorkerEnd
    record: FailureRecord | None
    failure: RankFailure

    @classmethod
    def of(cls, end: WorkerEnd, files: WorkerFiles, heartbeats: Mapping[int, Heartbeat]) -> _Found:
        record = read_failure(files, end.rank)
        return cls(end, record, failure_of(end, record, files, heartbeats.get(end.rank)))

    @property
    def lost_a_peer(self) -> bool:
        """Returns whether it only failed because another rank was gone, or told what another rank had raised."""
        record = self.record
        return record is not None and (record.relayed or is_consequence(record.message, record.by_torch))

    @property
    def is_own(self) -> bool:
        """Returns whether it failed for a reason of its own."""
        is_doubtful = self.end.exit_code in (-signal.SIGTERM, -signal.SIGABRT)
        return not self.end.by_us and not self.lost_a_peer and not is_doubtful


def _ended_before(one: WorkerEnd, other: WorkerEnd) -> bool:
    """Returns whether the first of two ends may be why the agent brought about the other."""
    return not one.by_us and 0 < one.ended_at < other.ended_at - _SAME_MOMENT_S


def _or(value: int | None, otherwise: int) -> int:
    return otherwise if value is None else value

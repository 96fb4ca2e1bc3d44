"""What becomes of a job when a round has ended on all its machines. Pure."""

from __future__ import annotations

import signal
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace

from trainer.errors import UserError
from yolo_launch.diagnosis.hangs import culprit, describe_stall, stall_hint, stall_traceback
from yolo_launch.diagnosis.restart_policy import Progress, decide, stopped_by
from yolo_launch.errors import ExitCode
from yolo_launch.rendezvous.admission import Terms
from yolo_launch.rendezvous.membership import Seat
from yolo_launch.rendezvous.messages import Claim, Report
from yolo_launch.spec import Outcome, RankFailure
from yolo_launch.workers.signals import signal_name

MOST_STALLED = 64
"""Ranks that the account of a stall shows."""
Reports = Mapping[int, tuple[Seat, Report]]


@dataclass(frozen=True)
class Verdict:
    """The end of the job, or None for another round; ``leaving`` machines get an outcome of their own."""

    outcome: Outcome | None = None
    note: str = ""
    leaving: dict[int, Outcome] = field(default_factory=dict)


def judge(
    reports: Reports,
    lost: Sequence[tuple[Claim, str]],
    progress: Progress,
    terms: Terms,
    *,
    completed: bool,
    paused: bool,
    source: Callable[[], str],
) -> Verdict:
    """Decide from every machine's report, machines that were lost, and what the job has done so far.

    A restart is counted in ``progress``. ``source`` says where a restarted job goes on from.
    """
    kinds = {report.kind for _, report in reports.values()}
    if completed or (kinds == {"done"} and not lost):
        return Verdict(Outcome("done", ExitCode.DONE, restarts=progress.restarts))
    if any(report.stalled for _, report in reports.values()):
        return Verdict(_stalled(reports, progress))
    if any(report.signal is not None for _, report in reports.values()):
        return _stopped(reports, progress, terms)
    failures = [(_fair_key(seat, report), seat, report.failure) for seat, report in reports.values() if report.failure]
    # A worker that was ended from outside, or only lost a peer, is no cause.
    own = [one for one in failures if one[0][:2] == (0.0, 0.0)]
    if lost and not own:
        return _lost(reports, lost, progress, terms, source)
    if failures and (own or not paused):
        _, seat, failure = min(own or failures, key=lambda one: one[0])
        ran_s = max(report.ran_s for _, report in reports.values())
        return _failed(seat, failure, progress, terms, ran_s, source)
    if paused:
        return Verdict(note="the workers have ended for the new machine; going on with all")
    if "saved" in kinds:
        return Verdict(Outcome("saved_and_stopped", ExitCode.SAVED_AND_STOPPED, restarts=progress.restarts))
    detail = "the workers ended, and no machine says why: see the logs"
    return Verdict(Outcome("worker_failed", ExitCode.WORKER_FAILED, restarts=progress.restarts, detail=detail))


def _fair_key(seat: Seat, report: Report) -> tuple[float, ...]:
    """A failure's key with its time as the master's clock would have shown it."""
    key = report.key or (1.0, 1.0, 1.0, 0.0, 0.0)
    return (*key[:3], key[3] - seat.clock_ahead_s, *key[4:])


def _stalled(reports: Reports, progress: Progress) -> Outcome:
    places = [(seat, stalled) for seat, report in reports.values() for stalled in report.stalled]
    ranks = [stalled for _, stalled in places]
    first = culprit(ranks)
    ranks = sorted(ranks, key=lambda one: one is not first)[:MOST_STALLED]
    host = next(seat.claim.host for seat, stalled in places if stalled is first)
    failure = RankFailure(
        rank=first.rank,
        local_rank=0,
        exit_code=-signal.SIGKILL,
        message=describe_stall(ranks),
        traceback=stall_traceback(ranks),
        epoch=first.heartbeat.epoch if first.heartbeat else None,
        step=first.heartbeat.step if first.heartbeat else None,
        phase=first.phase,
        host=host,
        hint=stall_hint(first),
    )
    return Outcome("stalled", ExitCode.STALLED, failure=failure, restarts=progress.restarts)


def _stopped(reports: Reports, progress: Progress, terms: Terms) -> Verdict:
    """Someone signalled one launcher, or all of them: the job ends; a job that may shrink goes on without those."""
    signalled = {rank: pair for rank, pair in reports.items() if pair[1].signal is not None}
    saved = any(report.saved for _, report in reports.values())
    seat, report = signalled[min(signalled)]
    number = report.signal or signal.SIGTERM
    name = signal_name(number)
    text = f"{name} on machine {seat.label}"
    outcome = replace(stopped_by(signal.Signals(number), saved), restarts=progress.restarts)
    left = [rank for rank in reports if rank not in signalled]
    if terms.is_elastic and 0 in left and len(left) >= terms.min_nodes:
        return Verdict(note=f"{text}; going on without it", leaving=dict.fromkeys(signalled, outcome))
    return Verdict(outcome, note=f"{text} stops the job")


def _lost(
    reports: Reports, lost: Sequence[tuple[Claim, str]], progress: Progress, terms: Terms, source: Callable[[], str]
) -> Verdict:
    who = "; ".join(f"machine {claim.label} was lost: {reason}" for claim, reason in lost)
    if progress.restarts >= terms.max_restarts:
        detail = who + f". All {terms.max_restarts} restarts are used up" * (terms.max_restarts > 0)
        return Verdict(Outcome("worker_failed", ExitCode.WORKER_FAILED, restarts=progress.restarts, detail=detail))
    progress.restarts += 1
    if terms.is_elastic and 0 in reports and len(reports) >= terms.min_nodes:
        how = f"with the {len(reports)} machine{'s' * (len(reports) > 1)} left"
    else:
        how = f"when it is back (within {terms.rejoin_timeout_s:g} s)"
    return Verdict(note=f"restart {progress.restarts} of {terms.max_restarts} {how}, {source()}")


def _failed(
    seat: Seat,
    failure: RankFailure,
    progress: Progress,
    terms: Terms,
    ran_s: float,
    source: Callable[[], str],
) -> Verdict:
    decision = decide(
        failure,
        progress,
        max_restarts=terms.max_restarts,
        attempt_s=ran_s,
        port_is_fixed=False,
        foreign=False,
    )
    if not decision.restart:
        is_usage = failure.user_error is not None
        code = ExitCode.USAGE if is_usage else ExitCode.WORKER_FAILED
        return Verdict(Outcome("worker_failed", code, failure=failure, restarts=progress.restarts, detail=decision.why))
    if decision.counts:
        progress.restarts += 1
    else:
        progress.port_clashes += 1
    last_line = failure.message.strip().split("\n")[-1][:200]
    note = f"rank {failure.rank} on machine {seat.label} failed ({last_line}); {decision.why}, {source()}"
    return Verdict(note=note)


def refused(error: UserError) -> Outcome:
    """The end of a job whose batch does not fit the machines that came."""
    code = int(getattr(error, "exit_code", ExitCode.USAGE))
    return Outcome("worker_failed", code, failure=RankFailure(-1, 0, code, error.what, user_error=error.to_dict()))

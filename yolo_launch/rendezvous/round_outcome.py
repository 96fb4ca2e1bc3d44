"""What becomes of a job when a round has ended on all its machines. Pure."""

from __future__ import annotations

import signal
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace

from trainer.errors import UserError
from yolo_launch.diagnosis.hangs import blocking_rank, describe_stall, stall_hint, stall_traceback
from yolo_launch.diagnosis.restart_policy import Progress, decide, stopped_by
from yolo_launch.errors import ExitCode
from yolo_launch.rendezvous.admission import RendezvousSettings
from yolo_launch.rendezvous.membership import Participant
from yolo_launch.rendezvous.messages import JoinRequest, Report
from yolo_launch.spec import Outcome, RankFailure
from yolo_launch.workers.signals import signal_name

MOST_STALLED = 64
"""Ranks that the account of a stall shows."""
Reports = Mapping[int, tuple[Participant, Report]]


@dataclass(frozen=True)
class RoundDecision:
    """The end of the job, or None for another round; ``leaving`` machines get an outcome of their own."""

    outcome: Outcome | None = None
    note: str = ""
    leaving: dict[int, Outcome] = field(default_factory=dict)


def judge(
    reports: Reports,
    lost: Sequence[tuple[JoinRequest, str]],
    progress: Progress,
    settings: RendezvousSettings,
    *,
    completed: bool,
    paused: bool,
    source: Callable[[], str],
) -> RoundDecision:
    """Decide from every machine's report, machines that were lost, and what the job has done so far.

    A restart is counted in ``progress``. ``source`` says where a restarted job goes on from.
    """
    kinds = {report.kind for _, report in reports.values()}
    if completed or (kinds == {"done"} and not lost):
        return RoundDecision(Outcome("done", ExitCode.DONE, restarts=progress.restarts))
    if any(report.stalled for _, report in reports.values()):
        return RoundDecision(_stalled(reports, progress))
    if any(report.signal is not None for _, report in reports.values()):
        return _stopped(reports, progress, settings)
    failures = [
        (_fair_key(participant, report), participant, report.failure)
        for participant, report in reports.values()
        if report.failure
    ]
    # A worker that was ended from outside, or only lost a peer, is no cause.
    own = [one for one in failures if one[0][:2] == (0.0, 0.0)]
    if lost and not own:
        return _lost(reports, lost, progress, settings, source)
    if failures and (own or not paused):
        _, participant, failure = min(own or failures, key=lambda one: one[0])
        ran_s = max(report.ran_s for _, report in reports.values())
        return _failed(participant, failure, progress, settings, ran_s, source)
    if paused:
        return RoundDecision(note="the workers have ended for the new machine; going on with all")
    if "saved" in kinds:
        return RoundDecision(Outcome("saved_and_stopped", ExitCode.SAVED_AND_STOPPED, restarts=progress.restarts))
    detail = "the workers ended, and no machine says why: see the logs"
    return RoundDecision(Outcome("worker_failed", ExitCode.WORKER_FAILED, restarts=progress.restarts, detail=detail))


def _fair_key(participant: Participant, report: Report) -> tuple[float, ...]:
    """A failure's key with its time as the master's clock would have shown it."""
    key = report.key or (1.0, 1.0, 1.0, 0.0, 0.0)
    return (*key[:3], key[3] - participant.clock_ahead_s, *key[4:])


def _stalled(reports: Reports, progress: Progress) -> Outcome:
    places = [(participant, stalled) for participant, report in reports.values() for stalled in report.stalled]
    ranks = [stalled for _, stalled in places]
    first = blocking_rank(ranks)
    ranks = sorted(ranks, key=lambda one: one is not first)[:MOST_STALLED]
    host = next(participant.join_request.host for participant, stalled in places if stalled is first)
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


def _stopped(reports: Reports, progress: Progress, settings: RendezvousSettings) -> RoundDecision:
    """Someone signaled one launcher, or all of them: the job ends; a job that may shrink goes on without those."""
    signaled = {rank: pair for rank, pair in reports.items() if pair[1].signal is not None}
    saved = any(report.saved for _, report in reports.values())
    participant, report = signaled[min(signaled)]
    number = report.signal or signal.SIGTERM
    name = signal_name(number)
    text = f"{name} on machine {participant.label}"
    outcome = replace(stopped_by(signal.Signals(number), saved), restarts=progress.restarts)
    left = [rank for rank in reports if rank not in signaled]
    if settings.is_elastic and 0 in left and len(left) >= settings.min_nodes:
        return RoundDecision(note=f"{text}; going on without it", leaving=dict.fromkeys(signaled, outcome))
    return RoundDecision(outcome, note=f"{text} stops the job")


def _lost(
    reports: Reports,
    lost: Sequence[tuple[JoinRequest, str]],
    progress: Progress,
    settings: RendezvousSettings,
    source: Callable[[], str],
) -> RoundDecision:
    who = "; ".join(f"machine {join_request.label} was lost: {reason}" for join_request, reason in lost)
    if progress.restarts >= settings.max_restarts:
        detail = who + f". All {settings.max_restarts} restarts are used up" * (settings.max_restarts > 0)
        return RoundDecision(
            Outcome("worker_failed", ExitCode.WORKER_FAILED, restarts=progress.restarts, detail=detail)
        )
    progress.restarts += 1
    if settings.is_elastic and 0 in reports and len(reports) >= settings.min_nodes:
        how = f"with the {len(reports)} machine{'s' * (len(reports) > 1)} left"
    else:
        how = f"when it is back (within {settings.rejoin_timeout_s:g} s)"
    return RoundDecision(note=f"restart {progress.restarts} of {settings.max_restarts} {how}, {source()}")


def _failed(
    participant: Participant,
    failure: RankFailure,
    progress: Progress,
    settings: RendezvousSettings,
    ran_s: float,
    source: Callable[[], str],
) -> RoundDecision:
    decision = decide(
        failure,
        progress,
        max_restarts=settings.max_restarts,
        attempt_s=ran_s,
        port_is_fixed=False,
        foreign=False,
    )
    if not decision.restart:
        is_usage = failure.user_error is not None
        code = ExitCode.USAGE if is_usage else ExitCode.WORKER_FAILED
        return RoundDecision(
            Outcome("worker_failed", code, failure=failure, restarts=progress.restarts, detail=decision.why)
        )
    if decision.counts:
        progress.restarts += 1
    else:
        progress.port_clashes += 1
    last_line = failure.message.strip().split("\n")[-1][:200]
    note = f"rank {failure.rank} on machine {participant.label} failed ({last_line}); {decision.why}, {source()}"
    return RoundDecision(note=note)


def refused(error: UserError) -> Outcome:
    """The end of a job whose batch does not fit the machines that came."""
    code = int(getattr(error, "exit_code", ExitCode.USAGE))
    return Outcome("worker_failed", code, failure=RankFailure(-1, 0, code, error.what, user_error=error.to_dict()))

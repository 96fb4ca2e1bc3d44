"""Decides what becomes of a job when a round has ended on all its nodes, one or several."""

from __future__ import annotations

import signal
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal

from trainer.errors import DeviceError, UserError
from yolo_launch.defaults import MAX_RESTARTS, REJOIN_TIMEOUT_S
from yolo_launch.diagnosis.failures import FailureKey
from yolo_launch.diagnosis.hangs import StalledRank, blocking_rank, stall_failure
from yolo_launch.diagnosis.restart_policy import Progress, decide, stopped_by
from yolo_launch.errors import ExitCode
from yolo_launch.spec import Outcome, RankFailure
from yolo_launch.words import counted
from yolo_launch.workers.signals import signal_name

MOST_STALLED = 64
"""Ranks that the account of a stall shows."""
ReportKind = Literal["done", "failed", "stalled", "saved", "stopped", "ended"]
_UNKNOWN: FailureKey = (1.0, 1.0, 1.0, 0.0, 0.0)


@dataclass(frozen=True)
class JobRules:
    """Holds how many nodes a job takes and how often it may start again."""

    min_nodes: int = 1
    max_nodes: int = 1
    max_restarts: int = MAX_RESTARTS
    rejoin_timeout_s: float = REJOIN_TIMEOUT_S
    """How long a lost node is waited for."""
    port_is_fixed: bool = False
    """Whether the user chose the port at which the workers meet."""
    foreign: bool = False
    """Whether the workers run a script instead of the built-in trainer."""

    @property
    def is_elastic(self) -> bool:
        """Returns whether the job may go on with fewer nodes than it would take."""
        return self.min_nodes < self.max_nodes


@dataclass(frozen=True)
class NodeReport:
    """Holds how a round ended on one node."""

    kind: ReportKind
    failure: RankFailure | None = None
    """The failure that the others on this node follow from; of a stall, the blocking rank with the file of its
    stacks."""
    key: FailureKey | None = None
    """Puts the cause first among all nodes; its fourth number is a time."""
    signal: int | None = None
    """The signal that this node's launcher got."""
    saved: bool = False
    stalled: tuple[StalledRank, ...] = ()
    heard: bool = False
    """Whether its workers wrote a heartbeat."""
    finished_a_step: bool = False
    ran_s: float = 0.0

    def __post_init__(self) -> None:
        """Refuses a number that is no signal. Raises ValueError."""
        if self.signal is not None:
            signal.Signals(self.signal)


@dataclass(frozen=True)
class NodeEnd:
    """Holds a node's report and its name; the only node of a job needs no name."""

    report: NodeReport
    label: str = ""
    host: str = ""
    clock_ahead_s: float = 0.0
    """Its clock less that of the node that decides."""


@dataclass(frozen=True)
class RoundDecision:
    """The end of the job, or None for another round; ``leaving`` nodes get an outcome of their own."""

    progress: Progress
    outcome: Outcome | None = None
    note: str = ""
    leaving: dict[int, Outcome] = field(default_factory=dict)


Ends = Mapping[int, NodeEnd]
"""Node rank -> how the round ended there."""
Lost = Sequence[tuple[str, str]]
"""Label of each node that was lost, and why."""


def decide_outcome(
    ends: Ends,
    progress: Progress,
    rules: JobRules,
    source: Callable[[], str],
    *,
    lost: Lost = (),
    completed: bool = False,
    paused: bool = False,
) -> RoundDecision:
    """Decides from every node's report, nodes that were lost, and what the job has done so far.

    ``source`` returns what a restarted job goes on from. ``completed`` is a round whose rank 0 is done, ``paused`` one
    that was stopped to let another node in.
    """
    reports = [end.report for end in ends.values()]
    progress = replace(
        progress,
        heard=progress.heard or any(report.heard for report in reports),
        finished_a_step=progress.finished_a_step or any(report.finished_a_step for report in reports),
    )
    decision = _decide(_Round(ends, lost, progress, rules, source, completed=completed, paused=paused))
    if decision.outcome is None:
        return decision
    return replace(decision, outcome=replace(decision.outcome, restarts=progress.restarts))


@dataclass(frozen=True)
class _Round:
    """Holds what is known of a round that ended."""

    ends: Ends
    lost: Lost
    progress: Progress
    rules: JobRules
    source: Callable[[], str]
    completed: bool
    paused: bool

    def end(self, outcome: Outcome, note: str = "") -> RoundDecision:
        """Returns the end of the job."""
        return RoundDecision(self.progress, outcome, note)

    def can_go_on_with(self, ranks: Sequence[int]) -> bool:
        """Returns whether these nodes are enough for the next round."""
        return self.rules.is_elastic and 0 in ranks and len(ranks) >= self.rules.min_nodes


def _decide(ended: _Round) -> RoundDecision:
    reports = [end.report for end in ended.ends.values()]
    kinds = {report.kind for report in reports}
    if ended.completed or (kinds == {"done"} and not ended.lost):
        return ended.end(Outcome("done", ExitCode.DONE))
    if any(report.stalled for report in reports):
        return ended.end(_stalled(ended.ends))
    if any(report.signal is not None for report in reports):
        return _stopped(ended)
    # A node's save or a script's end leaves no failure; a worker that lost a peer or was ended from outside has one
    # that is no cause.
    failures = [(_comparable_key(end), end, end.report.failure) for end in ended.ends.values() if end.report.failure]
    own = [one for one in failures if one[0][:2] == (0.0, 0.0)]
    if ended.lost and not own:
        return _lost(ended)
    if failures and (own or not ended.paused):
        _, end, failure = min(failures, key=lambda one: one[0])
        return _failed(ended, end, failure)
    if ended.paused:
        return RoundDecision(ended.progress, note="the workers have ended for the new machine; going on with all")
    if "saved" in kinds:
        # A scheduler may signal the workers themselves.
        return ended.end(Outcome("saved_and_stopped", ExitCode.SAVED_AND_STOPPED))
    detail = "the workers ended, and no machine says why: see the logs"
    return ended.end(Outcome("worker_failed", ExitCode.WORKER_FAILED, detail=detail))


def _comparable_key(end: NodeEnd) -> FailureKey:
    """Returns a failure's key with its time as the deciding node's clock would have shown it."""
    caused, consequence, silent, time_s, rank = end.report.key or _UNKNOWN
    return (caused, consequence, silent, time_s - end.clock_ahead_s, rank)


def _stalled(ends: Ends) -> Outcome:
    stalled = [(end, rank) for end in ends.values() for rank in end.report.stalled]
    ranks = [rank for _, rank in stalled]
    first = blocking_rank(ranks)
    node = next(end for end, rank in stalled if rank is first)
    shown = sorted(ranks, key=lambda one: one is not first)[:MOST_STALLED]
    # Only its own node knows the local rank and the file.
    known = node.report.failure or RankFailure(first.rank, 0, -signal.SIGKILL)
    failure = replace(
        stall_failure(shown), local_rank=known.local_rank, log_path=known.log_path, host=node.host or known.host
    )
    return Outcome("stalled", ExitCode.STALLED, failure=failure)


def _stopped(ended: _Round) -> RoundDecision:
    """Ends the job, since one launcher or all were signaled; a job that may shrink goes on without those."""
    signaled = {rank: end for rank, end in ended.ends.items() if end.report.signal is not None}
    saved = any(end.report.saved for end in ended.ends.values())
    end = signaled[min(signaled)]
    number = end.report.signal or signal.SIGTERM
    # On several nodes a failure after a signal is a lost peer's, as a rule.
    failure = end.report.failure if ended.rules.max_nodes == 1 else None
    outcome = replace(
        stopped_by(signal.Signals(number), saved, failure, foreign=ended.rules.foreign),
        restarts=ended.progress.restarts,
    )
    if not end.label:
        return ended.end(outcome)
    text = f"{signal_name(number)}{_on(end)}"
    if ended.can_go_on_with([rank for rank in ended.ends if rank not in signaled]):
        return RoundDecision(
            ended.progress, note=f"{text}; going on without it", leaving=dict.fromkeys(signaled, outcome)
        )
    return ended.end(outcome, note=f"{text} stops the job")


def _lost(ended: _Round) -> RoundDecision:
    progress, rules, left = ended.progress, ended.rules, list(ended.ends)
    if progress.restarts >= rules.max_restarts:
        detail = "; ".join(f"machine {label} was lost: {reason}" for label, reason in ended.lost)
        if rules.max_restarts > 0:
            detail += f". All {rules.max_restarts} restarts are used up"
        return ended.end(Outcome("worker_failed", ExitCode.WORKER_FAILED, detail=detail))
    if ended.can_go_on_with(left):
        how = f"with the {counted(len(left), 'machine')} left"
    else:
        how = f"when it is back (within {rules.rejoin_timeout_s:g} s)"
    progress = replace(progress, restarts=progress.restarts + 1)
    note = f"restart {progress.restarts} of {rules.max_restarts} {how}, {ended.source()}"
    return RoundDecision(progress, note=note)


def _failed(ended: _Round, end: NodeEnd, failure: RankFailure) -> RoundDecision:
    progress, rules = ended.progress, ended.rules
    decision = decide(
        failure,
        progress,
        max_restarts=rules.max_restarts,
        attempt_s=max(other.report.ran_s for other in ended.ends.values()),
        port_is_fixed=rules.port_is_fixed,
        foreign=rules.foreign,
    )
    if not decision.restart:
        is_devices = (failure.user_error or {}).get("kind") == DeviceError.__name__
        refused = ExitCode.ENVIRONMENT if is_devices else ExitCode.USAGE
        code = refused if failure.user_error is not None else ExitCode.WORKER_FAILED
        return ended.end(Outcome("worker_failed", code, failure=failure, detail=decision.why))
    if not decision.counts:
        return RoundDecision(replace(progress, port_clashes=progress.port_clashes + 1), note=decision.why)
    last_line = failure.message.strip().split("\n")[-1][:200]
    note = f"rank {failure.rank}{_on(end)} failed ({last_line}); {decision.why}, {ended.source()}"
    failed_at = (failure.epoch, failure.step)
    return RoundDecision(replace(progress, restarts=progress.restarts + 1, failed_at=failed_at), note=note)


def _on(end: NodeEnd) -> str:
    return f" on machine {end.label}" if end.label else ""


def refused_outcome(error: UserError) -> Outcome:
    """Returns the end of a job that a node refused before it had workers."""
    code = int(getattr(error, "exit_code", ExitCode.USAGE))
    return Outcome("worker_failed", code, failure=RankFailure(-1, 0, code, error.what, user_error=error.to_dict()))

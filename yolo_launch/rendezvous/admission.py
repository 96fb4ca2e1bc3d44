"""Decides which nodes a job takes, and describes why a node is refused."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from yolo_launch.defaults import JOIN_GRACE_S, JOIN_TIMEOUT_S
from yolo_launch.diagnosis.outcome import JobRules
from yolo_launch.errors import LaunchError
from yolo_launch.rendezvous.messages import MOST_NODES, JoinRefused, JoinRequest


@dataclass(frozen=True)
class RendezvousSettings(JobRules):
    """Holds how many nodes a job takes, and for how many seconds it waits for them."""

    join_timeout_s: float = JOIN_TIMEOUT_S
    join_grace_s: float = JOIN_GRACE_S
    """How long a job that may run with fewer waits for the others once it could start."""
    silent_s: float = 8.0
    """A machine that sends nothing for so long is lost."""
    stop_s: float = 20.0
    """From the end of a round to the last machine's report about it."""
    save_s: float = 45.0
    """The same if the workers save first."""

    @property
    def nodes(self) -> str:
        """Returns the number of nodes as typed: '2' or '1:4'."""
        return f"{self.min_nodes}:{self.max_nodes}" if self.is_elastic else str(self.max_nodes)


Settle = Callable[[tuple[int, ...]], int]
"""The global batch for so many workers on each machine. Raises LaunchError if it does not divide."""


@dataclass(frozen=True)
class JobOffer:
    """Holds what the master knows of the job it offers."""

    own: JoinRequest
    description: dict[str, Any]
    fingerprint: str
    settle: Settle
    source_of_restart: Callable[[], str] = lambda: ""
    even: bool = True
    """Whether the batch has to divide at the first round: not on a resume."""


def parse_nodes(text: str) -> tuple[int, int]:
    """Returns fewest and most machines of '4' or '1:4'. Raises LaunchError."""
    low, colon, high = text.partition(":")
    high = high if colon else low
    if not (low.isdecimal() and high.isdecimal() and 1 <= int(low) <= int(high) <= MOST_NODES):
        expected = f"a number, or MIN:MAX as in 1:4, of at most {MOST_NODES}"
        raise LaunchError("--nodes cannot be used.", seen=f"--nodes {text}", expected=expected)
    return int(low), int(high)


def refusal_of(
    join_request: JoinRequest, own: JoinRequest, settings: RendezvousSettings, taken: JoinRequest | None
) -> JoinRefused | None:
    """Returns why a machine is refused, or None. ``own`` is the master's request, ``taken`` the rank holder's."""
    case = _Case(join_request, own, settings, taken)
    for rule in _RULES:
        found = rule(case)
        if found is not None:
            return found
    return None


@dataclass(frozen=True)
class _Case:
    """Holds what a rule compares."""

    join_request: JoinRequest
    own: JoinRequest
    settings: RendezvousSettings
    taken: JoinRequest | None


def _same_purpose(case: _Case) -> JoinRefused | None:
    join_request, own = case.join_request, case.own
    if bool(join_request.check_port) == bool(own.check_port):
        return None
    train, check = "train (yolo-launch node)", "make a cluster check (yolo-launch doctor)"
    theirs, mine = (check, train) if join_request.check_port else (train, check)
    return JoinRefused(
        what=f"{join_request.host} and {own.host} were not started for the same thing.",
        seen=f"{join_request.host} is to {theirs}, {own.host} to {mine}",
        expected="the same command on every machine, or another --port for one of them",
    )


def _in_range(case: _Case) -> JoinRefused | None:
    join_request, own, settings = case.join_request, case.own, case.settings
    if join_request.rank < settings.max_nodes:
        return None
    ranks = f"--rank 1 to {settings.max_nodes - 1}, or " if settings.max_nodes > 1 else ""
    return JoinRefused(
        what=f"Rank {join_request.rank} of {join_request.host} is out of range: "
        f"the job on {own.host} has {settings.nodes} machines.",
        seen=f"--rank {join_request.rank}",
        expected=f"{ranks}a larger --nodes on rank 0",
    )


def _same_nodes(case: _Case) -> JoinRefused | None:
    join_request, own, settings = case.join_request, case.own, case.settings
    if not join_request.nodes or join_request.nodes == settings.nodes:
        return None
    return JoinRefused(
        what=f"{join_request.host} and {own.host} were told different numbers of machines.",
        seen=f"--nodes {join_request.nodes} on {join_request.host}, --nodes {settings.nodes} on {own.host}",
        expected="the same everywhere; on rank 0 alone is enough",
    )


def _same_job(case: _Case) -> JoinRefused | None:
    join_request, own = case.join_request, case.own
    if not join_request.job_id or not own.job_id or join_request.job_id == own.job_id:
        return None
    return JoinRefused(
        what=f"This port of {own.host} belongs to another job.",
        seen=f"{join_request.host} is in {join_request.job_id}, the port in {own.job_id}",
        expected="another --port for one of them",
    )


def _same_versions(case: _Case) -> JoinRefused | None:
    join_request, own = case.join_request, case.own
    for name, mine, theirs in (
        ("torch", own.torch, join_request.torch),
        ("CUDA", own.cuda, join_request.cuda),
        ("NCCL", own.nccl, join_request.nccl),
        ("yolo-launch", own.code, join_request.code),
    ):
        if mine != theirs:
            return JoinRefused(
                what=f"{join_request.host} and {own.host} have different versions of {name}.",
                seen=f"{theirs or 'none'} on {join_request.host}, {mine or 'none'} on {own.host}",
                expected="the same on every machine",
                exit_code=3,
            )
    return None


def _same_backend(case: _Case) -> JoinRefused | None:
    join_request, own = case.join_request, case.own
    # A cluster check reports this itself, beside its other findings.
    if join_request.backend == own.backend or join_request.check_port:
        return None
    return JoinRefused(
        what=f"{join_request.host} and {own.host} would train on different kinds of devices.",
        seen=f"{join_request.backend} on {join_request.host}, {own.backend} on {own.host}",
        expected="GPUs on every machine, or --gpus cpu on every machine",
    )


def _rank_is_free(case: _Case) -> JoinRefused | None:
    join_request, taken = case.join_request, case.taken
    if taken is None or taken.session == join_request.session:
        return None
    return JoinRefused(
        what=f"Rank {join_request.rank} is taken twice: by {taken.label} and by {join_request.label}.",
        seen=f"--rank {join_request.rank} on {taken.host} and on {join_request.host}",
        expected="each rank from 0 on, once",
    )


_RULES: tuple[Callable[[_Case], JoinRefused | None], ...] = (
    _same_purpose,
    _same_job,
    _same_nodes,
    _in_range,
    _rank_is_free,
    _same_versions,
    _same_backend,
)


def other_data(join_request: JoinRequest, fingerprint: str, job: JobOffer) -> JoinRefused:
    """Returns the refusal of a machine with another data set."""
    return JoinRefused(
        what=f"The data set of {join_request.host} is not that of {job.own.host}.",
        seen=f"fingerprint {fingerprint[:12]} on {join_request.host}, {job.fingerprint[:12]} on {job.own.host}",
        expected="the same classes, images and labels; --data names another path to the same data",
    )

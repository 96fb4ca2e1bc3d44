"""Describes the work on a node: training, running a script or checking connections."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from yolo_launch.rendezvous.admission import JobOffer
from yolo_launch.rendezvous.messages import JoinRequest, Round, Seen
from yolo_launch.rendezvous.server import RendezvousServer
from yolo_launch.spec import Finding, LaunchPlan, LaunchRequest, Outcome, WorkerCommand


@dataclass(frozen=True)
class Introduction:
    """Holds what a node reports once it can do the job."""

    fingerprint: str = ""
    """Of its data set; empty for a job without one."""
    findings: tuple[tuple[int, Finding], ...] = ()
    """What it has found in a cluster check, each with its rank."""


class JobEnded(Exception):
    """Raised by ``command``: no workers need to start, and the job ends like this."""

    def __init__(self, outcome: Outcome) -> None:
        super().__init__(outcome.kind)
        self.outcome = outcome


class NodeWork(Protocol):
    """Describes the work on one node of a job."""

    request: LaunchRequest
    """What the node is asked: its devices, and the batch as soon as the job is known."""
    plan: LaunchPlan
    """The plan of the last round; before the first, a draft whose devices stay."""
    run_dir: Path
    """Where the logs go; on a member known once it has accepted the job."""
    foreign: bool
    """Whether the workers run a script instead of the built-in trainer."""

    def command(self, start: Round, plan: LaunchPlan) -> WorkerCommand:
        """Prepares a round, keeps its plan, and returns the command of each worker. Raises LaunchError, or JobEnded."""
        ...

    def receive_findings(self, message: Seen) -> None:
        """Takes what all nodes have found; called from the connection's thread."""
        ...


class MasterWork(NodeWork, Protocol):
    """Describes the work on the node that offers the job."""

    def offer(self, own: JoinRequest) -> JobOffer:
        """Describes the job to the others."""
        ...

    def introduce(self, server: RendezvousServer) -> Introduction:
        """Returns what this node reports once its rendezvous is open and it can do the job."""
        ...


class MemberWork(NodeWork, Protocol):
    """Describes the work on any other node."""

    def accept(self, description: Mapping[str, Any]) -> Introduction:
        """Checks on this node the job that the master describes. Raises UserError if this node cannot do it."""
        ...

"""Holds the values from which a node takes part in a job."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass, replace

from yolo_launch.nodes.identity import (
    Asked,
    NodeIdentity,
    describe_identity,
    find_identity,
    quiet_variables,
    socket_variables,
    with_scheduled_devices,
)
from yolo_launch.nodes.status_line import StatusLine
from yolo_launch.nodes.work import NodeWork
from yolo_launch.planning.plan import make_plan, rank_lines
from yolo_launch.rendezvous.messages import Round
from yolo_launch.spec import Host, LaunchRequest
from yolo_launch.supervision.attempt import AttemptRunner
from yolo_launch.workers.files import WorkerFiles


@dataclass(frozen=True)
class NodeContext:
    """A node of a job before it takes part."""

    typed: tuple[str, ...]
    host: Host
    identity: NodeIdentity
    variables: dict[str, str]
    """What keeps the workers' networks on the right interface."""
    status_line: StatusLine
    console_json: bool = False
    """Whether stdout is kept for one JSON object."""

    def runner(self, work: NodeWork, start: Round) -> AttemptRunner:
        """Plans and prepares the workers of a round; shows the lines of its ranks if they have changed.

        Raises LaunchError for a round that this node cannot run.
        """
        request = round_request(work.request, start, self.identity.rank)
        plan = make_plan(request, self.host, work.plan.devices)
        plan = replace(plan, environment={**plan.environment, **self.variables, **quiet_variables(os.environ)})
        command = work.command(start, plan)
        self.status_line.ranks(rank_lines(plan))
        return AttemptRunner(plan, command, WorkerFiles(work.run_dir.absolute()), console_json=self.console_json)


def find_context(
    options: Asked, typed: tuple[str, ...], host: Host, say: Callable[[str], None], *, console_json: bool
) -> tuple[Asked, NodeContext]:
    """Returns the node that options and environment name, and the options with the devices that a scheduler gives.

    Raises LaunchError for what is missing or wrong.
    """
    identity = find_identity(options, typed, host, os.environ, say)
    options = with_scheduled_devices(options, identity, host)
    return options, make_context(identity, typed, host, say, console_json=console_json)


def make_context(
    identity: NodeIdentity,
    typed: tuple[str, ...],
    host: Host,
    say: Callable[[str], None],
    *,
    console_json: bool,
) -> NodeContext:
    """Returns the node with its rank and addresses, which go to ``say`` in one line."""
    variables = socket_variables(identity, os.environ)
    say(describe_identity(identity, variables))
    status_line = StatusLine(shows_progress=identity.rank > 0)
    return NodeContext(typed, host, identity, variables, status_line, console_json)


def round_request(request: LaunchRequest, start: Round, rank: int) -> LaunchRequest:
    """Returns a node's request for one round, with the workers of all nodes of the round."""
    ranks = [member for member, _ in start.members]
    return replace(
        request,
        nnodes=len(ranks),
        node_rank=ranks.index(rank),
        nproc_by_node=tuple(count for _, count in start.members),
        global_batch_size=start.batch_size,
        batch_is_default=False,
        uneven_batch_ok=not start.even,
    )

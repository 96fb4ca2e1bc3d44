"""A machine's seat in a job of several: taken, kept over a broken connection, and played to the end."""

from __future__ import annotations

import os
import random
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from yolo_launch.cli.console import Console
from yolo_launch.errors import ExitCode, LaunchError
from yolo_launch.nodes.agent import NodeAgent
from yolo_launch.nodes.identity import NodeIdentity, quiet_variables
from yolo_launch.nodes.status_line import StatusLine
from yolo_launch.planning.plan import make_plan, rank_lines
from yolo_launch.rendezvous.client import (
    NoRendezvous,
    RendezvousClient,
    RendezvousEndpoint,
    closing_on_failure,
    dial,
    greet,
    request_rank,
)
from yolo_launch.rendezvous.framing import Channel
from yolo_launch.rendezvous.messages import JoinRequest, Leave, Ready, Round
from yolo_launch.spec import Host, LaunchPlan, LaunchRequest, Outcome, WorkerCommand
from yolo_launch.supervision.attempt import AttemptRunner
from yolo_launch.supervision.monitor import Limits
from yolo_launch.supervision.supervisor import monitoring
from yolo_launch.workers.files import WorkerFiles
from yolo_launch.workers.torch_preload import TorchPreload

LOOK_S = 1.0
"""How long a master looks for another one at an address that is not its own."""
LOST_S = 9.0
"""How long a machine looks for a master that it has lost, counted from the master's last word."""


@dataclass(frozen=True)
class NodeContext:
    """What every machine of a job starts from."""

    values: dict[str, Any]
    typed: tuple[str, ...]
    host: Host
    identity: NodeIdentity
    variables: dict[str, str]
    """What keeps the workers' networks on the right interface."""
    console: Console
    line: StatusLine

    def plan(self, request: LaunchRequest, start: Round) -> LaunchPlan:
        """The plan of a round here."""
        plan = make_plan(round_request(request, start, self.identity.rank), self.host)
        return replace(plan, environment={**plan.environment, **self.variables, **quiet_variables(os.environ)})

    def runner(self, plan: LaunchPlan, command: WorkerCommand, run_dir: Path) -> AttemptRunner:
        """The workers of a round, with their devices shown where they are not the last round's."""
        self.line.ranks(rank_lines(plan))
        return AttemptRunner(plan, command, WorkerFiles(run_dir.absolute()), console_json=self.console.json_mode)


class NodeSession:
    """One rank of the job's machines, held by this launcher."""

    def __init__(self, machine: NodeContext, join_request: JoinRequest, endpoint: RendezvousEndpoint) -> None:
        self._machine = machine
        self._join_request = join_request
        self._endpoint = endpoint
        self._lobby_id = ""
        self._fingerprint = ""
        self._warm: TorchPreload | None = None
        self._member: RendezvousClient | None = None

    def take(self, patience_s: float) -> dict[str, Any]:
        """Find the rendezvous and claim the rank; the job's description. Raises LaunchError where that fails."""
        began_at = time.monotonic()

        def explain(problem: str) -> None:
            self._machine.line.roster(problem, patience_s - (time.monotonic() - began_at), counts_down=True)

        while True:
            try:
                channel = dial(self._endpoint, patience_s - (time.monotonic() - began_at), explain)
                return self._join(channel)
            except NoRendezvous as error:
                problem = str(error)
            if time.monotonic() - began_at >= patience_s:
                raise LaunchError(
                    f"The master did not answer within {patience_s:g} s.",
                    seen=problem,
                    expected=f"a rendezvous at {self._endpoint.address}:{self._endpoint.port}",
                    next_command=f"yolo-launch doctor --master {self._endpoint.address} --port {self._endpoint.port} "
                    f"--rank {self._join_request.rank}, on the master too",
                    exit_code=ExitCode.NOT_JOINED,
                )
            # Something took the connection and cut it: the proxy of a container that is not up yet, or a rendezvous at
            # which more machines knock at once than it listens to.
            explain(problem)
            time.sleep(random.uniform(0.2, 1.0))

    def _join(self, channel: Channel) -> dict[str, Any]:
        with closing_on_failure(channel):
            self._lobby_id = greet(channel, self._endpoint)
            description = request_rank(channel, self._endpoint, self._join_request_now())
        self._member = RendezvousClient(channel)
        self._member.start()
        return description

    def refuse_second_master(self) -> None:
        """Ask for rank 0 where the master is said to be. Raises LaunchError, on both sides, where there is one already.

        A master behind an address that is not its own finds nobody there, and goes on.
        """
        try:
            channel = dial(self._endpoint, LOOK_S, lambda problem: None, patient=False)
            with closing_on_failure(channel):
                greet(channel, self._endpoint)
                request_rank(channel, self._endpoint, self._join_request_now())
            channel.close()
        except NoRendezvous:
            return

    @property
    def member(self) -> RendezvousClient:
        """The connection of a seat that was taken."""
        if self._member is None:
            raise AssertionError("the seat is not taken yet")
        return self._member

    def ready(self, fingerprint: str) -> None:
        """Say that this machine can do the job."""
        self._fingerprint = fingerprint
        self._warm = self._warm or TorchPreload()
        self.member.send(Ready(fingerprint=fingerprint))

    def leave(self, reason: str) -> None:
        """Give the seat back."""
        if self._member is not None:
            self._member.send(Leave(reason=reason))
            self._member.close()

    def play(self, make_runner: Callable[[Round], AttemptRunner]) -> Outcome:
        """Take part until the job is over. Call it in the main thread."""
        machine = self._machine
        with monitoring(WorkerCommand(()), Limits(), machine.line.over) as monitor:
            job = NodeAgent(
                rank=self._join_request.rank,
                address=self._endpoint.address,
                member=self.member,
                make_runner=make_runner,
                reconnect=self._reconnect,
                line=machine.line,
                warm=self._warm or TorchPreload(),
            )
            outcome = job.run(monitor)
        self.member.close()
        return outcome

    def _join_request_now(self) -> JoinRequest:
        return self._join_request.model_copy(update={"clock": time.time()})

    def _reconnect(self, reason: str) -> RendezvousClient | None:
        """The same seat over a new connection, where the same rendezvous still answers."""
        lost = self.member
        lost.close()
        self._machine.line.over(f"{reason}; looking for it")
        deadline = lost.heard_at + LOST_S

        def left_s() -> float:
            # One that is stopped or hangs takes connections still, and says nothing.
            return max(0.5, deadline - time.monotonic())

        try:
            channel = dial(self._endpoint, left_s(), lambda problem: None, patient=False)
            with closing_on_failure(channel):
                if greet(channel, self._endpoint, left_s()) != self._lobby_id:
                    channel.close()
                    return None  # another job has taken its place
                request_rank(channel, self._endpoint, self._join_request_now(), left_s())
        except (NoRendezvous, LaunchError):
            return None
        self._member = RendezvousClient(channel)
        self._member.start()
        self.member.send(Ready(fingerprint=self._fingerprint))
        self._machine.line.over("the master answers again")
        return self._member


def round_request(request: LaunchRequest, start: Round, rank: int) -> LaunchRequest:
    """A machine's request for one round, with everybody's workers in it."""
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

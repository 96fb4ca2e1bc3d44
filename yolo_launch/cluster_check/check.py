"""Checks a cluster: runs a job over the rendezvous that trains nothing, and makes findings of what it observes."""

from __future__ import annotations

import json
import signal
import tempfile
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

from yolo_launch.cluster_check import findings as cluster_findings
from yolo_launch.cluster_check.connectivity import EchoServer, check_connection
from yolo_launch.cluster_check.worker_check import read_answer
from yolo_launch.errors import ExitCode, LaunchError
from yolo_launch.nodes.context import NodeContext
from yolo_launch.nodes.identity import listening_address, make_join_request
from yolo_launch.nodes.master import NodeMaster, make_settings
from yolo_launch.nodes.member import NodeMember
from yolo_launch.nodes.work import Introduction, JobEnded
from yolo_launch.planning.plan import make_plan
from yolo_launch.rendezvous.admission import JobOffer
from yolo_launch.rendezvous.messages import JoinRequest, Round, Seen
from yolo_launch.rendezvous.server import RendezvousServer
from yolo_launch.request.launch_request import launch_request
from yolo_launch.request.machine_options import DoctorOptions
from yolo_launch.spec import Device, Finding, LaunchPlan, LaunchRequest, Outcome, WorkerCommand
from yolo_launch.supervision.supervisor import SCRIPT_ENTRYPOINT

STALL_S = 150.0
"""The workers end by themselves long before this."""
SILENT_S = 30.0
"""Nothing is lost here by waiting, and a busy launcher that loads torch can be silent for long."""
CHECKED_KINDS = ("done", "worker_failed", "stalled")
"""Outcomes of a check that took place."""


class ClusterCheck:
    """Holds one node's part in a check, and what all nodes have found."""

    foreign = False

    def __init__(
        self,
        context: NodeContext,
        plan: LaunchPlan,
        request: LaunchRequest,
        local: list[Finding],
        run_dir: Path,
        echo_port: int,
    ) -> None:
        self.request, self.plan, self.run_dir = request, plan, run_dir
        self.seen: cluster_findings.Seen = ()
        self._context = context
        self._local = local
        """What this node found on itself and the others should know."""
        self._echo_server = (context.host.name, context.identity.own_address, echo_port)
        """Host, address and port at which this node answers."""
        join_request = make_join_request(context.identity, self.plan, context.host)
        self.join_request = join_request.model_copy(update={"check_port": echo_port})

    def command(self, start: Round, plan: LaunchPlan) -> WorkerCommand:
        """Returns the command of the workers, which sum numbers over all nodes."""
        self.plan = plan
        arguments = {"folder": str(self.run_dir), "backend": plan.backend, "echo_server": self._echo_server}
        return WorkerCommand(
            ("-m", SCRIPT_ENTRYPOINT, "-m", "yolo_launch.cluster_check.worker_check", json.dumps(arguments))
        )

    def receive_findings(self, message: Seen) -> None:
        """Keeps what all nodes have found."""
        self.seen = message.findings

    def _introduction(self, found: Sequence[Finding]) -> Introduction:
        rank = self._context.identity.rank
        self.seen = tuple((rank, one) for one in found)
        return Introduction(findings=self.seen)

    def conclude(self, outcome: Outcome) -> tuple[list[Finding], int]:
        """Returns all findings in order, and the exit code."""
        found = cluster_findings.for_reader(self.seen, self._context.identity.rank)
        if outcome.kind in CHECKED_KINDS:
            if cluster_findings.has_failed(self.seen):
                found.append(cluster_findings.not_tried())
            else:
                answer = read_answer(self.run_dir, self.plan.first_rank)
                found += cluster_findings.of_workers(self.plan, outcome, answer, self._context.identity.port)
            failed = any(finding.level == "failure" for finding in found)
            return found, ExitCode.ENVIRONMENT if failed else ExitCode.DONE
        if outcome.kind == "interrupted":
            return found, outcome.exit_code
        advice = "the same command with its own --rank on every machine" if outcome.kind == "not_joined" else ""
        return [*found, Finding(cluster_findings.CHECK, "failure", outcome.detail, advice)], outcome.exit_code


class MasterCheck(ClusterCheck):
    """The master's part: it connects to every node once all are there, and starts the workers if all answer."""

    _server: RendezvousServer | None = None

    def offer(self, own: JoinRequest) -> JobOffer:
        """Describes the port at which the master answers, and the backend on which it would train."""
        description = {
            "cluster_check": True,
            "host": own.host,
            "port": own.check_port,
            "backend": self.plan.backend,
        }
        return JobOffer(own=own, description=description, fingerprint="", settle=sum)

    def introduce(self, server: RendezvousServer) -> Introduction:
        """Returns what the master found on itself."""
        self._server = server
        return self._introduction(self._local)

    def command(self, start: Round, plan: LaunchPlan) -> WorkerCommand:
        """Connects to all nodes, then returns the workers' command. Raises JobEnded if some node is not reached."""
        assert self._server is not None, "the rendezvous is open"
        self.seen = look_at_all(self._server, self.join_request, self._context.identity.port)
        self._server.send(Seen(findings=tuple(self.seen)))
        if cluster_findings.has_failed(self.seen):
            raise JobEnded(Outcome("worker_failed", ExitCode.ENVIRONMENT, detail="not every machine is reached"))
        return super().command(start, plan)


class MemberCheck(ClusterCheck):
    """Any other node's part: it connects to the master."""

    def accept(self, description: Mapping[str, Any]) -> Introduction:
        """Connects to a free port of the master; returns the result with what this node found on itself."""
        identity = self._context.identity
        host, port = str(description["host"]), int(description["port"])
        problem = check_connection(identity.address, port)
        reached = cluster_findings.to_master(self.join_request, host, identity.address, port, identity.port, problem)
        backends = cluster_findings.backends(self.join_request, self.plan, host, str(description["backend"]))
        return self._introduction([reached, *backends, *self._local])


def check_nodes(
    context: NodeContext, options: DoctorOptions, local: Sequence[Finding], devices: tuple[Device, ...]
) -> tuple[list[Finding], int]:
    """Takes part in a cluster check to its end; returns all findings and the exit code. Call it in the main thread.

    ``local`` is what this node found on itself; its workers run on ``devices``. Raises LaunchError if it cannot take
    part.
    """
    identity, host = context.identity, context.host
    most = identity.nodes[1] if identity.nodes else 2
    if most < 2:
        raise LaunchError("One machine alone is no cluster check.", expected="--nodes 2, or more")
    if identity.nodes:
        identity = replace(identity, nodes=(most, most))
        context = replace(context, identity=identity)
    request = launch_request(
        replace(options, port=None, max_restarts=0, stall_timeout=STALL_S),
        context.typed,
        workers=0,
        builtin_trainer=False,
        nnodes=most,
    )
    shared = cluster_findings.for_others(local, host.name)
    address = listening_address(identity, host) if identity.rank == 0 else identity.own_address
    with tempfile.TemporaryDirectory(prefix="yolo-launch-") as folder, EchoServer(address) as echo_server:
        kind = MasterCheck if identity.rank == 0 else MemberCheck
        work = kind(context, make_plan(request, host, devices), request, shared, Path(folder), echo_server.port)
        try:
            outcome = _run(work, context, options.join_timeout)
        except KeyboardInterrupt:  # while the master was dialed; later the monitor receives it
            outcome = Outcome("interrupted", 128 + signal.SIGINT, signal=signal.SIGINT)
        return work.conclude(outcome)


def _run(work: MasterCheck | MemberCheck, context: NodeContext, join_timeout: float) -> Outcome:
    if isinstance(work, MemberCheck):
        return NodeMember(context, work.join_request, join_timeout).run(work)
    settings = make_settings(context.identity, max_restarts=0, join_timeout=join_timeout)
    return NodeMaster(context, work.join_request, replace(settings, silent_s=SILENT_S)).run(work)


def look_at_all(server: RendezvousServer, own: JoinRequest, rendezvous_port: int) -> cluster_findings.Seen:
    """Connects to all nodes that are there; returns the master's findings with those that it received."""
    participants = dict(server.coordinator.participants.by_rank)
    join_requests = {rank: one.join_request for rank, one in sorted(participants.items())}
    others = [one for rank, one in join_requests.items() if rank != 0]
    with ThreadPoolExecutor(min(64, len(others) or 1)) as pool:
        problems = list(pool.map(lambda one: check_connection(one.address, one.check_port), others))
    found = cluster_findings.versions_and_environments(join_requests)
    found += cluster_findings.clocks(join_requests, {rank: one.clock_ahead_s for rank, one in participants.items()})
    connected = zip(others, problems, strict=True)
    reached = [(0, cluster_findings.from_master(own, one, rendezvous_port, problem)) for one, problem in connected]
    received = [pair for rank in join_requests if (seen := participants[rank].seen) for pair in seen.findings]
    return [(0, one) for one in found] + received + reached

"""A cluster check: a job over the rendezvous that trains nothing, and a finding for all that it sees."""

from __future__ import annotations

import json
import signal
import tempfile
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from yolo_launch.cluster_check import findings as cluster_check
from yolo_launch.cluster_check.connectivity import EchoServer, check_connection
from yolo_launch.cluster_check.worker_check import read_answer
from yolo_launch.errors import ExitCode, LaunchError
from yolo_launch.nodes.identity import listening_address, make_join_request
from yolo_launch.nodes.master import make_settings, open_rendezvous
from yolo_launch.nodes.session import NodeContext, NodeSession
from yolo_launch.planning.plan import make_plan
from yolo_launch.rendezvous.admission import JobOffer
from yolo_launch.rendezvous.messages import JoinRequest, Round, Seen
from yolo_launch.rendezvous.server import RendezvousServer
from yolo_launch.request.launch_request import launch_request
from yolo_launch.spec import Finding, LaunchPlan, LaunchRequest, Outcome, WorkerCommand
from yolo_launch.supervision.attempt import AttemptRunner
from yolo_launch.supervision.supervisor import SCRIPT_ENTRYPOINT

JOIN_TIMEOUT_S = 300.0
STALL_S = 150.0
"""The workers end by themselves long before."""
SILENT_S = 30.0
"""Nothing is lost here by waiting, and a busy launcher that loads torch can be silent for long."""
OWN_LOBBY_S = 10.0


class Unreached(Exception):
    """The workers need not be started."""


@dataclass
class ClusterCheck:
    """One machine's part, and what it has seen."""

    machine: NodeContext
    request: LaunchRequest
    plan: LaunchPlan
    local: list[Finding]
    """What this machine found on itself and the others should know."""
    folder: Path
    echo_server: tuple[str, str, int]
    """Host, address and port where this machine answers."""
    seen: cluster_check.Seen = ()

    def runner(self, start: Round) -> AttemptRunner:
        """The workers of the sum over all machines."""
        plan = self.plan = self.machine.plan(self.request, start)
        arguments = {"folder": str(self.folder), "backend": plan.backend, "echo_server": self.echo_server}
        command = WorkerCommand(
            ("-m", SCRIPT_ENTRYPOINT, "-m", "yolo_launch.cluster_check.worker_check", json.dumps(arguments))
        )
        return self.machine.runner(plan, command, self.folder)

    def say(self, session: NodeSession, found: Sequence[Finding]) -> None:
        """Tell the master what was found here, and that this machine is ready."""
        rank = self.machine.identity.rank
        self.seen = [(rank, one) for one in found]
        session.member.on_seen = self.receive
        session.member.send(Seen(findings=tuple(self.seen)))
        session.ready("")

    def receive(self, message: Seen) -> None:
        """The master tells what all have found."""
        self.seen = message.findings

    def conclude(self, outcome: Outcome) -> tuple[list[Finding], int]:
        """All findings in order, and the exit code."""
        found = cluster_check.for_reader(self.seen, self.machine.identity.rank)
        if outcome.kind in ("done", "worker_failed", "stalled"):
            answer = read_answer(self.folder, self.plan.first_rank)
            if cluster_check.has_failed(self.seen):
                found.append(cluster_check.not_tried())
            else:
                found += cluster_check.of_workers(self.plan, outcome, answer, self.machine.identity.port)
            failed = any(finding.level == "failure" for finding in found)
            return found, ExitCode.ENVIRONMENT if failed else ExitCode.DONE
        if outcome.kind == "interrupted":
            return found, outcome.exit_code
        advice = "the same command with its own --rank on every machine" if outcome.kind == "not_joined" else ""
        return [*found, Finding(cluster_check.CHECK, "failure", outcome.detail, advice)], outcome.exit_code


def check_nodes(machine: NodeContext, local: Sequence[Finding]) -> tuple[list[Finding], int]:
    """Take part in a cluster check to its end: what was found together, and the exit code. Call it in the main thread.

    ``local`` is what this machine found on itself. Raises LaunchError where it cannot take part.
    """
    identity, host = machine.identity, machine.host
    most = identity.nodes[1] if identity.nodes else 2
    if most < 2:
        raise LaunchError("One machine alone is no cluster check.", expected="--nodes 2, or more")
    if identity.nodes:
        identity = replace(identity, nodes=(most, most))
        machine = replace(machine, identity=identity)
    request = launch_request(
        {**machine.values, "port": None}, machine.typed, workers=0, builtin_trainer=False, nnodes=most
    )
    request = replace(request, max_restarts=0, stall_timeout_s=STALL_S)
    plan = make_plan(request, host)
    address = listening_address(identity, host) if identity.rank == 0 else identity.own_address
    with tempfile.TemporaryDirectory(prefix="yolo-launch-") as folder, EchoServer(address) as echo_server:
        told = cluster_check.worth_telling(local, host.name)
        part = ClusterCheck(
            machine, request, plan, told, Path(folder), (host.name, identity.own_address, echo_server.port)
        )
        join_request = make_join_request(identity, plan, host).model_copy(update={"check_port": echo_server.port})
        try:
            outcome = lead(part, join_request) if identity.rank == 0 else follow(part, join_request)
        except KeyboardInterrupt:  # while the master was dialed; later the watcher hears it
            outcome = Outcome("interrupted", 128 + signal.SIGINT, signal=signal.SIGINT)
        return part.conclude(outcome)


def lead(part: ClusterCheck, join_request: JoinRequest) -> Outcome:
    """The master: open the rendezvous, ring at every machine once all are there, start the workers if all answer."""
    machine, identity = part.machine, part.machine.identity
    description = {
        "cluster_check": True,
        "host": join_request.host,
        "port": join_request.check_port,
        "backend": part.plan.backend,
    }
    facts = JobOffer(own=join_request, description=description, fingerprint="", settle=sum)
    settings = replace(
        make_settings({"join_timeout": patience_s(machine)}, identity, max_restarts=0), silent_s=SILENT_S
    )
    with open_rendezvous(facts, identity, machine.host, settings, machine.line.over) as rendezvous:

        def make_runner(start: Round) -> AttemptRunner:
            part.seen = look_at_all(rendezvous, join_request, identity.port)
            rendezvous.send(Seen(findings=tuple(part.seen)))
            if cluster_check.has_failed(part.seen):
                rendezvous.end(Outcome("worker_failed", ExitCode.ENVIRONMENT, detail="not every machine is reached"))
                raise Unreached
            return part.runner(start)

        session = NodeSession(machine, join_request, replace(identity.endpoint, address=rendezvous.own_address))
        session.take(OWN_LOBBY_S)
        part.say(session, part.local)
        try:
            return session.play(make_runner)
        except Unreached:
            return Outcome("worker_failed", ExitCode.ENVIRONMENT)


def look_at_all(rendezvous: RendezvousServer, own: JoinRequest, rendezvous_port: int) -> cluster_check.Seen:
    """What the master sees of the machines that are there, and what they have told it."""
    participants = dict(rendezvous.coordinator.participants.by_rank)
    join_requests = {rank: session.join_request for rank, session in sorted(participants.items())}
    others = [join_request for rank, join_request in join_requests.items() if rank != 0]
    with ThreadPoolExecutor(min(64, len(others) or 1)) as pool:
        problems = list(
            pool.map(lambda join_request: check_connection(join_request.address, join_request.check_port), others)
        )
    found = cluster_check.versions_and_environments(join_requests)
    found += cluster_check.clocks(
        join_requests, {rank: session.clock_ahead_s for rank, session in participants.items()}
    )
    rung = zip(others, problems, strict=True)
    reached = [(0, cluster_check.from_master(own, other, rendezvous_port, problem)) for other, problem in rung]
    told = [pair for rank in join_requests if (seen := participants[rank].seen) for pair in seen.findings]
    return [(0, one) for one in found] + told + reached


def follow(part: ClusterCheck, join_request: JoinRequest) -> Outcome:
    """Any other machine: find the rendezvous, ring at the master, take part."""
    machine, identity = part.machine, part.machine.identity
    session = NodeSession(machine, join_request, identity.endpoint)
    try:
        job: dict[str, Any] = session.take(patience_s(machine))
        host, port = str(job["host"]), int(job["port"])
        problem = check_connection(identity.address, port)
    except KeyboardInterrupt:
        session.leave("it left (Ctrl-C)")
        raise
    reached = cluster_check.to_master(join_request, host, identity.address, port, identity.port, problem)
    part.say(
        session, [reached, *cluster_check.backends(join_request, part.plan, host, str(job["backend"])), *part.local]
    )
    return session.play(part.runner)


def patience_s(machine: NodeContext) -> float:
    """How long machines wait for one another."""
    typed = machine.values["join_timeout"]
    return JOIN_TIMEOUT_S if typed is None else float(typed)

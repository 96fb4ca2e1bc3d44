"""A check-up of several machines: a job over the lobby that trains nothing, and a finding for all that it sees."""

from __future__ import annotations

import json
import signal
import tempfile
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from yolo_launch.cluster_check import findings as checkup
from yolo_launch.cluster_check.connectivity import Bell, ring
from yolo_launch.cluster_check.worker_check import read_answer
from yolo_launch.errors import ExitCode, LaunchError
from yolo_launch.nodes.identity import listening_address, make_claim
from yolo_launch.nodes.master import make_terms, open_lobby
from yolo_launch.nodes.session import Machine, Seat
from yolo_launch.planning.plan import make_plan
from yolo_launch.rendezvous.admission import JobFacts
from yolo_launch.rendezvous.messages import Claim, Round, Seen
from yolo_launch.rendezvous.server import Lobby
from yolo_launch.request.launch_request import launch_request
from yolo_launch.spec import Finding, LaunchPlan, LaunchRequest, Outcome, WorkerCommand
from yolo_launch.supervision.attempt import AttemptRunner
from yolo_launch.supervision.supervisor import SHIM

JOIN_TIMEOUT_S = 300.0
STALL_S = 150.0
"""The workers end by themselves long before."""
SILENT_S = 30.0
"""Nothing is lost here by waiting, and a busy launcher that loads torch can be silent for long."""
OWN_LOBBY_S = 10.0


class Unreached(Exception):
    """The workers need not be started."""


@dataclass
class Checkup:
    """One machine's part, and what it has seen."""

    machine: Machine
    request: LaunchRequest
    plan: LaunchPlan
    local: list[Finding]
    """What this machine found on itself and the others should know."""
    folder: Path
    bell: tuple[str, str, int]
    """Host, address and port where this machine answers."""
    seen: checkup.Seen = ()

    def runner(self, start: Round) -> AttemptRunner:
        """The workers of the sum over all machines."""
        plan = self.plan = self.machine.plan(self.request, start)
        arguments = {"folder": str(self.folder), "backend": plan.backend, "bell": self.bell}
        command = WorkerCommand(("-m", SHIM, "-m", "yolo_launch.cluster_check.worker_check", json.dumps(arguments)))
        return self.machine.runner(plan, command, self.folder)

    def say(self, seat: Seat, found: Sequence[Finding]) -> None:
        """Tell the master what was found here, and that this machine is ready."""
        rank = self.machine.place.rank
        self.seen = [(rank, one) for one in found]
        seat.member.on_seen = self.hear
        seat.member.send(Seen(findings=tuple(self.seen)))
        seat.ready("")

    def hear(self, message: Seen) -> None:
        """The master tells what all have found."""
        self.seen = message.findings

    def conclude(self, outcome: Outcome) -> tuple[list[Finding], int]:
        """All findings in order, and the exit code."""
        found = checkup.for_reader(self.seen, self.machine.place.rank)
        if outcome.kind in ("done", "worker_failed", "stalled"):
            answer = read_answer(self.folder, self.plan.first_rank)
            if checkup.has_failed(self.seen):
                found.append(checkup.not_tried())
            else:
                found += checkup.of_workers(self.plan, outcome, answer, self.machine.place.port)
            failed = any(finding.level == "failure" for finding in found)
            return found, ExitCode.ENVIRONMENT if failed else ExitCode.DONE
        if outcome.kind == "interrupted":
            return found, outcome.exit_code
        advice = "the same command with its own --rank on every machine" if outcome.kind == "not_joined" else ""
        return [*found, Finding(checkup.CHECK, "failure", outcome.detail, advice)], outcome.exit_code


def check_machines(machine: Machine, local: Sequence[Finding]) -> tuple[list[Finding], int]:
    """Take part in a check-up to its end: what was found together, and the exit code. Call it in the main thread.

    ``local`` is what this machine found on itself. Raises LaunchError where it cannot take part.
    """
    place, host = machine.place, machine.host
    most = place.nodes[1] if place.nodes else 2
    if most < 2:
        raise LaunchError("One machine alone is no check-up of several.", expected="--nodes 2, or more")
    if place.nodes:
        place = replace(place, nodes=(most, most))
        machine = replace(machine, place=place)
    request = launch_request(
        {**machine.values, "port": None}, machine.typed, workers=0, builtin_trainer=False, nnodes=most
    )
    request = replace(request, max_restarts=0, stall_timeout_s=STALL_S)
    plan = make_plan(request, host)
    address = listening_address(place, host) if place.rank == 0 else place.own_address
    with tempfile.TemporaryDirectory(prefix="yolo-launch-") as folder, Bell(address) as bell:
        told = checkup.worth_telling(local, host.name)
        part = Checkup(machine, request, plan, told, Path(folder), (host.name, place.own_address, bell.port))
        claim = make_claim(place, plan, host).model_copy(update={"checkup_port": bell.port})
        try:
            outcome = lead(part, claim) if place.rank == 0 else follow(part, claim)
        except KeyboardInterrupt:  # while the master was dialled; later the watcher hears it
            outcome = Outcome("interrupted", 128 + signal.SIGINT, signal=signal.SIGINT)
        return part.conclude(outcome)


def lead(part: Checkup, claim: Claim) -> Outcome:
    """The master: open the lobby, ring at every machine once all are there, start the workers if all answer."""
    machine, place = part.machine, part.machine.place
    description = {"checkup": True, "host": claim.host, "port": claim.checkup_port, "backend": part.plan.backend}
    facts = JobFacts(own=claim, description=description, fingerprint="", settle=sum)
    terms = replace(make_terms({"join_timeout": patience_s(machine)}, place, max_restarts=0), silent_s=SILENT_S)
    with open_lobby(facts, place, machine.host, terms, machine.line.over) as lobby:

        def make_runner(start: Round) -> AttemptRunner:
            part.seen = look_at_all(lobby, claim, place.port)
            lobby.tell(Seen(findings=tuple(part.seen)))
            if checkup.has_failed(part.seen):
                lobby.end(Outcome("worker_failed", ExitCode.ENVIRONMENT, detail="not every machine is reached"))
                raise Unreached
            return part.runner(start)

        seat = Seat(machine, claim, replace(place.door, address=lobby.own_address))
        seat.take(OWN_LOBBY_S)
        part.say(seat, part.local)
        try:
            return seat.play(make_runner)
        except Unreached:
            return Outcome("worker_failed", ExitCode.ENVIRONMENT)


def look_at_all(lobby: Lobby, own: Claim, lobby_port: int) -> checkup.Seen:
    """What the master sees of the machines that are there, and what they have told it."""
    seats = dict(lobby.control.table.seats)
    claims = {rank: seat.claim for rank, seat in sorted(seats.items())}
    others = [claim for rank, claim in claims.items() if rank != 0]
    with ThreadPoolExecutor(min(64, len(others) or 1)) as pool:
        problems = list(pool.map(lambda claim: ring(claim.address, claim.checkup_port), others))
    found = checkup.versions_and_places(claims)
    found += checkup.clocks(claims, {rank: seat.clock_ahead_s for rank, seat in seats.items()})
    rung = zip(others, problems, strict=True)
    reached = [(0, checkup.from_master(own, other, lobby_port, problem)) for other, problem in rung]
    told = [pair for rank in claims if (seen := seats[rank].seen) for pair in seen.findings]
    return [(0, one) for one in found] + told + reached


def follow(part: Checkup, claim: Claim) -> Outcome:
    """Any other machine: find the lobby, ring at the master, take part."""
    machine, place = part.machine, part.machine.place
    seat = Seat(machine, claim, place.door)
    try:
        job: dict[str, Any] = seat.take(patience_s(machine))
        host, port = str(job["host"]), int(job["port"])
        problem = ring(place.address, port)
    except KeyboardInterrupt:
        seat.leave("it left (Ctrl-C)")
        raise
    reached = checkup.to_master(claim, host, place.address, port, place.port, problem)
    part.say(seat, [reached, *checkup.backends(claim, part.plan, host, str(job["backend"])), *part.local])
    return seat.play(part.runner)


def patience_s(machine: Machine) -> float:
    """How long machines wait for one another."""
    typed = machine.values["join_timeout"]
    return JOIN_TIMEOUT_S if typed is None else float(typed)

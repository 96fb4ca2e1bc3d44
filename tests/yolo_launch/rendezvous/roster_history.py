"""Plays one random history of a job on many machines, and checks at every step that there is one world."""

from __future__ import annotations

import random
import re
from dataclasses import dataclass

from tests.yolo_launch.rendezvous.roster_machine import Machine
from tests.yolo_launch.rendezvous.roster_network import FOREVER_S, EventLoop, Link, Network
from tests.yolo_launch.rendezvous.simulation import job_facts, make_join_request
from yolo_launch.rendezvous.admission import RendezvousSettings
from yolo_launch.rendezvous.coordinator import Coordinator
from yolo_launch.rendezvous.dispatch import Dispatcher
from yolo_launch.rendezvous.messages import JoinRequest, Round
from yolo_launch.rendezvous.server import TICK_S

TIMES = {"join_timeout_s": 20.0, "rejoin_timeout_s": 15.0, "join_grace_s": 3.0, "stop_s": 20.0, "save_s": 20.0}
FAULTS_S = 40.0
"""Faults happen in the first seconds of a history; every cut is mended within CUT_S."""
CUT_S = 20.0
SLOWEST_S = 1.0
ENDS_WITHIN_S = 400.0
FAULTS = ("kill", "power", "cut", "cut up", "cut down", "half", "worker", "second", "second master")


class WorldError(AssertionError):
    """A history in which something is so that must never be."""


@dataclass(frozen=True)
class Converged:
    """What came of one history; all times are simulated seconds."""

    outcome: str
    rounds: int
    faults: int
    ended_s: float
    """From its begin to the last machine's end."""
    converged_s: float
    """Longest time from the last of some faults until one world ran again, or the job was over."""


class History:
    """One job with its machines. The seed decides everything."""

    def __init__(self, seed: int, nodes: int) -> None:
        self.chance = random.Random(seed)
        self.nodes = nodes
        self.loop = EventLoop()
        self.network = Network(self.loop, self.chance)
        fewest = self.chance.choice([nodes, max(1, nodes - 2), max(1, nodes // 2)])
        settings = RendezvousSettings(min_nodes=fewest, max_nodes=nodes, max_restarts=3, **TIMES)
        offer = job_facts(own=make_join_request(0, nproc=1), settle=lambda by_node: 64)
        self.coordinator = Coordinator(settings, offer, self.loop.now)
        self.network.request_rank = self.request_rank
        self.network.dispatcher = self.dispatcher = Dispatcher(
            self.coordinator, self.network, self._hear, self.loop.clock, lambda: 1e9 + self.loop.now
        )
        self.work_s = self.chance.uniform(5.0, 40.0)
        self.machines: list[Machine] = []
        self.by_rank: dict[int, Machine] = {}
        self.faults = 0
        self._running: dict[int, set[Machine]] = {}
        self._disturbed_at: float | None = self.loop.now
        self._converged_s = 0.0
        self._worked_s, self._began_at = 0.0, None
        self._master_is_gone = False

    @property
    def work_left_s(self) -> float:
        """Returns the seconds that the workers have to train still."""
        return max(0.5, self.work_s - self._worked_s)

    def play(self) -> Converged:
        """Runs it to its end. Raises WorldError for two worlds, two machines with a rank, or no end."""
        began_at, chance = self.loop.now, self.chance
        for rank in range(self.nodes):
            self.loop.later(0.0 if rank == 0 else chance.uniform(0.0, 5.0), lambda rank=rank: self._add(rank))
        for _ in range(chance.choice([0, 1, 2, 3, 5, 8])):
            self.loop.later(chance.uniform(0.5, FAULTS_S), self._disturb)
        self.loop.later(TICK_S, self._tick)
        if not self.loop.run(self._is_over, ENDS_WITHIN_S):
            left = [(machine.rank, machine.state) for machine in self.machines if machine.state != "over"][:5]
            raise WorldError(f"no end after {ENDS_WITHIN_S:g} s: {self.coordinator.phase}, {left}")
        self._note_whole()
        outcome = self.coordinator.outcome
        kind = "master lost" if self._master_is_gone else outcome.kind
        return Converged(kind, self.coordinator.round, self.faults, self.loop.now - began_at, self._converged_s)

    def _add(self, rank: int, session: str = "first") -> Machine:
        chance = self.chance
        slow = chance.random() < 0.1 and rank != 0
        link = Link(chance.uniform(0.05, SLOWEST_S) if slow else 0.001, chance.choice([0.0, 0.1]) if rank else 0.0)
        own = session == "first" and rank == 0
        name = "session-0" if own else f"{session}-{rank}"
        machine = Machine(self, rank, name, link, TIMES["join_timeout_s"])
        self.machines.append(machine)
        if not session.startswith("second"):
            self.by_rank[rank] = machine
        return machine

    def _tick(self) -> None:
        if not self.network.is_open:
            return
        self.dispatcher.tick()
        if self.coordinator.is_over:
            self.network.shut(politely=True)
        elif self._disturbed_at is not None and self._is_whole():
            self._note_whole()
        self.loop.later(TICK_S, self._tick)

    def _is_over(self) -> bool:
        return not self.network.is_open and all(machine.state == "over" for machine in self.machines)

    # ---- faults

    def _disturb(self) -> None:
        alive = [machine for rank, machine in self.by_rank.items() if rank and machine.state != "over"]
        if not alive or not self.network.is_open:
            return
        self.faults += 1
        self._disturbed_at = self.loop.now
        fault, victim = self.chance.choice(FAULTS), self.chance.choice(alive)
        if self.chance.random() < 0.02:
            self._lose_master()
        elif fault in ("kill", "power"):
            self._lose(victim, power=fault == "power")
        elif fault == "worker":
            victim.fail()
        elif fault.startswith("second"):
            rank = 0 if fault == "second master" else victim.rank
            self._add(rank, f"second at {self.loop.now:.3f}")
        else:
            share = alive if fault == "half" else [victim]
            victims = self.chance.sample(share, max(1, len(share) // 2)) if fault == "half" else [victim]
            until = self.loop.now + self.chance.uniform(0.5, CUT_S)
            for machine in victims:
                self._cut(machine, until, fault.removeprefix("cut ") if " " in fault else "both")

    def _cut(self, machine: Machine, until: float, way: str) -> None:
        for one in ("up", "down") if way == "both" else (way,):
            machine.link.cut_until[one] = max(machine.link.cut_until[one], until)
        machine.link.disturbed_at = until + machine.link.delay_s
        self.loop.later(until - self.loop.now, self._mended)

    def _mended(self) -> None:
        if self._disturbed_at is not None:
            self._disturbed_at = self.loop.now

    def _lose(self, machine: Machine, *, power: bool) -> None:
        if power:
            machine.link.cut_until = {"up": FOREVER_S, "down": FOREVER_S}
            machine.link.disturbed_at = FOREVER_S
        machine.leave("killed")
        if self.chance.random() < 0.8:
            back_s = self.chance.uniform(0.1, 15.0)
            self.loop.later(back_s, lambda: self._add(machine.rank, f"back at {self.loop.now:.3f}"))

    def _lose_master(self) -> None:
        self._master_is_gone = True
        self.network.shut(politely=self.chance.random() < 0.5)
        self.by_rank[0].leave("killed")

    # ---- what must be so

    def request_rank(self, connection: int, request: JoinRequest) -> None:
        """Passes a request on, and checks that a rank that another launcher holds is not given away."""
        by_rank = self.coordinator.participants.by_rank
        before = by_rank.get(request.rank)
        self.dispatcher.on_join_request(connection, request)
        after = by_rank.get(request.rank)
        if before is not None and after is not None and before.join_request.session != after.join_request.session:
            raise WorldError(f"two machines of rank {request.rank} at {self.loop.now - 100:.1f} s")

    def note_round(self, machine: Machine, start: Round) -> None:
        """Checks that a machine begins each round once, in order, and only one that it takes part in."""
        if machine.begun and start.number <= machine.begun[-1]:
            raise WorldError(f"machine {machine.rank} begins round {start.number} after {machine.begun[-1]}")
        if machine.rank not in dict(start.members):
            raise WorldError(f"machine {machine.rank} begins round {start.number} of others")
        machine.begun.append(start.number)

    def note_running(self, machine: Machine) -> None:
        """Checks that all who run are in one round, with one machine a rank."""
        number = machine.round.number
        others = [old for old, crowd in self._running.items() if crowd and old != number]
        if others:
            who = sorted(one.rank for one in self._running[others[0]])[:5]
            at = self.loop.now - 100
            raise WorldError(f"at {at:.1f} s machine {machine.rank} runs round {number}, {who} round {others[0]}")
        crowd = self._running.setdefault(number, set())
        if any(one.rank == machine.rank for one in crowd):
            raise WorldError(f"two machines of rank {machine.rank} run round {number}")
        crowd.add(machine)
        if machine.rank == 0:
            self._began_at = self.loop.now

    def note_ended(self, machine: Machine) -> None:
        """Takes a machine whose workers are gone, or never began, out of the world."""
        if machine.state != "running":
            return
        self._running[machine.round.number].discard(machine)
        if machine.rank == 0 and self._began_at is not None:
            self._worked_s += self.loop.now - self._began_at
            self._began_at = None

    def _hear(self, line: str) -> None:
        found = re.match(r"machine (\d+) .*: no word from it", line)
        machine = self.by_rank.get(int(found[1])) if found else None
        # A machine that lives behind a link that is whole is never given up.
        if machine is None or machine.client is None or machine.state == "over":
            return
        if machine.link.disturbed_at < self.loop.now - 10:
            raise WorldError(f"{line}, and nothing was wrong with it")

    def _is_whole(self) -> bool:
        if self.coordinator.phase != "running":
            return False
        crowd = self._running.get(self.coordinator.round, set())
        return {one.rank for one in crowd} == set(self.coordinator.participants.in_round())

    def _note_whole(self) -> None:
        if self._disturbed_at is not None:
            self._converged_s = max(self._converged_s, self.loop.now - self._disturbed_at)
            self._disturbed_at = None

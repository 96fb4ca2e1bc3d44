"""Simulates a rendezvous without sockets and with a clock of its own, and the machines that connect to it."""

from __future__ import annotations

from collections import defaultdict

from yolo_launch.diagnosis.outcome import NodeReport
from yolo_launch.errors import LaunchError
from yolo_launch.rendezvous.admission import JobOffer, RendezvousSettings
from yolo_launch.rendezvous.coordinator import Coordinator
from yolo_launch.rendezvous.messages import JoinRequest, Message, NodeHeartbeat, Ready, Report, Round
from yolo_launch.spec import RankFailure

DATA = "d" * 64
VERSIONS = {"torch": "2.15.0", "cuda": "12.8", "nccl": "2.27.5", "code": "abc123"}
OWN = {0.0: "cause", 1.0: "consequence"}


def make_join_request(rank: int, **more) -> JoinRequest:
    """Returns the request of a machine with two GPUs that agrees with the master in everything."""
    facts = {
        "session": f"session-{rank}",
        "rank": rank,
        "host": f"gpu-{'abcdefgh'[rank % 8]}",
        "address": f"10.0.0.{rank + 1}",
        "devices": ("A100", "A100"),
        "nproc": 2,
        "backend": "nccl",
        **VERSIONS,
    }
    return JoinRequest(**{**facts, **more})


def even_batch(by_node: tuple[int, ...]) -> int:
    """Returns 64 images; refuses workers by which they do not divide, as the plan does."""
    shares = sum(by_node)
    if 64 % shares:
        below = 64 // shares * shares
        raise LaunchError(
            f"--batch 64 cannot be split evenly over {shares} GPUs. Use --batch {below} or {below + shares}."
        )
    return 64


def job_facts(**more) -> JobOffer:
    """Returns a job whose master is gpu-a."""
    facts = {
        "own": make_join_request(0),
        "description": {"config": {"epochs": 3}},
        "fingerprint": DATA,
        "settle": even_batch,
        "source_of_restart": lambda: "going on from the newest good checkpoint",
    }
    return JobOffer(**{**facts, **more})


def report(number: int, kind: str = "done", **facts) -> Report:
    """Returns how a round ended on a node."""
    return Report(round=number, report=NodeReport(kind, **facts))


def failed(
    number: int, rank: int, *, at_s: float = 5.0, own: bool = True, text: str = "ValueError: bad", **more
) -> Report:
    """Returns the report of a machine whose worker ended by its own exception, or because of another one."""
    failure = RankFailure(rank, 0, 1, message=text, timestamp_s=at_s, epoch=1, step=4)
    key = (0.0 if own else 1.0, 0.0, 0.0, at_s, float(rank))
    facts = {"kind": "failed" if own else "ended", "finished_a_step": True, "ran_s": 60.0}
    return report(number, **{"failure": failure, "key": key, **facts, **more})


class Stage:
    """Runs a coordinator under a clock that a test moves. Joined machines send heartbeats unless they are silent."""

    def __init__(
        self, nodes: int = 2, min_nodes: int | None = None, *, job: JobOffer | None = None, **settings
    ) -> None:
        self.now = 100.0
        self.coordinator = Coordinator(
            RendezvousSettings(min_nodes or nodes, nodes, **settings), job or job_facts(), self.now
        )
        self.heard: dict[int, list[Message]] = defaultdict(list)
        """Connection -> messages sent over it."""
        self.closed: set[int] = set()
        self.said: list[str] = []
        self.silent: set[int] = set()
        self.connections: dict[int, int] = {}
        self._numbered = 0

    # ---- events

    def join_request(self, join_request: JoinRequest, ahead_s: float = 0.0) -> int:
        """Requests a machine's rank over a new connection; returns the connection's number."""
        self._numbered += 1
        join_request = join_request.model_copy(update={"clock": 1e9 + self.now + ahead_s})
        self.coordinator.on_join_request(self._numbered, join_request, self.now, 1e9 + self.now)
        self._deliver()
        return self._numbered

    def join(self, rank: int, *, ready: bool = True, ahead_s: float = 0.0, **more) -> int:
        """Joins a machine, and reports that it is ready."""
        number = self.connections[rank] = self.join_request(make_join_request(rank, **more), ahead_s)
        if ready:
            self.say(rank, Ready(fingerprint=DATA))
        return number

    def say(self, rank: int, message: Message) -> None:
        """Sends a machine's message."""
        self.coordinator.on_message(self.connections[rank], message, self.now)
        self._deliver()

    def lose(self, rank: int, reason: str = "its connection was closed") -> None:
        """Ends a machine's connection."""
        self.coordinator.on_gone(self.connections[rank], reason, self.now)
        self._deliver()

    def wait(self, seconds: float, step_s: float = 0.5) -> None:
        """Moves the clock."""
        end = self.now + seconds
        while self.now < end:
            self.now = min(end, self.now + step_s)
            for rank, participant in list(self.coordinator.participants.by_rank.items()):
                if rank not in self.silent:
                    self.coordinator.on_message(participant.connection, NodeHeartbeat(phase="train"), self.now)
            self.coordinator.tick(self.now)
            self._deliver()

    def sleep(self, seconds: float) -> None:
        """Stops the master's process: nothing happens at all."""
        self.now += seconds

    def _deliver(self) -> None:
        queued = self.coordinator.participants
        for connection, message in queued.outbox:
            assert connection not in self.closed, f"{message} after the last word"
            self.heard[connection].append(message)
        self.closed.update(queued.closing)
        self.said += queued.said
        queued.outbox, queued.closing, queued.said = [], [], []

    # ---- what came of it

    def received(self, rank: int, kind: type[Message]) -> list:
        """Returns the messages of one kind that a machine received over its newest connection."""
        return [message for message in self.heard[self.connections[rank]] if isinstance(message, kind)]

    def last(self, rank: int, kind: type[Message]):
        """Returns the newest such message."""
        return self.received(rank, kind)[-1]

    @property
    def phase(self) -> str:
        return self.coordinator.phase

    @property
    def outcome(self):
        return self.coordinator.outcome

    def running(self, *ranks: int, **more) -> Stage:
        """Returns a simulation with these machines in the first round."""
        for rank in ranks:
            self.join(rank, **more)
        if self.phase != "running":
            self.wait(31)
        assert self.phase == "running"
        return self

    def round(self, rank: int) -> Round:
        return self.last(rank, Round)

"""Open lobbies on loopback, and members that knock."""

from __future__ import annotations

import contextlib
import random
import socket
import time

from tests.yolo_launch.rendezvous.simulation import DATA, job_facts, make_claim
from yolo_launch.rendezvous.admission import Terms
from yolo_launch.rendezvous.client import Door, Member, NoLobby, claim_rank, closing_on_failure, dial, greet
from yolo_launch.rendezvous.coordinator import Control
from yolo_launch.rendezvous.messages import Ready
from yolo_launch.rendezvous.server import Lobby
from yolo_launch.spec import Outcome


class OpenLobby:
    """A listening lobby and what the master's console shows."""

    def __init__(
        self, nodes: int, min_nodes: int | None = None, token: str | None = None, port: int = 0, **terms
    ) -> None:
        self.said: list[str] = []
        facts = job_facts(settle=lambda by_node: 64)
        self.control = Control(Terms(min_nodes or nodes, nodes, **terms), facts, time.monotonic())
        self.lobby = Lobby(self.control, "this-lobby", token, self.said.append)
        self.lobby.open("127.0.0.1", port)
        self.door = Door("127.0.0.1", self.lobby.port, token)

    def sit(self, rank: int, *, ready: bool = True, door: Door | None = None, **more) -> Member:
        """A member that has its seat."""
        member = knock(door or self.door, rank, **more)
        if ready:
            member.send(Ready(fingerprint=DATA))
        return member

    def heard(self, text: str, timeout_s: float = 5.0) -> bool:
        """Whether the master's console shows a text in time."""
        return soon(lambda: any(text in line for line in self.said), timeout_s)


def knock(door: Door, rank: int, timeout_s: float = 10.0, **more) -> Member:
    """Dial, greet, claim, and again where the connection is cut without a word. Raises as these do."""
    deadline = time.monotonic() + timeout_s
    while True:
        channel = dial(door, deadline - time.monotonic(), lambda problem: None)
        try:
            with closing_on_failure(channel):
                greet(channel, door)
                claim_rank(channel, door, make_claim(rank, **more))
            break
        except NoLobby:
            time.sleep(random.uniform(0.2, 1.0))
    member = Member(channel)
    member.start()
    return member


@contextlib.contextmanager
def opened(nodes: int, min_nodes: int | None = None, **more):
    """An open lobby that ends with the block."""
    lobby = OpenLobby(nodes, min_nodes, **more)
    try:
        yield lobby
    finally:
        lobby.lobby.end(Outcome("master_lost", 6))
        lobby.lobby.close(timeout_s=0.2)


def soon(is_so, timeout_s: float = 5.0) -> bool:
    """Whether something comes true in time."""
    deadline = time.monotonic() + timeout_s
    while time.monotonic() < deadline:
        if is_so():
            return True
        time.sleep(0.02)
    return is_so()


def wait_for(member: Member, kind: type, timeout_s: float = 5.0):
    """The next message of a kind; AssertionError where none comes."""
    deadline = time.monotonic() + timeout_s
    while time.monotonic() < deadline:
        message = member.next(0.1)
        if isinstance(message, kind):
            return message
    raise AssertionError(f"no {kind.__name__} within {timeout_s} s")


def stranger(door: Door) -> socket.socket:
    """A connection that says nothing yet."""
    return socket.create_connection((door.address, door.port), 5)

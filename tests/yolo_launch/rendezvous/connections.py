"""Opens servers on loopback, and connects members to them."""

from __future__ import annotations

import contextlib
import random
import socket
import time

from tests.yolo_launch.rendezvous.simulation import DATA, job_facts, make_join_request
from yolo_launch.rendezvous.admission import RendezvousSettings
from yolo_launch.rendezvous.client import RendezvousClient
from yolo_launch.rendezvous.coordinator import Coordinator
from yolo_launch.rendezvous.dialing import (
    NoRendezvous,
    RendezvousEndpoint,
    closing_on_failure,
    dial,
    greet,
    request_rank,
)
from yolo_launch.rendezvous.messages import Ready
from yolo_launch.rendezvous.server import RendezvousServer
from yolo_launch.spec import Outcome


class OpenRendezvous:
    """A listening rendezvous and what the master's console shows."""

    def __init__(
        self, nodes: int, min_nodes: int | None = None, token: str | None = None, port: int = 0, **settings
    ) -> None:
        self.said: list[str] = []
        facts = job_facts(settle=lambda by_node: 64)
        self.coordinator = Coordinator(
            RendezvousSettings(min_nodes or nodes, nodes, **settings), facts, time.monotonic()
        )
        self.rendezvous = RendezvousServer(self.coordinator, "this-rendezvous", token, self.said.append)
        self.rendezvous.open("127.0.0.1", port)
        self.endpoint = RendezvousEndpoint("127.0.0.1", self.rendezvous.port, token)

    def add_member(
        self, rank: int, *, ready: bool = True, endpoint: RendezvousEndpoint | None = None, **more
    ) -> RendezvousClient:
        """Returns a member whose rank was accepted."""
        member = connect_raw(endpoint or self.endpoint, rank, **more)
        if ready:
            member.send(Ready(fingerprint=DATA))
        return member

    def heard(self, text: str, timeout_s: float = 5.0) -> bool:
        """Returns whether the master's console shows a text in time."""
        return soon(lambda: any(text in line for line in self.said), timeout_s)


def connect_raw(endpoint: RendezvousEndpoint, rank: int, timeout_s: float = 10.0, **more) -> RendezvousClient:
    """Dials, greets and requests a rank, again if the connection is cut without an answer. Raises as these do."""
    deadline = time.monotonic() + timeout_s
    while True:
        channel = dial(endpoint, deadline - time.monotonic(), lambda problem: None)
        try:
            with closing_on_failure(channel):
                greet(channel, endpoint)
                request_rank(channel, endpoint, make_join_request(rank, **more))
            break
        except NoRendezvous:
            time.sleep(random.uniform(0.2, 1.0))
    member = RendezvousClient(channel)
    member.start()
    return member


@contextlib.contextmanager
def opened(nodes: int, min_nodes: int | None = None, **more):
    """Opens a rendezvous that ends with the block."""
    rendezvous = OpenRendezvous(nodes, min_nodes, **more)
    try:
        yield rendezvous
    finally:
        rendezvous.rendezvous.end(Outcome("master_lost", 6))
        rendezvous.rendezvous.close(timeout_s=0.2)


def soon(is_so, timeout_s: float = 5.0) -> bool:
    """Returns whether something becomes true in time."""
    deadline = time.monotonic() + timeout_s
    while time.monotonic() < deadline:
        if is_so():
            return True
        time.sleep(0.02)
    return is_so()


def wait_for(member: RendezvousClient, kind: type, timeout_s: float = 5.0):
    """Returns the next message of a kind; AssertionError if none comes."""
    deadline = time.monotonic() + timeout_s
    while time.monotonic() < deadline:
        message = member.next(0.1)
        if isinstance(message, kind):
            return message
    raise AssertionError(f"no {kind.__name__} within {timeout_s} s")


def unauthenticated(endpoint: RendezvousEndpoint) -> socket.socket:
    """Returns a connection that has sent nothing yet."""
    return socket.create_connection((endpoint.address, endpoint.port), 5)

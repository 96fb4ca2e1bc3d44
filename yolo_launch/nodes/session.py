"""Holds a node's rank at the rendezvous, over a connection that may break."""

from __future__ import annotations

import random
import time
from typing import Any

from yolo_launch.errors import ExitCode, LaunchError
from yolo_launch.nodes.events import NodeEvents
from yolo_launch.nodes.work import Introduction
from yolo_launch.rendezvous.client import RendezvousClient
from yolo_launch.rendezvous.dialing import (
    NoRendezvous,
    RendezvousEndpoint,
    closing_on_failure,
    dial,
    greet,
    request_rank,
)
from yolo_launch.rendezvous.framing import Channel
from yolo_launch.rendezvous.messages import JoinRequest, Leave, Ready, Seen

LOOK_S = 1.0
"""How long a master looks for another one at an address that is not its own."""
LOST_S = 9.0
"""How long a node looks for a master that it has lost, counted from the master's last message."""


class NodeSession:
    """One rank of a job's nodes, held by this launcher."""

    def __init__(self, join_request: JoinRequest, endpoint: RendezvousEndpoint, events: NodeEvents) -> None:
        self.endpoint = endpoint
        self._join_request = join_request
        self._events = events
        self._rendezvous_id = ""
        self._fingerprint = ""

    @property
    def client(self) -> RendezvousClient:
        """Returns the connection over which the rank was accepted."""
        assert self._events.client is not None, "no rank was accepted yet"
        return self._events.client

    def join(self, timeout_s: float) -> dict[str, Any]:
        """Finds the rendezvous and requests the rank; returns the job's description. Raises LaunchError."""
        began_at = time.monotonic()

        def left_s() -> float:
            return timeout_s - (time.monotonic() - began_at)

        def explain(problem: str) -> None:
            self._events.status_line.roster(problem, left_s(), counts_down=True)

        while True:
            try:
                return self._join_over(dial(self.endpoint, left_s(), explain))
            except NoRendezvous as error:
                problem = str(error)
            if left_s() <= 0:
                raise LaunchError(
                    f"The master did not answer within {timeout_s:g} s.",
                    seen=problem,
                    expected=f"a rendezvous at {self.endpoint.address}:{self.endpoint.port}",
                    next_command=f"yolo-launch doctor --master {self.endpoint.address} --port {self.endpoint.port} "
                    f"--rank {self._join_request.rank}, on the master too",
                    exit_code=ExitCode.NOT_JOINED,
                )
            # Something took the connection and cut it: the proxy of a container that is not up yet, or a rendezvous
            # to which more nodes connect at once than it listens to.
            explain(problem)
            time.sleep(random.uniform(0.2, 1.0))

    def _join_over(self, channel: Channel) -> dict[str, Any]:
        with closing_on_failure(channel):
            self._rendezvous_id = greet(channel, self.endpoint)
            description = request_rank(channel, self.endpoint, stamped(self._join_request))
        self._start_client(channel)
        return description

    def _start_client(self, channel: Channel) -> None:
        self._events.client = RendezvousClient(channel, self._events)
        self._events.client.start()

    def introduce(self, introduction: Introduction) -> None:
        """Reports to the master that this node can do the job."""
        self._fingerprint = introduction.fingerprint
        if introduction.findings:
            self.client.send(Seen(findings=introduction.findings))
        self.client.send(Ready(fingerprint=introduction.fingerprint))

    def leave(self, reason: str) -> None:
        """Gives the rank back."""
        if self._events.client is not None:
            self.client.send(Leave(reason=reason))
            self.client.close()

    def reconnect(self, reason: str) -> bool:
        """Requests the same rank over a new connection. False if the same rendezvous does not answer any more."""
        lost = self.client
        lost.close()
        self._events.status_line.over(f"{reason}; looking for it")
        deadline = lost.heard_at + LOST_S

        def left_s() -> float:
            # A process that is stopped or hangs accepts connections still, and sends nothing.
            return max(0.5, deadline - time.monotonic())

        try:
            channel = dial(self.endpoint, left_s(), lambda problem: None, retry_refused=False)
            with closing_on_failure(channel):
                if greet(channel, self.endpoint, left_s()) != self._rendezvous_id:
                    channel.close()
                    return False  # another job listens there now
                request_rank(channel, self.endpoint, stamped(self._join_request), left_s())
        except (NoRendezvous, LaunchError):
            return False
        self._start_client(channel)
        self.client.send(Ready(fingerprint=self._fingerprint))
        self._events.status_line.over("the master answers again")
        return True


def refuse_second_master(join_request: JoinRequest, endpoint: RendezvousEndpoint) -> None:
    """Requests rank 0 at the master's address. Raises LaunchError, on both sides, if a master answers there.

    A master behind an address that is not its own finds no other there, and goes on.
    """
    try:
        channel = dial(endpoint, LOOK_S, lambda problem: None, retry_refused=False)
        with closing_on_failure(channel):
            greet(channel, endpoint)
            request_rank(channel, endpoint, stamped(join_request))
        channel.close()
    except NoRendezvous:
        return


def stamped(join_request: JoinRequest) -> JoinRequest:
    """Returns the request with this node's clock at its sending."""
    return join_request.model_copy(update={"clock": time.time()})

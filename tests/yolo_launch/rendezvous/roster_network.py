"""Carries the frames of simulated machines under a simulated clock; links can be slow, cut, or say a thing twice."""

from __future__ import annotations

import heapq
import itertools
import json
import random
from collections.abc import Callable
from functools import lru_cache

from yolo_launch.rendezvous.framing import text_of
from yolo_launch.rendezvous.messages import JoinRequest, Message, parse

FOREVER_S = 1e9
TWICE = ("Ready", "Report", "StoreReady", "FailureNotice", "Stop", "Store", "NodeHeartbeat")
"""Messages that a slow link may deliver twice. Nobody sends a request for a rank or a round twice on one connection."""


class EventLoop:
    """Runs what was scheduled, in the order of a clock that jumps from one event to the next."""

    def __init__(self) -> None:
        self.now = 100.0
        self._events: list[tuple[float, int, Callable[[], None]]] = []
        self._numbered = itertools.count()

    def clock(self) -> float:
        """Returns the simulated seconds."""
        return self.now

    def later(self, delay_s: float, action: Callable[[], None]) -> None:
        """Schedules a call."""
        heapq.heappush(self._events, (self.now + delay_s, next(self._numbered), action))

    def run(self, is_over: Callable[[], bool], limit_s: float) -> bool:
        """Runs until something is so, which is looked at every tenth of a second; returns whether it came in time."""
        looked_at, end = self.now, self.now + limit_s
        while self._events and self.now < end:
            self.now, _, action = heapq.heappop(self._events)
            action()
            if self.now - looked_at > 0.1:
                looked_at = self.now
                if is_over():
                    return True
        return is_over()


class Link:
    """The cable of one machine: seconds for one way, and until when each way is cut."""

    def __init__(self, delay_s: float, twice: float) -> None:
        self.delay_s, self.twice = delay_s, twice
        self.cut_until = {"up": 0.0, "down": 0.0}
        self.disturbed_at = 0.0
        """When it was last slow to answer or cut."""


@lru_cache(maxsize=4096)
def message_in(text: bytes) -> Message:
    """Returns the message of a frame; the same text is parsed once, as one message is for all machines."""
    return parse(json.loads(text))


class Wire:
    """One connection. What waits at a cut arrives in order once it is mended, as under TCP."""

    def __init__(self, network: Network, number: int, link: Link, deliver: Callable[[Message | None], None]) -> None:
        self.network, self.number, self.link = network, number, link
        self._deliver = deliver
        self._free_at = {"up": 0.0, "down": 0.0}
        self.closed_here = self.closed_there = False

    def send(self, message: dict) -> None:
        """Sends a frame of the node to the master, as RendezvousClient does."""
        if not self.closed_here:
            self.carry("up", text_of(message))

    def receive(self, timeout_s: float) -> None:
        """Is for threads."""
        raise NotImplementedError

    def close(self) -> None:
        """Ends the connection at the node's end."""
        if not self.closed_here:
            self.closed_here = True
            self.carry("up", None)

    def carry(self, way: str, text: bytes | None) -> None:
        """Delivers a frame, or the end of the connection, when the link lets it."""
        loop, link = self.network.loop, self.link
        start = max(loop.now, link.cut_until[way])
        arrives = max(self._free_at[way], start + link.delay_s)
        self._free_at[way] = arrives
        if arrives >= FOREVER_S:
            return
        loop.later(arrives - loop.now, lambda: self._arrive(way, text))

    def _arrive(self, way: str, text: bytes | None) -> None:
        if self.link.cut_until[way] > self.network.loop.now:
            self._free_at[way] = 0.0 if self._free_at[way] <= self.network.loop.now else self._free_at[way]
            self.carry(way, text)  # cut while it was on its way
            return
        if way == "down" and not self.closed_here:
            self._deliver(None if text is None else message_in(text))
        elif way == "up":
            self.network.arrived(self, text)


class Network:
    """The transport of a Dispatcher whose nodes are simulated."""

    def __init__(self, loop: EventLoop, chance: random.Random) -> None:
        self.loop, self.chance = loop, chance
        self.dispatcher = self.request_rank = None
        self.is_open = True
        self._wires: dict[int, Wire] = {}
        self._numbered = itertools.count(1)

    def connect(self, link: Link, deliver: Callable[[Message | None], None]) -> Wire | None:
        """Returns a connection, or None if the master or the link does not answer."""
        if not self.is_open or max(link.cut_until.values()) > self.loop.now:
            return None
        return Wire(self, next(self._numbered), link, deliver)

    def send(self, connection: int, text: bytes) -> None:
        """Sends a frame of the coordinator."""
        wire = self._wires.get(connection)
        if wire is not None and not wire.closed_there:
            wire.carry("down", text)

    def close(self, connection: int) -> None:
        """Ends a connection at the master's end."""
        wire = self._wires.pop(connection, None)
        if wire is not None and not wire.closed_there:
            wire.closed_there = True
            wire.carry("down", None)

    def arrived(self, wire: Wire, text: bytes | None) -> None:
        """Passes on what a node has sent."""
        if not self.is_open or wire.closed_there:
            return
        if text is None:
            wire.closed_there = True
            self._wires.pop(wire.number, None)
            self.dispatcher.on_gone(wire.number, "its connection was closed")
            return
        message = message_in(text)
        if isinstance(message, JoinRequest) and wire.number not in self._wires:
            self._wires[wire.number] = wire
            self.request_rank(wire.number, message)
            return
        again = message.type in TWICE and self.chance.random() < wire.link.twice
        for _ in range(1 + again):
            self.dispatcher.on_message(wire.number, message)

    def shut(self, *, politely: bool) -> None:
        """Ends the master's process; without a word if its machine is gone too."""
        for connection in list(self._wires):
            if politely:
                self.close(connection)
        self.is_open = False

"""Passes events to the Coordinator and its messages to a transport; clock and transport are passed in."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from typing import Protocol

from yolo_launch.errors import ExitCode
from yolo_launch.rendezvous.coordinator import Coordinator
from yolo_launch.rendezvous.framing import text_of
from yolo_launch.rendezvous.messages import JoinRequest, Message
from yolo_launch.spec import Outcome

logger = logging.getLogger(__name__)

Clock = Callable[[], float]
"""Returns seconds since some instant, never fewer than before."""
BROKEN_S = 5.0
"""A rendezvous that fails at every tick for so long ends the job."""
_BROKEN = Outcome("worker_failed", ExitCode.WORKER_FAILED, detail="the rendezvous itself failed")


class Transport(Protocol):
    """Carries the coordinator's messages; connections are numbers that it has given out."""

    def send(self, connection: int, text: bytes) -> None:
        """Sends a packed message; does nothing if the connection is gone."""

    def close(self, connection: int) -> None:
        """Closes a connection once what was sent over it has gone out; does nothing if it is gone."""


class Dispatcher:
    """Calls one coordinator, one event at a time, and sends what it has queued."""

    def __init__(
        self,
        coordinator: Coordinator,
        transport: Transport,
        say: Callable[[str], None],
        clock: Clock = time.monotonic,
        wall: Clock = time.time,
    ) -> None:
        self.coordinator = coordinator
        self._transport, self._say, self._clock, self._wall = transport, say, clock, wall
        self._worked_at = clock()

    def on_join_request(self, connection: int, join_request: JoinRequest) -> None:
        """Passes on a request for a rank, over an authenticated connection."""
        self._after(lambda now: self.coordinator.on_join_request(connection, join_request, now, self._wall()))

    def on_message(self, connection: int, message: Message) -> None:
        """Passes on a message."""
        self._after(lambda now: self.coordinator.on_message(connection, message, now))

    def on_gone(self, connection: int, reason: str) -> None:
        """Passes on the end of a connection."""
        self._after(lambda now: self.coordinator.on_gone(connection, reason, now))

    def tick(self) -> None:
        """Lets time pass; ends the job if the coordinator has failed at every tick for BROKEN_S."""
        if self._after(self.coordinator.tick):
            self._worked_at = self._clock()
        elif self._clock() - self._worked_at > BROKEN_S:
            self.end(_BROKEN)

    def end(self, outcome: Outcome) -> None:
        """Ends the job for every node."""
        self._after(lambda now: self.coordinator.end(outcome, now))

    def send_all(self, message: Message) -> None:
        """Sends a message to every node."""
        self._after(lambda now: self.coordinator.participants.send_all(message))

    def _after(self, action: Callable[[float], None]) -> bool:
        """Calls the coordinator, then sends its messages; returns False if the coordinator failed."""
        could = True
        try:
            action(self._clock())
        except Exception:  # one odd message must not end the rendezvous of a running job
            logger.exception("the rendezvous could not handle an event")
            could = False
        self._flush()
        return could

    def _flush(self) -> None:
        queued = self.coordinator.participants
        outbox, queued.outbox = queued.outbox, []
        closing, queued.closing = queued.closing, []
        said, queued.said = queued.said, []
        texts: dict[int, bytes] = {}
        for connection, message in outbox:
            if id(message) not in texts:  # most are for every machine
                texts[id(message)] = text_of(message.pack())
            self._transport.send(connection, texts[id(message)])
        for connection in closing:
            self._transport.close(connection)
        for line in said:
            self._say(line)

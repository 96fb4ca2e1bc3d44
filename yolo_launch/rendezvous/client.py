"""Keeps a node connected to the rendezvous: sends heartbeats, and queues the master's messages."""

from __future__ import annotations

import contextlib
import logging
import queue
import threading
import time
from typing import Any, Protocol

from yolo_launch.rendezvous.dispatch import Clock
from yolo_launch.rendezvous.framing import FramingError
from yolo_launch.rendezvous.messages import (
    CoordinatorHeartbeat,
    Message,
    NodeHeartbeat,
    Seen,
    Stop,
    parse,
)

logger = logging.getLogger(__name__)

HEARTBEAT_S = 1.0
LOOK_S = 0.5
SILENT_S = 7.0
"""A master that sends nothing for so long is lost."""
SUSPENDED_S = 2.0
"""A gap of so much between two looks was this process's own: the master is not silent."""


class MasterGone(Message):
    """Put into the inbox by the client itself: the connection to the master is lost."""

    reason: str


class ConnectionEvents:
    """Holds what a connection calls on its node while the main thread may be in C++; here the calls do nothing."""

    def heartbeat(self) -> NodeHeartbeat:
        """Returns the position of this node's first rank; called from the sending thread."""
        return NodeHeartbeat()

    def on_stop(self, message: Stop) -> None:
        """Ends a round; called from the receiving thread."""

    def on_master_lost(self) -> None:
        """Reacts to a lost connection; called from the receiving thread."""

    def on_findings(self, message: Seen) -> None:
        """Takes what all nodes have found in a cluster check; called from the receiving thread."""


class ClientChannel(Protocol):
    """Carries frames between a node and the master."""

    def send(self, message: dict[str, Any]) -> None:
        """Sends a frame. Raises OSError if the connection is gone."""

    def receive(self, timeout_s: float) -> dict[str, Any] | None:
        """Returns the next frame, or None. Raises FramingError, and EOFError at the end; only threads call it."""

    def close(self) -> None:
        """Ends the connection."""


class RendezvousClient:
    """A connection whose rank was accepted, driven by threads of its own or by an event loop.

    An event loop does not ``start`` it, but calls ``take``, ``look``, ``beat`` and ``end_of_connection`` itself.
    """

    def __init__(
        self, channel: ClientChannel, events: ConnectionEvents | None = None, clock: Clock = time.monotonic
    ) -> None:
        self.channel = channel
        self.events = events or ConnectionEvents()
        self.inbox: queue.Queue[Message] = queue.Queue()
        self.gone = ""
        self.stop: Stop | None = None
        """The last one received: a round may end before the main thread has begun it."""
        self.heard_at = self._looked_at = clock()
        self._clock = clock
        self._idle = (self.heard_at, 0.0)
        self._closed = threading.Event()

    def start(self) -> None:
        """Starts a thread that receives and one that sends heartbeats."""
        for target, name in ((self._receive, "rendezvous_receive"), (self._send_heartbeats, "rendezvous_heartbeat")):
            threading.Thread(target=target, name=name, daemon=True).start()

    def send(self, message: Message) -> None:
        """Sends a message; what receives notices if the connection is gone."""
        with contextlib.suppress(OSError):
            self.channel.send(message.pack())

    def next(self, timeout_s: float) -> Message | None:
        """Returns the master's next message other than heartbeats, stops and findings; None after ``timeout_s``."""
        with contextlib.suppress(queue.Empty):
            return self.inbox.get(timeout=timeout_s)
        return None

    def idle_s(self) -> float:
        """Returns the seconds for which no rank of the job has moved, as far as the master knows."""
        heard_at, idle_s = self._idle
        return idle_s + self._clock() - heard_at

    def close(self) -> None:
        """Closes the connection."""
        self._closed.set()
        self.channel.close()

    def beat(self) -> None:
        """Sends a heartbeat; it is called every HEARTBEAT_S."""
        try:
            self.send(self.events.heartbeat())
        except Exception:  # a node that does not know where its rank is lives all the same
            logger.exception("no heartbeat could be made")
            self.send(NodeHeartbeat())

    def take(self, message: Message) -> None:
        """Handles one message of the master."""
        now = self._note_look()
        self.heard_at = now
        if isinstance(message, Stop):
            self.stop = message
            self.events.on_stop(message)
        elif isinstance(message, Seen):
            self.events.on_findings(message)
        elif isinstance(message, CoordinatorHeartbeat):
            self._idle = (now, message.idle_s)
        else:
            self.inbox.put(message)

    def look(self) -> None:
        """Gives the master up if it has sent nothing for SILENT_S; it is called every LOOK_S without a message."""
        if self._note_look() - self.heard_at > SILENT_S:
            self.lose(f"no word from the master for {SILENT_S:g} s")

    def end_of_connection(self, reason: str) -> None:
        """Handles a connection that has ended."""
        # The master lived until it ended the connection, however long this process was suspended before it saw that.
        self.heard_at = self._clock()
        self.lose(reason)

    def lose(self, reason: str) -> None:
        """Gives the master up, unless this node closed the connection itself."""
        if self._closed.is_set():
            return
        self.gone = reason
        gone = MasterGone(reason=reason)
        try:
            self.events.on_master_lost()
        finally:
            self.inbox.put(gone)

    def _note_look(self) -> float:
        now = self._clock()
        if now - self._looked_at > SUSPENDED_S:
            self.heard_at += now - self._looked_at
        self._looked_at = now
        return now

    def _send_heartbeats(self) -> None:
        while not self._closed.wait(HEARTBEAT_S):
            self.beat()

    def _receive(self) -> None:
        try:
            while not self.gone and not self._closed.is_set():
                self._receive_one()
        except Exception as error:  # nobody else would notice that the master is gone
            logger.exception("the master's message could not be followed")
            self.lose(f"the master's message could not be followed: {error}")

    def _receive_one(self) -> None:
        try:
            frame = self.channel.receive(LOOK_S)
            message = parse(frame) if frame is not None else None
        except EOFError:
            self.end_of_connection("the master closed the connection")
        except (OSError, FramingError) as error:
            self.end_of_connection(f"the connection to the master broke: {error}")
        else:
            self.look() if message is None else self.take(message)

"""Keeps a node connected to the rendezvous: sends heartbeats, and queues the master's messages."""

from __future__ import annotations

import contextlib
import logging
import queue
import threading
import time
from dataclasses import dataclass, field

from yolo_launch.rendezvous.framing import (
    Channel,
    FramingError,
)
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


@dataclass
class RendezvousClient:
    """A connection whose rank was accepted. One thread receives, one sends heartbeats."""

    channel: Channel
    events: ConnectionEvents = field(default_factory=ConnectionEvents)
    inbox: queue.Queue[Message] = field(default_factory=queue.Queue)
    gone: str = ""
    stop: Stop | None = None
    """The last one received: a round may end before the main thread has begun it."""
    heard_at: float = field(default_factory=time.monotonic)
    _idle: tuple[float, float] = field(default_factory=lambda: (time.monotonic(), 0.0))
    _closed: threading.Event = field(default_factory=threading.Event)

    def start(self) -> None:
        """Starts to receive and to send heartbeats."""
        for target, name in ((self._receive, "rendezvous_receive"), (self._send_heartbeats, "rendezvous_heartbeat")):
            threading.Thread(target=target, name=name, daemon=True).start()

    def send(self, message: Message) -> None:
        """Sends a message; the receiving thread notices if the connection is gone."""
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
        return idle_s + time.monotonic() - heard_at

    def close(self) -> None:
        """Closes the connection."""
        self._closed.set()
        self.channel.close()

    def _send_heartbeats(self) -> None:
        while not self._closed.wait(HEARTBEAT_S):
            try:
                self.send(self.events.heartbeat())
            except Exception:  # a node that does not know where its rank is lives all the same
                logger.exception("no heartbeat could be made")
                self.send(NodeHeartbeat())

    def _receive(self) -> None:
        try:
            self._follow()
        except Exception as error:  # nobody else would notice that the master is gone
            logger.exception("the master's message could not be followed")
            self._lose(f"the master's message could not be followed: {error}")

    def _follow(self) -> None:
        looked_at = self.heard_at = time.monotonic()
        while not self._closed.is_set():
            try:
                frame = self.channel.receive(0.5)
                message = parse(frame) if frame is not None else None
            except EOFError:
                return self._break("the master closed the connection")
            except (OSError, FramingError) as error:
                return self._break(f"the connection to the master broke: {error}")
            now = time.monotonic()
            if now - looked_at > SUSPENDED_S:
                self.heard_at += now - looked_at
            looked_at = now
            if message is not None:
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
            elif now - self.heard_at > SILENT_S:
                return self._lose(f"no word from the master for {SILENT_S:g} s")
        return None

    def _break(self, reason: str) -> None:
        # The master lived until it ended the connection, however long this process was suspended before it saw that.
        self.heard_at = time.monotonic()
        self._lose(reason)

    def _lose(self, reason: str) -> None:
        if self._closed.is_set():
            return
        self.gone = reason
        gone = MasterGone(reason=reason)
        try:
            self.events.on_master_lost()
        finally:
            self.inbox.put(gone)

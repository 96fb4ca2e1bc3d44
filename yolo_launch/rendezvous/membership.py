"""Keeps the nodes of a job, and the messages that wait to be sent to them."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

from yolo_launch.diagnosis.outcome import NodeEnd, NodeReport
from yolo_launch.rendezvous.admission import RendezvousSettings
from yolo_launch.rendezvous.messages import JoinRequest, LogLine, Message, NodeHeartbeat, Seen, clipped

NOTICE_S = 2.0
"""A node that is cut off gives its master up a second before the master gives it up. It may have received a heartbeat
after its own last one arrived, looks every half second, and then has to end its workers."""


@dataclass
class Participant:
    """One node whose rank was accepted."""

    join_request: JoinRequest
    connection: int
    heard_at: float
    """Monotonic seconds of its last message."""
    clock_ahead_s: float = 0.0
    """Its clock less the master's."""
    ready: bool = False
    in_round: bool = False
    report: NodeReport | None = None
    beat: NodeHeartbeat | None = None
    seen: Seen | None = None

    @property
    def label(self) -> str:
        """Returns the node as it is shown."""
        return self.join_request.label

    @property
    def end(self) -> NodeEnd | None:
        """Returns how the round ended on this node; None before its report."""
        if self.report is None:
            return None
        return NodeEnd(self.report, self.label, self.join_request.host, self.clock_ahead_s)


@dataclass
class Participants:
    """The nodes by rank, and the messages that wait to be sent."""

    by_rank: dict[int, Participant] = field(default_factory=dict)
    departed: dict[int, NodeEnd] = field(default_factory=dict)
    """Nodes that are gone and had reported before how the round ended for them."""
    outbox: list[tuple[int, Message]] = field(default_factory=list)
    """(connection, message)"""
    closing: list[int] = field(default_factory=list)
    """Connections to close once their messages are sent."""
    said: list[str] = field(default_factory=list)
    """Lines for the master's console."""
    may_start_at: float = 0.0
    """Monotonic seconds before which a node that was given up may still run the last round."""
    _by_connection: dict[int, Participant] = field(default_factory=dict)

    def add(self, participant: Participant) -> None:
        """Gives a node the rank that it requested."""
        self.by_rank[participant.join_request.rank] = participant
        self._by_connection[participant.connection] = participant

    def remove(self, rank: int) -> Participant | None:
        """Takes a rank back from its node, and returns the node; None if no node has it."""
        participant = self.by_rank.pop(rank, None)
        if participant is not None:
            self._by_connection.pop(participant.connection, None)
        return participant

    def participant_of(self, connection: int) -> Participant | None:
        """Returns the node that a connection belongs to."""
        return self._by_connection.get(connection)

    def in_round(self) -> list[int]:
        """Returns the ranks of the current round's nodes, in order."""
        return sorted(rank for rank, participant in self.by_rank.items() if participant.in_round)

    def ends(self) -> dict[int, NodeEnd]:
        """Returns how the round ended on each node that has reported."""
        present = {rank: one.end for rank, one in self.by_rank.items() if one.in_round and one.end is not None}
        return {**self.departed, **present}

    def send(self, ranks: Iterable[int], message: Message) -> None:
        """Queues a message for some nodes."""
        self.outbox += [(self.by_rank[rank].connection, message) for rank in ranks if rank in self.by_rank]

    def send_all(self, message: Message) -> None:
        """Queues a message for every node."""
        self.send(list(self.by_rank), message)

    def say(self, text: str) -> None:
        """Queues a line for every console."""
        text = clipped(text)
        self.said.append(text)
        self.send([rank for rank in self.by_rank if rank != 0], LogLine(text=text))

    def dismiss(self, connection: int, message: Message) -> None:
        """Queues a last message, after which the connection is closed."""
        self.outbox.append((connection, message))
        self.closing.append(connection)

    def give_up(self, silent: Participant, limit_s: float) -> None:
        """Queues the end of a silent node's connection, and leaves the node the time to notice before others start."""
        self.closing.append(silent.connection)
        if silent.in_round:
            self.may_start_at = max(self.may_start_at, silent.heard_at + limit_s + NOTICE_S)

    def silent(self, limit_s: float, now: float) -> list[Participant]:
        """Returns the nodes that have sent nothing for longer than ``limit_s``."""
        return [one for one in self.by_rank.values() if now - one.heard_at > limit_s]

    def discount_silence(self, seconds: float, now: float) -> None:
        """Takes the seconds in which this process was suspended from every node's silence."""
        for participant in self.by_rank.values():
            participant.heard_at = min(now, participant.heard_at + seconds)


@dataclass
class LastCall:
    """Measures how long a job that could start with fewer nodes has waited for the others."""

    enough_since: float | None = None

    def who_may_start(
        self,
        participants: dict[int, Participant],
        settings: RendezvousSettings,
        now: float,
        *,
        is_late: bool,
        is_first: bool,
    ) -> list[int]:
        """Returns the ranks to start with now, or none yet. After a loss nobody waits for more than the fewest."""
        ready = sorted(rank for rank, participant in participants.items() if participant.ready)
        enough = 0 in ready and len(ready) >= settings.min_nodes
        if not enough or len(ready) < len(participants):
            self.enough_since = None
        elif self.enough_since is None:
            self.enough_since = now
        grace_s = settings.join_grace_s if is_first else 0.0
        waited = self.enough_since is not None and now - self.enough_since >= grace_s
        return ready if len(ready) == settings.max_nodes or waited or (enough and is_late) else []

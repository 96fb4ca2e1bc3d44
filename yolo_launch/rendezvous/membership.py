"""Who sits where: the machines of a job, and what is to be said to them."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

from yolo_launch.diagnosis.outcome import NodeEnd, NodeReport
from yolo_launch.rendezvous.admission import RendezvousSettings
from yolo_launch.rendezvous.messages import JoinRequest, LogLine, Message, NodeHeartbeat, Seen, clipped

MOST_LABELS = 4


@dataclass
class Participant:
    """One machine that was taken."""

    join_request: JoinRequest
    connection: int
    heard_at: float
    """Monotonic seconds of its last word."""
    clock_ahead_s: float = 0.0
    """Its clock less the master's."""
    ready: bool = False
    in_round: bool = False
    report: NodeReport | None = None
    beat: NodeHeartbeat | None = None
    seen: Seen | None = None

    @property
    def label(self) -> str:
        """The machine in words."""
        return self.join_request.label

    @property
    def end(self) -> NodeEnd | None:
        """How the round ended on this node; None before its report."""
        if self.report is None:
            return None
        return NodeEnd(self.report, self.label, self.join_request.host, self.clock_ahead_s)


@dataclass
class Participants:
    """The seats by rank, and the words that wait to be sent."""

    participants: dict[int, Participant] = field(default_factory=dict)
    departed: dict[int, NodeEnd] = field(default_factory=dict)
    """Machines that are gone and had said before how the round ended for them."""
    outbox: list[tuple[int, Message]] = field(default_factory=list)
    """(connection, message)"""
    closing: list[int] = field(default_factory=list)
    """Connections to close once their messages are sent."""
    said: list[str] = field(default_factory=list)
    """Lines for the master's console."""

    def participant_of(self, connection: int) -> Participant | None:
        """Who speaks over a connection."""
        return next(
            (participant for participant in self.participants.values() if participant.connection == connection), None
        )

    def in_round(self) -> list[int]:
        """The machines of the current round, by rank."""
        return sorted(rank for rank, participant in self.participants.items() if participant.in_round)

    def ends(self) -> dict[int, NodeEnd]:
        """How the round ended on each node that has reported."""
        present = {rank: one.end for rank, one in self.participants.items() if one.in_round and one.end is not None}
        return {**self.departed, **present}

    def send(self, ranks: Iterable[int], message: Message) -> None:
        """A message for some machines."""
        self.outbox += [(self.participants[rank].connection, message) for rank in ranks if rank in self.participants]

    def send_all(self, message: Message) -> None:
        """A message for every machine."""
        self.send(list(self.participants), message)

    def say(self, text: str) -> None:
        """A line for every console."""
        text = clipped(text)
        self.said.append(text)
        self.send([rank for rank in self.participants if rank != 0], LogLine(text=text))

    def dismiss(self, connection: int, message: Message) -> None:
        """Send a last word, then close."""
        self.outbox.append((connection, message))
        self.closing.append(connection)

    def forgive(self, seconds: float, now: float) -> None:
        """This process slept: nobody was silent for so long."""
        for participant in self.participants.values():
            participant.heard_at = min(now, participant.heard_at + seconds)


@dataclass
class LastCall:
    """How long a job that could start with fewer machines waits for the others."""

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
        """The ranks to start with now, or none yet. After a loss nobody waits for more than the fewest."""
        ready = sorted(rank for rank, participant in participants.items() if participant.ready)
        enough = 0 in ready and len(ready) >= settings.min_nodes
        if not enough or len(ready) < len(participants):
            self.enough_since = None
        elif self.enough_since is None:
            self.enough_since = now
        grace_s = settings.join_grace_s if is_first else 0.0
        waited = self.enough_since is not None and now - self.enough_since >= grace_s
        return ready if len(ready) == settings.max_nodes or waited or (enough and is_late) else []


def roster_text(participants: dict[int, Participant], settings: RendezvousSettings) -> str:
    """'1/2 machines: 0 gpu-a (192.168.1.1, 2x A100) - waiting for 1'."""
    present = sorted(participants)
    labels = [participants[rank].label + ", checking" * (not participants[rank].ready) for rank in present]
    shown = ", ".join(labels[:MOST_LABELS])
    if len(labels) > MOST_LABELS:
        shown += f" and {len(labels) - MOST_LABELS} others"
    missing = [rank for rank in range(settings.max_nodes) if rank not in participants]
    waiting = f" - waiting for {_ranks(missing)}" * bool(missing)
    return f"{len(present)}/{settings.nodes} machines: {shown or 'none yet'}{waiting}"


def missing_text(participants: dict[int, Participant], settings: RendezvousSettings, *, first_round: bool) -> str:
    """Why no round starts any more: 'machine 1 did not join within 600 s'."""
    absent = [rank for rank in range(settings.max_nodes) if rank not in participants]
    again, limit_s = ("join", settings.join_timeout_s) if first_round else ("come back", settings.rejoin_timeout_s)
    facts = [f"machine{'s' * (len(absent) > 1)} {_ranks(absent)} did not {again}"] * bool(absent)
    busy = [participants[rank].label for rank in sorted(participants) if not participants[rank].ready]
    if busy:
        more = f" and {len(busy) - MOST_LABELS} others" * (len(busy) > MOST_LABELS)
        facts.append(f"machine {', '.join(busy[:MOST_LABELS])}{more} did not finish checking")
    return f"{' and '.join(facts)} within {limit_s:g} s"


def _ranks(ranks: list[int]) -> str:
    more = f" and {len(ranks) - MOST_LABELS} others" * (len(ranks) > MOST_LABELS)
    return ", ".join(str(rank) for rank in ranks[:MOST_LABELS]) + more

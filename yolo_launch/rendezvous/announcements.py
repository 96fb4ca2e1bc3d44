"""Sends the roster and the coordinator's heartbeat to every node, each at a limited rate."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from yolo_launch.rendezvous.admission import RendezvousSettings
from yolo_launch.rendezvous.membership import Participant, Participants
from yolo_launch.rendezvous.messages import CoordinatorHeartbeat, Roster

HEARTBEAT_S = 1.0
ROSTER_S = 0.2
"""Least time between two rosters: each is a message for every node."""
MOST_LABELS = 4


class Announcements:
    """Queues the roster after a change, and the coordinator's heartbeat."""

    def __init__(self, participants: Participants, settings: RendezvousSettings, now: float) -> None:
        self._participants, self._settings = participants, settings
        self._moved_at = self._last_heartbeat = now
        self._roster_changed, self._last_roster = False, now - ROSTER_S

    def note_progress(self, now: float) -> None:
        """Records that a rank of some node has moved."""
        self._moved_at = now

    def note_change(self) -> None:
        """Records that the roster has changed."""
        self._roster_changed = True

    def send_heartbeat(self, now: float) -> None:
        """Queues a heartbeat for every node if it is time for one."""
        if now - self._last_heartbeat >= HEARTBEAT_S:
            self._last_heartbeat = now
            self._participants.send_all(CoordinatorHeartbeat(idle_s=now - self._moved_at))

    def send_changed_roster(self, now: float, deadline: float) -> None:
        """Queues a roster that has changed, if it is time for one."""
        if self._roster_changed and now - self._last_roster >= ROSTER_S:
            self.send_roster(now, deadline)

    def send_roster(self, now: float, deadline: float) -> None:
        """Queues the roster for every node, with the time that is left for the others."""
        self._roster_changed, self._last_roster = False, now
        text = roster_text(self._participants.by_rank, self._settings)
        self._participants.send_all(Roster(text=text, left_s=max(0.0, deadline - now)))


def roster_text(participants: Mapping[int, Participant], settings: RendezvousSettings) -> str:
    """Returns a line such as '1/2 machines: 0 gpu-a (192.168.1.1, 2x A100) - waiting for 1'."""
    labels = [one.label if one.ready else f"{one.label}, checking" for _, one in sorted(participants.items())]
    missing = [rank for rank in range(settings.max_nodes) if rank not in participants]
    waiting = f" - waiting for {_first_few(map(str, missing))}" if missing else ""
    return f"{len(labels)}/{settings.nodes} machines: {_first_few(labels) or 'none yet'}{waiting}"


def missing_text(participants: Mapping[int, Participant], settings: RendezvousSettings, *, first_round: bool) -> str:
    """Returns why no round starts any more: 'machine 1 did not join within 600 s'."""
    absent = [rank for rank in range(settings.max_nodes) if rank not in participants]
    again, limit_s = ("join", settings.join_timeout_s) if first_round else ("come back", settings.rejoin_timeout_s)
    facts = []
    if absent:
        noun = "machine" if len(absent) == 1 else "machines"
        facts.append(f"{noun} {_first_few(map(str, absent))} did not {again}")
    checking = [one.label for _, one in sorted(participants.items()) if not one.ready]
    if checking:
        facts.append(f"machine {_first_few(checking)} did not finish checking")
    return f"{' and '.join(facts)} within {limit_s:g} s"


def _first_few(texts: Iterable[str]) -> str:
    """Joins at most MOST_LABELS texts and counts the others: '1, 2, 3, 4 and 5 others'."""
    shown = list(texts)
    others = len(shown) - MOST_LABELS
    return ", ".join(shown[:MOST_LABELS]) + (f" and {others} others" if others > 0 else "")

"""Checks that a rendezvous of 64 machines forms in seconds."""

from __future__ import annotations

import threading
import time

from tests.yolo_launch.rendezvous.connections import opened, soon
from tests.yolo_launch.rendezvous.many_nodes import run_members
from yolo_launch.spec import Outcome

MACHINES = 64


def test_a_roster_of_64_machines_forms_in_seconds():
    found: dict[int, tuple[float, float]] = {}
    with opened(MACHINES) as it:
        began_at = time.monotonic()
        members = threading.Thread(target=run_members, args=(it.endpoint, range(MACHINES), found))
        members.start()
        assert soon(lambda: len(found) == MACHINES, 20)
        assert max(received for _, received in found.values()) - began_at < 10
        assert sorted(it.coordinator.participants.in_round()) == list(range(MACHINES))
        it.rendezvous.end(Outcome("done", 0))
        assert soon(lambda: it.coordinator.is_over)
        members.join(5)
        assert not members.is_alive()

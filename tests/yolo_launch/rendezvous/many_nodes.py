"""Runs many members in one process, and measures how long they take to join and to receive a round."""

from __future__ import annotations

import json
import sys
import threading
import time

from tests.yolo_launch.rendezvous.connections import connect_raw
from tests.yolo_launch.rendezvous.simulation import DATA
from yolo_launch.rendezvous.dialing import RendezvousEndpoint
from yolo_launch.rendezvous.messages import End, Ready, Round


def take_part(endpoint: RendezvousEndpoint, rank: int, found: dict[int, tuple[float, float]]) -> None:
    """Joins, becomes ready, receives the round, leaves at the end; ``found`` gets the instants of joining and round."""
    member = connect_raw(endpoint, rank, timeout_s=60)
    joined_at = time.monotonic()
    member.send(Ready(fingerprint=DATA))
    while True:
        message = member.next(60)
        if isinstance(message, Round):
            found[rank] = (joined_at, time.monotonic())
        if message is None or isinstance(message, End):
            break
    member.close()


def main(port: int, first: int, count: int) -> None:
    """Runs members ``first`` to ``first + count - 1``, a thread each; prints one JSON line when all have the round."""
    found: dict[int, tuple[float, float]] = {}
    endpoint = RendezvousEndpoint("127.0.0.1", port)
    threads = [threading.Thread(target=take_part, args=(endpoint, first + n, found), daemon=True) for n in range(count)]
    sys.stdin.readline()  # all processes begin together
    for thread in threads:
        thread.start()
    while len(found) < count and any(thread.is_alive() for thread in threads):
        time.sleep(0.02)
    print(json.dumps(found), flush=True)
    for thread in threads:
        thread.join(10)


if __name__ == "__main__":
    main(*(int(text) for text in sys.argv[1:]))

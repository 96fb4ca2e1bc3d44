"""Many members in one process, and how long they take to be seated and to be told to start."""

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
    """Join, be ready, hear the round, leave at the end; the instants of the seat and of the round."""
    member = connect_raw(endpoint, rank, timeout_s=60)
    seated_at = time.monotonic()
    member.send(Ready(fingerprint=DATA))
    while True:
        message = member.next(60)
        if isinstance(message, Round):
            found[rank] = (seated_at, time.monotonic())
        if message is None or isinstance(message, End):
            break
    member.close()


def main(port: int, first: int, count: int) -> None:
    """Members ``first`` to ``first + count - 1``, a thread each; one JSON line when all are told to start."""
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

"""How long N machines take to be seated in the rendezvous and to be told to start: real sockets on loopback.

    python benchmarks/rendezvous.py [2 8 32 64]

All members run in one event loop of another process on this machine, so they share its cores with the rendezvous.
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path

PROJECT_DIR = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(PROJECT_DIR))

from tests.yolo_launch.rendezvous.connections import OpenRendezvous, soon  # noqa: E402
from tests.yolo_launch.rendezvous.many_nodes import allow_open_files  # noqa: E402
from yolo_launch.spec import Outcome  # noqa: E402


def measure(members: int) -> dict[str, float]:
    """Seconds from the word to begin until the last machine has its seat, and until the last hears the round."""
    allow_open_files(members + 100)
    rendezvous = OpenRendezvous(members)
    module = "tests.yolo_launch.rendezvous.many_nodes"
    command = [sys.executable, "-m", module, str(rendezvous.endpoint.port), "0", str(members)]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    crowd = subprocess.Popen(command, cwd=PROJECT_DIR, text=True, **pipes)
    time.sleep(3)  # they import
    used = time.process_time()
    began_at = time.monotonic()
    crowd.stdin.write("begin\n")
    crowd.stdin.flush()
    times = list(json.loads(crowd.stdout.readline()).values())
    assert len(times) == members, f"{len(times)} of {members} received the round"
    forming_cpu_s = time.process_time() - used
    used = time.process_time()
    time.sleep(5)
    running_cpu = (time.process_time() - used) / 5
    ended_at = time.monotonic()
    rendezvous.rendezvous.end(Outcome("done", 0))
    soon(lambda: rendezvous.coordinator.is_over, 20)
    left_s = time.monotonic() - ended_at
    rendezvous.rendezvous.close(1)
    crowd.wait(40)
    return {
        "seated_s": max(seated for seated, _ in times) - began_at,
        "round_s": max(told for _, told in times) - began_at,
        "lobby_cpu_s": forming_cpu_s,
        "running_cpu": running_cpu,
        "left_s": left_s,
    }


def main() -> None:
    """One row for each number of machines."""
    print("| machines | all seated, s | all told to start, s | CPU until then, s | CPU while training | left, s |")
    print("|---|---|---|---|---|---|")
    for members in [int(text) for text in sys.argv[1:]] or [2, 8, 32, 64]:
        found = measure(members)
        row = f"{found['seated_s']:.2f} | {found['round_s']:.2f} | {found['lobby_cpu_s']:.2f}"
        print(f"| {members} | {row} | {found['running_cpu']:.1%} | {found['left_s']:.2f} |", flush=True)


if __name__ == "__main__":
    main()

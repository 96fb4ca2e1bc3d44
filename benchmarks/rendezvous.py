"""How long N machines take to be seated in the rendezvous and to be told to start: real sockets, members as threads.

    python benchmarks/rendezvous.py [2 8 32 64]

The members run in up to four processes on this machine, so they share its cores with the rendezvous.
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
from yolo_launch.spec import Outcome  # noqa: E402

PROCESSES = 4


def measure(members: int) -> dict[str, float]:
    """Seconds from the word to begin until the last machine has its seat, and until the last hears the round."""
    rendezvous = OpenRendezvous(members)
    counts = [len(range(number, members, PROCESSES)) for number in range(PROCESSES)]
    crowds, first = [], 0
    for count in counts:
        if count:
            command = [
                sys.executable,
                "-m",
                "tests.yolo_launch.rendezvous.many_nodes",
                str(rendezvous.endpoint.port),
                str(first),
                str(count),
            ]
            pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
            crowds.append(subprocess.Popen(command, cwd=PROJECT_DIR, text=True, **pipes))
        first += count
    time.sleep(3)  # they import
    used = time.process_time()
    began_at = time.monotonic()
    for crowd in crowds:
        crowd.stdin.write("begin\n")
        crowd.stdin.flush()
    times = [each for crowd in crowds for each in json.loads(crowd.stdout.readline()).values()]
    forming_cpu_s = time.process_time() - used
    used = time.process_time()
    time.sleep(5)
    running_cpu = (time.process_time() - used) / 5
    ended_at = time.monotonic()
    rendezvous.rendezvous.end(Outcome("done", 0))
    soon(lambda: rendezvous.coordinator.is_over, 20)
    left_s = time.monotonic() - ended_at
    rendezvous.rendezvous.close(1)
    for crowd in crowds:
        crowd.wait(20)
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

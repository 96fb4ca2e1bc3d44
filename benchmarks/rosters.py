"""Plays random histories of many machines under a simulated clock, and shows how long the worst took to be one world.

    python benchmarks/rosters.py [--machines 8 256 1000] [--histories 1000 100 10] [--first-seed 0]

Losses, rejoins, cut and slow links, doubled messages and second machines of one rank; the seed decides all of it. A
history in which two worlds run, two machines have one rank, or that does not end is shown with its seed, and the exit
code is 1.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections import Counter
from pathlib import Path

PROJECT_DIR = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(PROJECT_DIR))

from tests.yolo_launch.rendezvous.roster_history import History, WorldError  # noqa: E402


def play(nodes: int, seeds: range) -> int:
    """Prints one row; returns how many histories were not as they must be."""
    outcomes, faults, rounds, wrong = Counter(), 0, 0, 0
    converged, ended = (0.0, 0), (0.0, 0)
    used = time.process_time()
    for seed in seeds:
        try:
            found = History(seed, nodes).play()
        except WorldError as error:
            wrong += 1
            print(f"seed {seed}, {nodes} machines: {error}", file=sys.stderr)
            continue
        outcomes[found.outcome] += 1
        faults, rounds = faults + found.faults, rounds + found.rounds
        converged = max(converged, (found.converged_s, seed))
        ended = max(ended, (found.ended_s, seed))
    cpu_s = time.process_time() - used
    ends = ", ".join(f"{name} {number}" for name, number in outcomes.most_common())
    row = f"{faults} | {rounds} | {wrong} | {converged[0]:.1f} (seed {converged[1]}) | {ended[0]:.1f} | {cpu_s:.0f}"
    print(f"| {nodes} | {len(seeds)} ({seeds.start} to {seeds.stop - 1}) | {row} | {ends} |", flush=True)
    return wrong


def main() -> None:
    """One row for each number of machines."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--machines", type=int, nargs="+", default=[8, 256, 1000])
    parser.add_argument("--histories", type=int, nargs="+", default=[1000, 100, 10])
    parser.add_argument("--first-seed", type=int, default=0)
    typed = parser.parse_args()
    print(
        "| machines | histories (seeds) | faults | rounds | wrong | worst convergence, s | last end, s | CPU, s", end=""
    )
    print(" | ends |")
    print("|---|---|---|---|---|---|---|---|---|")
    pairs = zip(typed.machines, typed.histories, strict=True)
    wrong = [play(nodes, range(typed.first_seed, typed.first_seed + number)) for nodes, number in pairs]
    sys.exit(bool(sum(wrong)))


if __name__ == "__main__":
    main()

"""Runs in each worker of a cluster check: ``python -m yolo_launch.cluster_check.worker_check JSON``.

All nodes reach the master when this starts, so they exchange their ports over its store. Each then connects to every
other, and the sum over all workers is timed if all answer.
"""

from __future__ import annotations

import json
import os
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from yolo_launch.cluster_check.connectivity import check_connection
from yolo_launch.probes.child import all_reduce, join_store

TIMEOUT_S = 45.0
"""What one sum over all machines may take, in seconds: how long a port that is blocked holds up the check."""


def answer_file(folder: Path, rank: int) -> Path:
    """Returns the file for a rank's findings."""
    return folder / f"answer{rank}.json"


def read_answer(folder: Path, rank: int) -> dict[str, Any] | None:
    """Returns what a rank has found; None if its file is missing or not valid."""
    try:
        found: dict[str, Any] = json.loads(answer_file(folder, rank).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return found


def check_connections(store: Any, echo_server: list[Any], node: int, nodes: int) -> list[list[Any]]:
    """Connects this node, ``node`` of ``nodes``, to all but the master, which the launchers have reached already.

    ``echo_server`` is this machine's host, address and port. Returns [from, to, port, problem] of each that failed.
    """
    store.set(f"echo_server{node}", json.dumps(echo_server))
    others = [json.loads(store.get(f"echo_server{other}")) for other in range(1, nodes) if other != node]
    with ThreadPoolExecutor(64) as pool:
        problems = list(pool.map(lambda other: check_connection(other[1], other[2]), others))
    return [[echo_server[0], other[0], other[2], why] for other, why in zip(others, problems, strict=True) if why]


def blocked_anywhere(store: Any, echo_server: list[Any]) -> list[list[Any]]:
    """Returns the connections that failed among nodes other than the master, the same list on every rank."""
    node, nodes = int(os.environ["GROUP_RANK"]), int(os.environ["GROUP_WORLD_SIZE"])
    if os.environ["LOCAL_RANK"] == "0" and node > 0:
        store.set(f"blocked{node}", json.dumps(check_connections(store, echo_server, node, nodes)))
    return [row for other in range(1, nodes) for row in json.loads(store.get(f"blocked{other}"))]


def main() -> None:
    """Connects to the others, sums numbers over all workers of all nodes, and writes the findings to a file."""
    arguments = json.loads(sys.argv[1])
    answer: dict[str, Any] = {"blocked": blocked_anywhere(join_store(TIMEOUT_S), arguments["echo_server"])}
    if not answer["blocked"]:
        answer |= all_reduce({"backend": arguments["backend"], "timeout_s": TIMEOUT_S})
    answer_file(Path(arguments["folder"]), int(os.environ["RANK"])).write_text(json.dumps(answer), encoding="utf-8")


if __name__ == "__main__":
    main()

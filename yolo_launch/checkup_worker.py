"""What each worker of a check-up runs: ``python -m yolo_launch.checkup_worker FOLDER BACKEND``."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

from yolo_launch.probe_worker import all_reduce

TIMEOUT_S = 45.0
"""What one sum over all machines may take. A port that is blocked must not hold anybody longer."""


def answer_file(folder: Path, rank: int) -> Path:
    """Where a rank leaves its times."""
    return folder / f"answer{rank}.json"


def read_answer(folder: Path, rank: int) -> dict[str, Any] | None:
    """A rank's times; None where it left none."""
    try:
        found: dict[str, Any] = json.loads(answer_file(folder, rank).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return found


def main() -> None:
    """Add up numbers over all workers of all machines, and leave the times behind."""
    folder, backend = sys.argv[1:]
    answer = all_reduce({"backend": backend, "timeout_s": TIMEOUT_S})
    answer_file(Path(folder), int(os.environ["RANK"])).write_text(json.dumps(answer), encoding="utf-8")


if __name__ == "__main__":
    main()

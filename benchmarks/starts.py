"""How long the launcher takes to show its help, beside the libraries that draw it alone.

    python benchmarks/starts.py

Every program is started in turn, so that a busy neighbor hits all alike; medians are printed, and ratios to the first.
"""

from __future__ import annotations

import argparse
import os
import platform
import statistics
import subprocess
import sys
import time
from pathlib import Path

PROJECT_DIR = Path(__file__).resolve().parent.parent
PROGRAM = "import sys; from yolo_launch.cli.main import main; main()"
STARTS = {
    "typer and rich alone": ("-c", "import typer, rich.console"),
    "yolo-launch --help": ("-c", PROGRAM, "--help"),
    "yolo-launch train --help": ("-c", PROGRAM, "train", "--help"),
    "yolo-launch run --help": ("-c", PROGRAM, "run", "--help"),
    "yolo-launch plan --gpus cpu": ("-c", PROGRAM, "plan", "--gpus", "cpu"),
}


def seconds_of(words: tuple[str, ...]) -> float:
    """How long one start takes by the clock."""
    environ = {**os.environ, "PYTHONPATH": str(PROJECT_DIR)}
    environ.pop("PYTHONDONTWRITEBYTECODE", None)  # an installed program has its byte code
    began_at = time.perf_counter()
    subprocess.run([sys.executable, *words], env=environ, check=True, stdout=subprocess.DEVNULL)
    return time.perf_counter() - began_at


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=9)
    repeats = parser.parse_args().repeats
    seconds: dict[str, list[float]] = {name: [] for name in STARTS}
    for words in STARTS.values():
        seconds_of(words)  # writes byte code
    for _ in range(repeats):
        for name, words in STARTS.items():
            seconds[name].append(seconds_of(words))
    medians = {name: statistics.median(found) for name, found in seconds.items()}
    base = next(iter(medians.values()))
    print(f"Python {platform.python_version()}, median of {repeats}, in turn\n")
    print("| program | seconds | ratio |\n|---|---|---|")
    for name, median in medians.items():
        print(f"| {name} | {median:.3f} | {median / base:.2f} |")


if __name__ == "__main__":
    main()

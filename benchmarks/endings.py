"""How long workers and loaders take to be gone after kills and signals: two workers without torch, with stuck loaders.

    python benchmarks/endings.py [--repeat 3]

The launcher drives torch's elastic agent as in a real job. Beside it what torchrun took for the same, recorded on
another day. Exit code 1 where a process is left behind.
"""

from __future__ import annotations

import argparse
import signal
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from tests.processes.conftest import LaunchedJob

DEAF = ("--on-term", "ignore", "--stuck-loaders", "1")
CRASH = ("--fail-rank", "1", "--fail-step", "30", "--fail-how", "SIGSEGV")
LIMIT_S = 60.0


def crash(job: LaunchedJob) -> float:
    """One worker crashes by itself; from then on."""
    job.wait_for("failures1.txt")
    return time.monotonic()


def kill_worker(job: LaunchedJob) -> float:
    """SIGKILL to the last worker."""
    job.worker(1).kill()
    return time.monotonic()


def press(times: int) -> Callable[[LaunchedJob], float]:
    """Ctrl-C so many times, from the last one on."""

    def act(job: LaunchedJob) -> float:
        for _ in range(times):
            time.sleep(0.3)
            since = job.signal(signal.SIGINT)
        return since

    return act


CASES: tuple[tuple[str, tuple[str, ...], Callable[[LaunchedJob], float], str], ...] = (
    ("a worker crashes beside one that ignores SIGTERM", (*DEAF, *CRASH), crash, "31 s"),
    ("Ctrl-C, the workers ignore it", DEAF, press(1), ""),
    ("a second Ctrl-C", DEAF, press(2), "31 s"),
    ("a third Ctrl-C", DEAF, press(3), ""),
    ("kill -9 of a worker with stuck loaders", ("--stuck-loaders", "2"), kill_worker, "loaders orphaned"),
    ("kill -9 of the launcher", DEAF, lambda job: job.signal(signal.SIGKILL), "workers and loaders orphaned"),
    (
        "SIGTERM, a save takes 0.5 s",
        ("--save-s", "0.5"),
        lambda job: job.signal(signal.SIGTERM),
        "loaders ended, not saved",
    ),
)


def measure(arguments: tuple[str, ...], act: Callable[[LaunchedJob], float]) -> float:
    """Seconds until no worker or loader is left. Raises AssertionError where one stays."""
    with tempfile.TemporaryDirectory() as folder:
        job = LaunchedJob(Path(folder) / "run")
        try:
            job.start("plain_worker.py", str(job.run_dir), *arguments, options=("--nproc", "2"))
            job.wait_for("ready0", "ready1")
            since = act(job)
            return job.seconds_until_nothing_is_left(since, LIMIT_S)
        finally:
            job.clean_up()


def main() -> int:
    """Print a table of medians."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeat", type=int, default=3)
    options = parser.parse_args()
    print("| what happens | workers and loaders gone after, s: median | slowest | torchrun (recorded) |")
    print("|---|---|---|---|")
    is_clean = True
    for what, arguments, act, recorded in CASES:
        try:
            times = [measure(arguments, act) for _ in range(options.repeat)]
        except AssertionError as error:
            is_clean = False
            print(f"| {what} | {error} | | {recorded} |", flush=True)
            continue
        print(f"| {what} | {statistics.median(times):.2f} | {max(times):.2f} | {recorded} |", flush=True)
    return 0 if is_clean else 1


if __name__ == "__main__":
    sys.exit(main())

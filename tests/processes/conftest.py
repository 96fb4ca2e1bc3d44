"""A launcher in a process of its own, whose workers and their children can all be found again."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest

WORKERS_DIR = Path(__file__).resolve().parent / "workers"
PROJECT_DIR = Path(__file__).resolve().parents[2]
MARK = "YOLO_LAUNCH_TEST_MARK"
PROGRAM = "from yolo_launch.cli.main import main; main()"


class LaunchedJob:
    """One launcher with its workers; everything it started carries a mark in its environment."""

    def __init__(self, run_dir: Path) -> None:
        self.run_dir = run_dir
        self.mark = uuid.uuid4().hex
        self.process: subprocess.Popen[str] | None = None

    def start(
        self,
        worker: str,
        *arguments: str,
        options: tuple[str, ...] = (),
        ignore_hangup: bool = False,
        environment: dict[str, str] | None = None,
    ) -> LaunchedJob:
        command = [sys.executable, str(WORKERS_DIR / "launcher.py"), "--run-dir", str(self.run_dir), *options]
        return self._start([*command, str(WORKERS_DIR / worker), *arguments], environment or {}, ignore_hangup)

    def start_program(self, *typed: str, program: str = PROGRAM, **environment: str) -> LaunchedJob:
        """``yolo-launch`` as typed, in the run directory."""
        # As the installed program, it does not look into the working directory itself.
        alone = ["-P"] if sys.version_info >= (3, 11) else []
        return self._start([sys.executable, *alone, "-c", program, *typed], environment)

    def _start(self, command: list[str], environment: dict[str, str], ignore_hangup: bool = False) -> LaunchedJob:
        def prepare() -> None:
            signal.signal(signal.SIGHUP, signal.SIG_IGN if ignore_hangup else signal.SIG_DFL)

        self.run_dir.mkdir(parents=True, exist_ok=True)
        self.process = subprocess.Popen(
            command,
            env={**os.environ, **environment, MARK: self.mark, "PYTHONPATH": str(PROJECT_DIR)},
            cwd=self.run_dir,
            stdout=(self.run_dir / "stdout.txt").open("w"),
            stderr=(self.run_dir / "stderr.txt").open("w"),
            preexec_fn=prepare,
            text=True,
        )
        return self

    @property
    def stdout(self) -> str:
        return (self.run_dir / "stdout.txt").read_text()

    @property
    def stderr(self) -> str:
        return (self.run_dir / "stderr.txt").read_text()

    @property
    def outcome(self) -> dict:
        return json.loads((self.run_dir / "outcome.json").read_text())

    def alive(self) -> list[psutil.Process]:
        """The marked processes that still run, the launcher left out."""
        found = []
        for process in psutil.process_iter():
            with contextlib.suppress(psutil.Error):
                if (
                    process.pid not in (os.getpid(), self.process.pid)
                    and process.status() != psutil.STATUS_ZOMBIE
                    and process.environ().get(MARK) == self.mark
                ):
                    found.append(process)
        return found

    def worker(self, rank: int = 0) -> psutil.Process:
        """The worker of a rank; loader processes share its environment but do not lead its session."""
        return next(p for p in self.alive() if os.getsid(p.pid) == p.pid and p.environ().get("RANK", "0") == str(rank))

    def loaders(self, rank: int = 0) -> list[psutil.Process]:
        leader = self.worker(rank).pid
        return [p for p in self.alive() if os.getsid(p.pid) == leader and p.pid != leader]

    def wait_for(self, *names: str, timeout_s: float = 180.0) -> LaunchedJob:
        """Until the workers have made these files in the run directory."""
        wait_until(lambda: all((self.run_dir / name).exists() for name in names), timeout_s, f"{names}: {self.stderr}")
        return self

    def signal(self, number: int) -> float:
        self.process.send_signal(number)
        return time.monotonic()

    def wait(self, timeout_s: float = 60.0) -> int:
        return self.process.wait(timeout_s)

    def seconds_until_nothing_is_left(self, since: float, timeout_s: float = 45.0) -> float:
        wait_until(lambda: not self.alive(), timeout_s, f"left behind: {self.alive()}")
        return time.monotonic() - since

    def clean_up(self) -> None:
        if self.process is not None and self.process.poll() is None:
            self.process.kill()
            self.process.wait()
        for process in self.alive() if self.process is not None else ():
            with contextlib.suppress(psutil.Error):
                process.kill()


def wait_until(condition: Callable[[], bool], timeout_s: float, what: str) -> None:
    end = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < end, what
        time.sleep(0.02)


@pytest.fixture
def job(tmp_path: Path) -> Iterator[LaunchedJob]:
    launched = LaunchedJob(tmp_path / "run")
    yield launched
    launched.clean_up()

"""A training started with ``yolo-launch train``, whose launcher, ranks and loader processes can be found and killed."""

from __future__ import annotations

import contextlib
import json
import os
import random
import subprocess
import sys
import time
import uuid
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil

PROJECT_DIR = Path(__file__).resolve().parents[2]
MARK = "YOLO_FAULT_TEST_MARK"
START = "from yolo_launch.cli.main import main; main()"


@dataclass
class LaunchedRun:
    """A run directory and the launcher that works on it now."""

    project: Path
    options: tuple[str, ...]
    """Of a fresh start, without project and name."""
    mark: str = field(default_factory=lambda: uuid.uuid4().hex)
    launcher: subprocess.Popen[bytes] | None = None
    starts: int = 0

    @property
    def run_dir(self) -> Path:
        return self.project / "exp"

    def start(self) -> None:
        """Begin, or go on where there is something to go on with."""
        self.project.mkdir(parents=True, exist_ok=True)
        if (self.run_dir / "config.yaml").exists():
            arguments = ["--resume", str(self.run_dir), "--max-restarts", "99"]
        else:
            arguments = [*self.options, "--project", str(self.project), "--exist-ok", "--max-restarts", "99"]
        with (self.project / "output.txt").open("ab") as output:
            self.launcher = subprocess.Popen(
                [sys.executable, "-c", START, "train", *arguments],
                env={**os.environ, MARK: self.mark, "PYTHONPATH": str(PROJECT_DIR)},
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
            )
        self.starts += 1

    @property
    def is_running(self) -> bool:
        return self.launcher is not None and self.launcher.poll() is None

    @property
    def is_finished(self) -> bool:
        """Whether nobody works on it and its summary is written, which is the last thing that a run does."""
        return not self.is_running and (self.run_dir / "summary.json").exists()

    def output(self) -> str:
        return (self.project / "output.txt").read_text()

    def ranks(self) -> dict[int, psutil.Process]:
        """The workers that run now; each leads a session of its own."""
        found = {}
        with contextlib.suppress(psutil.Error, OSError):
            for process in psutil.Process(self.launcher.pid).children():
                with contextlib.suppress(psutil.Error, OSError):
                    if is_alive(process) and os.getsid(process.pid) == process.pid:
                        found[int(process.environ().get("RANK", "0"))] = process
        return found

    def loaders(self) -> list[psutil.Process]:
        """Every loader process of every rank."""
        found = []
        for rank in self.ranks().values():
            with contextlib.suppress(psutil.Error):
                found += [child for child in rank.children(recursive=True) if is_alive(child)]
        return found

    def phase(self) -> str:
        """What rank 0 says that it does, or 'start' where its word is that of an earlier process."""
        with contextlib.suppress(OSError, ValueError, KeyError):
            said = json.loads((self.run_dir / "logs" / "rank0.heartbeat.json").read_text())
            if said["pid"] in [process.pid for process in self.ranks().values()]:
                return str(said["phase"])
        return "start"

    def temporaries(self) -> set[str]:
        """Checkpoints that are being written, or were when their writer died."""
        return {path.name for path in (self.run_dir / "weights").glob(".*.pt.*.tmp")}

    def leftovers(self) -> list[psutil.Process]:
        """Processes of this run beside its launcher, wherever they hang."""
        found = []
        for process in psutil.process_iter():
            with contextlib.suppress(psutil.Error):
                if is_alive(process) and process.environ().get(MARK) == self.mark:
                    found.append(process)
        return [process for process in found if not self.is_running or process.pid != self.launcher.pid]

    def wait_until_gone(self, timeout_s: float = 20.0) -> None:
        deadline = time.monotonic() + timeout_s
        while left := self.leftovers():
            assert time.monotonic() < deadline, f"left behind: {left}"
            time.sleep(0.05)

    def finish(self, timeout_s: float = 300.0) -> None:
        """To the end, restarted by the launcher or by hand as often as it takes."""
        for _ in range(5):
            if self.is_finished:
                return
            if not self.is_running:
                self.start()
            self.launcher.wait(timeout_s)
        assert self.is_finished, self.output()

    def end(self) -> None:
        """Leave no process behind."""
        if self.is_running:
            self.launcher.kill()
            self.launcher.wait()
        for process in self.leftovers() if self.launcher is not None else ():
            with contextlib.suppress(psutil.Error):
                process.kill()


def is_alive(process: psutil.Process) -> bool:
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.Error:
        return False


@dataclass
class Killer:
    """Kills at moments drawn from a seed, and keeps the tally."""

    rng: random.Random
    span_s: float
    """How long a run takes from the first sign of its workers."""
    tally: dict[str, int] = field(default_factory=dict)

    KINDS = (
        *("launcher", "launcher in training", "launcher while saving"),
        *("rank", "rank in training", "rank while saving", "rank in validation"),
        "loader in training",
    )

    @property
    def kills(self) -> int:
        return sum(self.tally.values())

    def strike(self, run: LaunchedRun) -> bool:
        """One kill -9 of a run that is on its way; False where the run ended first."""
        kind = self.rng.choice(self.KINDS)
        if not self._wait_for_moment(run, kind):
            return False
        victim = self._victim(run, kind)
        if victim is None or not is_alive(victim):
            return run.is_running
        phase = run.phase()
        try:
            victim.kill()
        except psutil.Error:
            return run.is_running
        name = f"{kind}, {phase}"
        self.tally[name] = self.tally.get(name, 0) + 1
        if kind.startswith("launcher"):
            run.launcher.wait(20)
            run.wait_until_gone()
        else:
            self._wait(run, lambda: not is_alive(victim), 20)
        return True

    def _wait_for_moment(self, run: LaunchedRun, kind: str) -> bool:
        if not self._wait(run, lambda: bool(run.ranks()), 60):
            return False
        before = run.temporaries()
        if "validation" in kind:
            return self._wait(run, lambda: run.phase() == "val", 60, 0.005)
        if "training" in kind:
            if not self._wait(run, lambda: run.phase() == "train", 60):
                return False
            time.sleep(self.rng.uniform(0, self.span_s / 4))
            return run.is_running
        time.sleep(self.rng.uniform(0, self.span_s))
        if "saving" in kind:
            return self._wait(run, lambda: bool(run.temporaries() - before), 20, 0.0005)
        return run.is_running

    def _victim(self, run: LaunchedRun, kind: str) -> psutil.Process | None:
        if kind.startswith("launcher"):
            return psutil.Process(run.launcher.pid) if run.is_running else None
        ranks = run.ranks()
        if kind == "rank while saving":
            return ranks.get(0)  # the one that writes
        candidates = run.loaders() if "loader" in kind else list(ranks.values())
        return self.rng.choice(candidates) if candidates else None

    @staticmethod
    def _wait(run: LaunchedRun, condition: Any, timeout_s: float, pause_s: float = 0.02) -> bool:
        deadline = time.monotonic() + timeout_s
        while time.monotonic() < deadline and run.is_running:
            if condition():
                return True
            time.sleep(pause_s)
        return False

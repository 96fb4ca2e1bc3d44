"""What every part of the first hour with a card is given: the place to note findings, runs, steps and the peers."""

from __future__ import annotations

import json
import math
import os
import statistics
import subprocess
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path

import torch

from benchmarks.peers import OWN, PROJECT_DIR, Measured, Program, ask_in_turn, find_programs, times_as_fast

PROGRAM = "from yolo_launch.cli.main import main; main()"
PEER_REPEATS = 3


@dataclass
class Part:
    """What a part is given, and what it found."""

    device: str
    bccd: Path
    coco: Path
    weights: Path
    folder: Path
    rehearse: bool
    checks: list[dict] = field(default_factory=list)
    figures: dict[str, dict] = field(default_factory=dict)
    peers: list[dict] = field(default_factory=list)
    """What each program showed that was measured beside the peers."""
    programs: list[Program] = field(default_factory=lambda: find_programs(None))

    def check(self, what: str, seen: object, ok: bool, expected: str) -> None:
        """Notes whether something was as expected."""
        self.checks.append({"what": what, "seen": str(seen)[:300], "expected": expected, "ok": bool(ok)})

    def figure(self, what: str, values: list[float], unit: str, note: str = "") -> None:
        """Notes a measured figure with its values, and prints it at once: a part may run out of time."""
        median = statistics.median(values)
        self.figures[what] = {"median": median, "values": values, "unit": unit, "note": note}
        self._print()

    def _print(self) -> None:
        found = {"checks": self.checks, "figures": self.figures, "peers": self.peers}
        print("\n" + json.dumps(found), flush=True)

    def beside_peers(
        self, what: str, task: str, settings: dict, figures: dict[str, str], *, higher_is_better: bool = False
    ) -> dict[str, Measured]:
        """Runs a task with all programs in turn, each in a process of its own, and notes the medians and the ratios.

        ``figures`` are the units of those that are noted. A peer that fails is named and changes nothing else.
        """
        asked = {**settings, "device": self.device}
        results = ask_in_turn(self.programs, task, asked, repeats=1 if self.rehearse else PEER_REPEATS)
        for program, result in results.items():
            if result.failed:
                self.peers.append({"what": what, "program": program, "failed": f"peer: {result.failed}"})
                continue
            for name, unit in figures.items():
                median = result.median(name)
                if not math.isfinite(median):
                    continue
                ratio = times_as_fast(results[OWN].median(name), median, higher_is_better=higher_is_better)
                row = {
                    "what": what,
                    "figure": name,
                    "program": program,
                    "median": median,
                    "values": result.figures[name],
                }
                self.peers.append({**row, "unit": unit, "ratio": ratio})
        self._print()
        return results

    def launch(self, *words: str, limit_s: float = 300, **more: str) -> subprocess.CompletedProcess[str]:
        """Runs ``yolo-launch`` as typed."""
        environment = {**os.environ, "PYTHONPATH": f"{PROJECT_DIR}:{os.environ.get('PYTHONPATH', '')}", **more}
        command = [sys.executable, "-c", PROGRAM, *words]
        return subprocess.run(
            command, cwd=self.folder, env=environment, capture_output=True, text=True, timeout=limit_s, check=False
        )

    @property
    def gpus(self) -> str:
        """What ``--gpus`` is given."""
        return "0" if self.device == "cuda" else "cpu"


def make_run(part: Part, **options):
    from trainer.config.train import make_config
    from trainer.protocol import RunFiles
    from trainer.runtime.distributed import DistEnv
    from trainer.runtime.heartbeat import HeartbeatWriter
    from trainer.runtime.reporter import Reporter
    from trainer.training.build import build_run

    folder = part.folder / f"run{time.monotonic_ns()}"
    RunFiles(folder).make_folders()
    values = {"data": str(part.bccd), "cfg": "yolov5n", "imgsz": 64, "batch_size": 8, "epochs": 3, "workers": 0}
    config = make_config({**values, "plots": False, **options})
    beat = HeartbeatWriter(RunFiles(folder).logs, 0)
    run = build_run(config, DistEnv(), torch.device(part.device), folder, Reporter(enabled=False), beat)[0]
    run.model.train()
    return run


def time_steps(run, batches, count):
    """Seconds of each step, the device's work included, and those that the host alone took."""
    from trainer.training.loop import train_step

    whole, host = [], []
    for index in range(count):
        began_at = time.perf_counter()
        train_step(run, batches[index % len(batches)], is_update=True)
        host.append(time.perf_counter() - began_at)
        if run.device.type == "cuda":
            torch.cuda.synchronize()
        whole.append(time.perf_counter() - began_at)
        run.state.progress.micro_step += 1
    return whole, host

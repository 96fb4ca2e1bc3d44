"""Runs the same task with this project and with its peers in turn, each in a process of its own, and compares them.

A peer is an installed package, YOLOv5 (``yolov5``) or ultralytics, in an environment of its own whose interpreter is
given as ``--peer-python``. Each program has a driver in ``benchmarks/drivers`` that knows its public interfaces:

    PYTHON benchmarks/drivers/NAME.py TASK SETTINGS

It prints its figures, one JSON object of numbers, on the last line. A peer that fails is named with its reason and
takes nothing else down.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import matplotlib

PROJECT_DIR = Path(__file__).resolve().parents[1]
DRIVERS = Path(__file__).resolve().parent / "drivers"
OWN = "yolo-launch"
PACKAGES = {"yolov5": ("YOLOv5", "yolov5_peer.py"), "ultralytics": ("ultralytics", "ultralytics_peer.py")}
FIND = """
import importlib.metadata, json
found = {}
for name in ("yolov5", "ultralytics"):
    try:
        found[name] = importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        pass
print(json.dumps(found))
"""
REASON_LENGTH = 300


class ProgramError(Exception):
    """A program did not give the figures it was asked for; the text is the reason."""


@dataclass(frozen=True)
class Program:
    """One that is measured: how it is called in tables, its interpreter and its driver."""

    name: str
    python: str
    driver: Path | None
    missing: str = ""
    """Why it cannot be measured at all."""

    def ask(self, task: str, settings: dict, *, threads: int | None = None, limit_s: float = 1800) -> dict[str, float]:
        """Runs one task in a process of its own and returns its figures. Raises ProgramError."""
        if self.missing:
            raise ProgramError(self.missing)
        with tempfile.TemporaryDirectory(prefix="yolo-launch-bench-") as folder:
            command = [self.python, str(self.driver), task, json.dumps({**settings, "folder": folder})]
            try:
                ended = subprocess.run(
                    command,
                    cwd=folder,
                    env=environment_of(Path(folder), self.name == OWN, threads),
                    capture_output=True,
                    text=True,
                    timeout=limit_s,
                    check=False,
                )
            except subprocess.TimeoutExpired as late:
                raise ProgramError(f"{task} took more than {limit_s:.0f} s") from late
            except OSError as error:
                raise ProgramError(str(error)) from error
        return figures_in(ended)


def environment_of(folder: Path, is_own: bool, threads: int | None) -> dict[str, str]:
    """What a driver's process gets: caches and settings in ``folder``, nothing to download, so many threads."""
    more = {"XDG_CACHE_HOME": str(folder / "cache"), "GOMP_SPINCOUNT": "0"}
    if threads:
        more |= {"OMP_NUM_THREADS": str(threads), "MKL_NUM_THREADS": str(threads)}
    if is_own:
        paths = (str(PROJECT_DIR), os.environ.get("PYTHONPATH", ""))
        return {**os.environ, **more, "PYTHONPATH": os.pathsep.join(filter(None, paths))}
    # YOLOv5 would fetch this font; any will do. Its checkpoints are pickles, which newer torch reads only when told so.
    shutil.copy(Path(matplotlib.get_data_path()) / "fonts" / "ttf" / "DejaVuSans.ttf", folder / "Arial.ttf")
    more |= {"YOLOV5_CONFIG_DIR": str(folder), "YOLO_CONFIG_DIR": str(folder), "YOLO_OFFLINE": "true"}
    more |= {"TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD": "1", "YOLOv5_AUTOINSTALL": "false", "YOLO_AUTOINSTALL": "false"}
    # The project's own packages must not lie on a peer's path.
    return {name: value for name, value in {**os.environ, **more}.items() if name != "PYTHONPATH"}


def figures_in(ended: subprocess.CompletedProcess[str]) -> dict[str, float]:
    """Returns what a driver printed on its last line. Raises ProgramError with the last line of its complaint."""
    lines = [line for line in ended.stdout.splitlines() if line.startswith("{") and line.endswith("}")]
    if ended.returncode == 0 and lines:
        return {name: float(value) for name, value in json.loads(lines[-1]).items()}
    said = [line.strip() for line in (ended.stderr + ended.stdout).splitlines() if line.strip()]
    errors = [line for line in ended.stderr.splitlines() if "Error" in line] or said[-1:] or ["it said nothing"]
    raise ProgramError(f"exit code {ended.returncode}: {errors[-1].strip()[-REASON_LENGTH:]}")


def find_programs(peer_python: str | None) -> list[Program]:
    """Returns this project and then each peer that ``peer_python`` has; what cannot be asked says why later."""
    programs = [Program(OWN, sys.executable, DRIVERS / "own.py")]
    if not peer_python:
        return programs
    try:
        ended = subprocess.run(
            [peer_python, "-c", FIND], capture_output=True, text=True, timeout=120, check=True, cwd=DRIVERS.parent
        )
        versions = json.loads(ended.stdout)
    except (OSError, ValueError, subprocess.SubprocessError) as error:
        return [*programs, Program("peer", peer_python, None, f"{peer_python} cannot be asked: {error}")]
    peers = [
        Program(f"{PACKAGES[name][0]} {version}", peer_python, DRIVERS / PACKAGES[name][1])
        for name, version in versions.items()
    ]
    missing = f"{peer_python} has neither the package yolov5 nor ultralytics"
    return programs + (peers or [Program("peer", peer_python, None, missing)])


@dataclass
class Measured:
    """What one program showed: the values of each figure, one a run, and why it failed if it did."""

    figures: dict[str, list[float]] = field(default_factory=dict)
    failed: str = ""

    def add(self, found: dict[str, float]) -> None:
        """Adds one run."""
        for name, value in found.items():
            self.figures.setdefault(name, []).append(value)

    def median(self, name: str) -> float:
        """Returns the median of a figure; NaN if it was never seen."""
        return statistics.median(self.figures[name]) if self.figures.get(name) else math.nan


def run_in_turn(
    programs: Sequence[Program], measure: Callable[[Program], dict[str, float]], repeats: int
) -> dict[str, Measured]:
    """Measures every program ``repeats`` times, taking turns, so that a busy neighbor hits all alike.

    A peer that fails is not asked again. Raises ProgramError if this project's own program fails.
    """
    results = {program.name: Measured() for program in programs}
    for _ in range(repeats):
        for program in programs:
            result = results[program.name]
            if result.failed:
                continue
            try:
                result.add(measure(program))
            except ProgramError as error:
                if program.name == OWN:
                    raise
                result.failed = f"failed: {error}"
    return results


def ask_in_turn(
    programs: Sequence[Program],
    task: str,
    settings: dict,
    *,
    repeats: int,
    threads: int | None = None,
    limit_s: float = 1800,
) -> dict[str, Measured]:
    """Asks every program for the same task ``repeats`` times, taking turns. Raises as ``run_in_turn``."""
    return run_in_turn(programs, lambda program: program.ask(task, settings, threads=threads, limit_s=limit_s), repeats)


def times_as_fast(own: float, peer: float, *, higher_is_better: bool) -> float:
    """Returns how many times as fast this project is as a peer; NaN if either is unknown."""
    if not (math.isfinite(own) and math.isfinite(peer) and own > 0 and peer > 0):
        return math.nan
    return own / peer if higher_is_better else peer / own


def table_rows(
    results: dict[str, Measured], figures: Sequence[str], *, by: str, higher_is_better: bool = False, first: str = ""
) -> list[str]:
    """Returns a Markdown row for each program: its median figures, and how many times as fast as it ours is in ``by``.

    ``first`` is what stands in the first column.
    """
    rows = []
    for name, result in results.items():
        if result.failed:
            rows.append(f"| {first} | {name} | peer: {result.failed.replace('|', '/')} |" + " |" * len(figures))
            continue
        ratio = times_as_fast(results[OWN].median(by), result.median(by), higher_is_better=higher_is_better)
        cells = [shown(result.median(figure)) for figure in figures]
        rows.append(f"| {first} | {name} | " + " | ".join([*cells, shown(ratio, "{:.2f}")]) + " |")
    return rows


def table_head(first: str, figures: dict[str, str]) -> list[str]:
    """Returns the two lines above ``table_rows``; ``figures`` are the titles of the columns."""
    cells = [first, "program", *figures.values(), "ours is times as fast"]
    return ["| " + " | ".join(cells) + " |", "|" + "---|" * len(cells)]


def shown(value: float, form: str = "{:.4g}") -> str:
    """Returns a number as tables show it; nothing for NaN."""
    return form.format(value) if math.isfinite(value) else ""


def add_options(parser: argparse.ArgumentParser, *, repeats: int = 3) -> None:
    """Adds the options that all comparisons have."""
    parser.add_argument("--peer-python", help="interpreter of an environment with the packages yolov5, ultralytics")
    parser.add_argument("--repeats", type=int, default=repeats, help="runs of each program, in turn")


def introduce(programs: Sequence[Program], repeats: int, what: str) -> None:
    """Prints what the tables below are about, and how busy the machine is."""
    load = os.getloadavg()[0]
    names = ", ".join(program.name for program in programs)
    print(f"{what}\n{names}: medians of {repeats} runs each, in turn; {os.cpu_count()} cores, load average {load:.1f}")
    print(f"{time.strftime('%Y-%m-%d')}, Python {sys.version.split()[0]}\n", flush=True)

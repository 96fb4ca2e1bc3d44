"""Says what has become of runs, and ends one: from the files of their folders alone, whoever started them."""

from __future__ import annotations

import csv
import os
import re
import signal
import socket
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from trainer.protocol import CONFIG_FILE, RunFiles, read_heartbeat
from yolo_launch.errors import LaunchError
from yolo_launch.jobs import run_directory, run_lock

_EPOCHS = re.compile(r"^epochs: (\d+)$", re.MULTILINE)
_HOLDER = re.compile(r"PID (\d+) on (\S+)")
_SILENT_S = 60.0
"""Another machine's run that has written nothing for so long does not run."""
_MAP = "metrics/mAP_0.5:0.95"


@dataclass(frozen=True)
class RunOverview:
    """What is known of one run."""

    run_dir: str
    state: str
    """running; done; unfinished, which --resume takes up; or ended, a script that failed or was stopped."""
    epoch: int
    """Epochs that are in results.csv."""
    epochs: int
    """0 for a script."""
    map5095: float | None
    """The best so far."""
    machine: str
    """Host name of a running one's launcher, '' otherwise."""
    age_s: float
    """Since anything was written."""


def list_runs(folders: Sequence[Path]) -> list[RunOverview]:
    """Returns every run below the folders, up to two levels down, those last written to first."""
    found = {
        plan.parent for folder in folders for depth in ("", "*/", "*/*/") for plan in folder.glob(f"{depth}plan.json")
    }
    return sorted(map(look_at, found), key=lambda run: (run.age_s, run.run_dir))


def look_at(run_dir: Path) -> RunOverview:
    """Returns what is known of a run."""
    rows = _results(run_dir)
    is_running = run_lock.is_held(run_dir) or _works_elsewhere(run_dir)
    state = "running" if is_running else "done" if run_directory.is_finished(run_dir) else "unfinished"
    config = run_dir / CONFIG_FILE
    if not config.is_file() and not is_running:
        state = "done" if run_directory.read_outcome(run_dir).get("outcome") == "done" else "ended"
    written = _EPOCHS.search(config.read_text(encoding="utf-8", errors="replace")) if config.is_file() else None
    measured = [float(row[_MAP]) for row in rows if row.get(_MAP)]
    return RunOverview(
        run_dir=str(run_dir),
        state=state,
        epoch=sum(row.get("epoch", "0") != "0" for row in rows),
        epochs=int(written[1]) if written else 0,
        map5095=max(measured, default=None),
        machine=holder_of(run_dir)[1] if is_running else "",
        age_s=max(0.0, time.time() - _last_written(run_dir)),
    )


def holder_of(run_dir: Path) -> tuple[int, str]:
    """Returns process and host name of the launcher that works on a run; 0 and '' if it is not told."""
    found = _HOLDER.search(run_lock.holder(run_dir))
    return (int(found[1]), found[2]) if found else (0, "")


def stop_run(run_dir: Path, wait_s: float) -> str:
    """Asks a run's launcher to save and stop, and waits for it; returns the state that the run is left in.

    Raises LaunchError for a run that does not run, or not on this machine, and for one that takes longer.
    """
    if not run_lock.is_held(run_dir):
        raise LaunchError(
            f"{run_dir} is not running.",
            seen=f"state {look_at(run_dir).state}",
            expected="a run that is",
            next_command="yolo-launch runs",
        )
    pid, host = holder_of(run_dir)
    if not pid or host != socket.gethostname():
        raise LaunchError(
            f"{run_dir} is not run by this machine.",
            seen=f"held by {run_lock.holder(run_dir)}",
            expected=f"a launcher on {socket.gethostname()}",
            next_command=f"on {host or 'its machine'}: yolo-launch stop {run_dir}",
        )
    os.kill(pid, signal.SIGTERM)
    deadline = time.monotonic() + wait_s
    while run_lock.is_held(run_dir):
        if time.monotonic() > deadline:
            raise LaunchError(
                f"{run_dir} has not stopped within {wait_s:g} s.",
                seen=f"PID {pid} still runs",
                expected="the end of a checkpoint",
                next_command=f"yolo-launch stop {run_dir} --wait {2 * wait_s:g}",
            )
        time.sleep(0.1)
    return look_at(run_dir).state


def _works_elsewhere(run_dir: Path) -> bool:
    """Returns True if another machine works on a run; its lock need not reach this one over a network file system."""
    host, beat = holder_of(run_dir)[1], read_heartbeat(RunFiles(run_dir).logs, 0)
    if host in ("", socket.gethostname()) or beat is None or run_directory.read_outcome(run_dir):
        return False
    return time.time() - beat.written_at < _SILENT_S


def _results(run_dir: Path) -> list[dict[str, str]]:
    try:
        with RunFiles(run_dir).results.open(encoding="utf-8", newline="") as file:
            return list(csv.DictReader(file, skipinitialspace=True))
    except (OSError, ValueError, csv.Error):
        return []


def _last_written(run_dir: Path) -> float:
    files = RunFiles(run_dir)
    beat = read_heartbeat(files.logs, 0)
    times = [beat.written_at] if beat is not None else []
    for path in (run_dir, files.results, files.summary, files.logs.folder):
        if path.exists():
            times.append(path.stat().st_mtime)
    return max(times, default=0.0)

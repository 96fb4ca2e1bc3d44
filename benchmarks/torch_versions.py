"""What the launcher does with old and new torch: makes virtual environments in a folder and runs real workers in them.

    python benchmarks/torch_versions.py --folder /tmp/torch-versions --python python3.10

Torch 1.12.0 is refused for several workers, with the reason, and let through for one. With the others two gloo workers
run under ``yolo-launch run``: to their end, with --json, with a rank that fails, with one that fails once and is
restarted, and into a Ctrl-C. Environments that are in the folder already (v1.13.1, ...) are used as they are; a first
run downloads about 3 GB, one environment after another. The last row is the torch of the Python that runs this.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

PROJECT_DIR = Path(__file__).resolve().parent.parent
VERSIONS = ("1.12.0", "1.13.1", "2.4.1")
REFUSED = "1.12.0"
# What the command line imports; torch itself comes with its exact version.
PACKAGES = ("typer>=0.15.4", "rich>=13", "pydantic>=2.5", "pyyaml>=6", "psutil>=5.9", "nvidia-ml-py", "numpy<2")
LIMIT_S = 120
MARK = "TORCH_VERSIONS_MARK"
SCRIPT = """
import json, os, pathlib, sys, time, torch, torch.distributed as dist
how, folder = sys.argv[1], pathlib.Path(sys.argv[2])
rank, size = int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1"))
total = torch.ones(1)
if size > 1:
    dist.init_process_group("gloo")
    dist.all_reduce(total)
assert total.item() == size, total
if rank == 0:
    print(f"TORCH {torch.__version__} SUM {int(total.item())}", flush=True)
logs = pathlib.Path(os.environ["YOLO_LOGS_DIR"])
beat = {"phase": "train", "epoch": 0, "step": 3, "time": time.time()}
(logs / f"rank{rank}.heartbeat.json").write_text(json.dumps(beat))
if how == "wait":
    (folder / f"ready{rank}").touch()
    time.sleep(60)
failed_before = (folder / "failed").exists()
if size > 1:
    dist.barrier()
if rank == 1 and (how == "fail" or (how == "fail-once" and not failed_before)):
    (folder / "failed").touch()
    raise ValueError("no such class: 99")
if size > 1:
    dist.barrier()
    dist.destroy_process_group()
"""


@dataclass(frozen=True)
class Ended:
    """How one launch ended."""

    exit_code: int
    stdout: str
    stderr: str
    seconds: float
    left_behind: int


def make_environment(folder: Path, version: str, base_python: str) -> Path:
    """The Python of an environment with this torch, made where it is absent."""
    python = folder / f"v{version}" / "bin" / "python"
    if not python.exists():
        subprocess.run([base_python, "-m", "venv", str(python.parent.parent)], check=True)
        install = [str(python), "-m", "pip", "install", "--quiet"]
        subprocess.run([*install, f"torch=={version}", *PACKAGES], check=True, stdout=sys.stderr)
    return python


def launch(python: Path, folder: Path, how: str, *options: str, nproc: int = 2, interrupt: bool = False) -> Ended:
    """``yolo-launch run`` with so many workers on the CPU; with ``interrupt``, Ctrl-C once they all run."""
    place = folder / f"try-{os.getpid()}-{time.monotonic_ns()}"
    place.mkdir()
    script = place / "add_up.py"
    script.write_text(SCRIPT, encoding="utf-8")
    entry = "import sys; from yolo_launch.cli.main import run_program; sys.exit(run_program(sys.argv[1:]))"
    command = [str(python), "-c", entry, "run", str(script), "--gpus", "cpu", "--nproc", str(nproc), *options]
    began_at = time.monotonic()
    with (place / "stdout").open("w") as stdout, (place / "stderr").open("w") as stderr:
        process = subprocess.Popen(
            [*command, "--project", str(place / "logs"), "--", how, str(place)],
            env={**os.environ, "PYTHONPATH": str(PROJECT_DIR), MARK: place.name},
            stdout=stdout,
            stderr=stderr,
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
        )
        try:
            if interrupt:
                wait_until(lambda: all((place / f"ready{rank}").exists() for rank in range(nproc)))
                began_at = time.monotonic()
                process.send_signal(signal.SIGINT)
            exit_code = process.wait(LIMIT_S)
        finally:
            process.kill()
            process.wait()
    seconds = time.monotonic() - began_at
    texts = [(place / name).read_text(encoding="utf-8", errors="replace") for name in ("stdout", "stderr")]
    shutil.rmtree(place)
    return Ended(exit_code, *texts, seconds, count_marked(place.name))


def wait_until(condition: Callable[[], bool]) -> None:
    """Wait for workers that are about to run. Raises TimeoutError."""
    end = time.monotonic() + LIMIT_S
    while not condition():
        if time.monotonic() > end:
            raise TimeoutError("the workers did not start")
        time.sleep(0.05)


def count_marked(mark: str) -> int:
    """Processes that still run with this mark in their environment."""
    import psutil

    count = 0
    for process in psutil.process_iter():
        try:
            count += process.status() != psutil.STATUS_ZOMBIE and process.environ().get(MARK) == mark
        except psutil.Error:
            continue
    return count


def try_end(python: Path, folder: Path, nproc: int) -> tuple[bool, str]:
    """All workers to their end, without a word of warning."""
    end = launch(python, folder, "end", nproc=nproc)
    good = end.exit_code == 0 and f"SUM {nproc}" in end.stdout and not end.left_behind and not end.stderr
    return good, f"the sum is {nproc}, {end.seconds:.1f} s" if good else told(end)


def try_json(python: Path, folder: Path) -> tuple[bool, str]:
    """stdout holds one JSON object and nothing of rank 0."""
    end = launch(python, folder, "end", "--json")
    try:
        good = json.loads(end.stdout)["exit_code"] == 0 and "SUM 2" in end.stderr
    except (ValueError, KeyError):
        good = False
    return good, "stdout is one object" if good else f"stdout: {end.stdout[:200]!r}"


def try_failure(python: Path, folder: Path) -> tuple[bool, str]:
    """The failed rank and its exception are named."""
    end = launch(python, folder, "fail")
    named = "rank 1 failed first" in end.stderr and "ValueError: no such class: 99" in end.stderr
    good = end.exit_code == 1 and named and not end.left_behind
    return good, f"rank 1 is named, {end.seconds:.1f} s" if good else told(end)


def try_restart(python: Path, folder: Path) -> tuple[bool, str]:
    """A process group forms again after a failure."""
    end = launch(python, folder, "fail-once", "--max-restarts", "2")
    good = end.exit_code == 0 and "restart 1 of 2" in end.stderr and end.stdout.count("SUM 2") == 2
    return good, f"1 restart, then done, {end.seconds:.1f} s" if good else told(end)


def try_interrupt(python: Path, folder: Path) -> tuple[bool, str]:
    """Ctrl-C ends all, with 130."""
    end = launch(python, folder, "wait", interrupt=True)
    good = end.exit_code == 130 and not end.left_behind
    return good, f"130 after {end.seconds:.1f} s, nothing left" if good else told(end)


def told(end: Ended) -> str:
    """The launcher's reason in one line."""
    lines = [line.strip() for line in (end.stdout + end.stderr).splitlines() if line.strip()]
    reason = next((line for line in lines if "torch" in line.lower()), lines[-1] if lines else "said nothing")
    left = f", {end.left_behind} processes left" if end.left_behind else ""
    return f"exit code {end.exit_code}{left}: {reason}"


def make_rows(version: str, python: Path, folder: Path) -> list[tuple[bool, str, str]]:
    """What is tried with one torch: (as it should be, what, what happened)."""
    rows = [(*try_end(python, folder, 1), "1 worker")]
    if version == REFUSED:
        end = launch(python, folder, "end")
        rows.append((end.exit_code == 3 and "fixes the visible" in end.stderr, told(end), "2 workers"))
    else:
        rows.append((*try_end(python, folder, 2), "2 workers"))
        rows.append((*try_json(python, folder), "--json"))
        rows.append((*try_failure(python, folder), "rank 1 fails"))
        rows.append((*try_restart(python, folder), "rank 1 fails once, --max-restarts 2"))
        rows.append((*try_interrupt(python, folder), "Ctrl-C"))
    return [(good, what, happened) for good, happened, what in rows]


def main() -> int:
    """Print a table; exit code 1 where a row is not as it should be."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, required=True, help="where environments and logs go")
    parser.add_argument("--python", default="python3.10", help="a Python that the old torch has wheels for")
    parser.add_argument("--versions", nargs="*", default=list(VERSIONS))
    options = parser.parse_args()
    folder = options.folder.absolute()
    if PROJECT_DIR in folder.parents:
        parser.error("the folder has to be outside the project")
    folder.mkdir(parents=True, exist_ok=True)
    from importlib.metadata import version as installed

    pythons = [(version, make_environment(folder, version, options.python)) for version in options.versions]
    pythons.append((installed("torch"), Path(sys.executable)))
    print("| torch | tried | what happened | as it should be |\n|---|---|---|---|")
    is_right = True
    for version, python in pythons:
        for good, what, happened in make_rows(version, python, folder):
            is_right &= good
            print(f"| {version} | {what} | {happened} | {'yes' if good else 'NO'} |", flush=True)
    return 0 if is_right else 1


if __name__ == "__main__":
    sys.exit(main())

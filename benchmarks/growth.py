"""What grows with the number of images: the scan, a second start, the first batch, and memory; beside the peers.

    python benchmarks/growth.py --data bccd.yaml [--sizes 1000 100000 1000000] [--peer-python PYTHON]

The images are links to the pictures of ``--data``. The second start, with what the first has cached, is compared to a
bare walk over the same files in the same run: ``os.scandir`` and ``stat`` of each image and label. The second table is
the memory of a training's processes after its first step: USS is what no other process shares, and PSS adds a
process's part of what several share, as those do that were forked.
"""

from __future__ import annotations

import argparse
import os
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import psutil

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.linked_data import PROJECT_DATA, link_data
from benchmarks.peers import (
    OWN,
    ProgramError,
    add_options,
    environment_of,
    find_programs,
    introduce,
    run_in_turn,
    table_head,
    table_rows,
)
from trainer.protocol import RunFiles, read_heartbeat

PROGRAM = "from yolo_launch.cli.main import main; main()"
FIGURES = {
    "first_scan_s": "first scan, s",
    "second_start_s": "second, s",
    "over_walk": "second over a bare walk",
    "epoch_start_s": "first batch, s",
    "uss": "USS, MiB",
    "pss": "PSS",
    "loader_uss": "a loader process: USS",
    "loader_pss": "PSS",
}
LIMIT_S = 1800.0
END_S = 60.0


def walk(data: Path) -> float:
    """Returns the seconds of a bare walk over the training split: every image and label is listed and looked at."""
    began_at = time.perf_counter()
    for kind in ("images", "labels"):
        with os.scandir(data.parent / kind / "train") as entries:
            for entry in entries:
                entry.stat()
    return time.perf_counter() - began_at


def memory_of_training(data: Path, image_size: int, folder: Path) -> dict[str, tuple[float, float]]:
    """Returns USS and PSS in MiB of launcher, worker and loader process after a first step. Raises ProgramError."""
    words = ["--data", str(data), "--cfg", "yolov5n", "--weights", "", "--imgsz", str(image_size), "--batch", "16"]
    words += ["--epochs", "1", "--workers", "1", "--gpus", "cpu", "--noplots", "--nosave", "--noval"]
    command = [sys.executable, "-c", PROGRAM, "train", *words, "--noautoanchor", "--project", "runs"]
    environ = environment_of(folder, True, None)
    with (folder / "output").open("w") as output:
        launcher = subprocess.Popen(command, cwd=folder, env=environ, stdout=output, stderr=output)
    try:
        deadline = time.monotonic() + LIMIT_S
        while time.monotonic() < deadline and launcher.poll() is None:
            beat = read_heartbeat(RunFiles(folder / "runs" / "exp").logs, 0)
            if beat is not None and beat.finished_a_step:
                return memory_of_processes(launcher.pid, beat.pid)
            time.sleep(0.1)
        raise ProgramError(f"no step of the training was seen: {(folder / 'output').read_text()[-500:]}")
    finally:
        end(launcher)


def memory_of_processes(launcher: int, worker: int) -> dict[str, tuple[float, float]]:
    """Returns USS and PSS in MiB of the two, and of the worker's largest child."""
    found = {"launcher": memory_of(psutil.Process(launcher)), "worker": memory_of(psutil.Process(worker))}
    loaders = [memory_of(child) for child in psutil.Process(worker).children(recursive=True)]
    return {**found, "loader process": max(loaders)} if loaders else found


def memory_of(process: psutil.Process) -> tuple[float, float]:
    seen = process.memory_full_info()
    return seen.uss / 2**20, seen.pss / 2**20


def end(launcher: subprocess.Popen) -> None:
    """Ends a training as Ctrl-C does, or by force if it does not listen."""
    if launcher.poll() is None:
        launcher.send_signal(signal.SIGTERM)
    try:
        launcher.wait(END_S)
    except subprocess.TimeoutExpired:
        launcher.kill()
        launcher.wait()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", default=str(PROJECT_DATA), help="the set whose pictures are linked to")
    parser.add_argument("--sizes", type=int, nargs="+", default=[1000, 10000], help="numbers of training images")
    parser.add_argument("--imgsz", type=int, default=320)
    add_options(parser)
    options = parser.parse_args()
    programs = find_programs(options.peer_python)
    introduce(programs, options.repeats, f"links to pictures of {Path(options.data).stem}, {options.imgsz} pixels")
    print("\n".join(table_head("images", FIGURES)), flush=True)
    memories: list[str] = []
    for size in options.sizes:
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name)
            data = link_data(options.data, folder / "data", train_paths=size)
            settings = {"data": str(data), "imgsz": options.imgsz, "batch": 16}

            def measure(program, data=data, settings=settings):
                for cache in data.parent.rglob("*.cache"):
                    cache.unlink()  # or a peer's first scan would be its second
                found = program.ask("growth", settings, limit_s=LIMIT_S)
                walked = statistics.median(walk(data) for _ in range(3))
                return {**found, "over_walk": found["second_start_s"] / walked, "walk_s": walked}

            results = run_in_turn(programs, measure, options.repeats)
            first = f"{size} (walk {results[OWN].median('walk_s'):.3f} s)"
            print("\n".join(table_rows(results, list(FIGURES), by="second_start_s", first=first)), flush=True)
            for kind, (uss, pss) in memory_of_training(data, options.imgsz, folder).items():
                memories.append(f"| {size} | {kind} | {uss:.0f} | {pss:.0f} |")
    print("\n| images | process of a training | USS, MiB | PSS, MiB |\n|---|---|---|---|")
    print("\n".join(memories))


if __name__ == "__main__":
    main()

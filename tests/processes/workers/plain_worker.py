"""A worker without torch that keeps the trainer's protocol and fails as it is told.

Each step beats the heartbeat; rank 0 keeps the step in a file, from which a restart goes on.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import sys
import time
import traceback
from pathlib import Path

from trainer.runtime.process_guard import guard_worker, loader_init

RANK = int(os.environ.get("RANK", "0"))


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    parser.add_argument("run_dir", type=Path)
    parser.add_argument("--steps", type=int, default=1_000_000)
    parser.add_argument("--step-s", type=float, default=0.02)
    parser.add_argument("--on-term", choices=("save", "ignore", "default"), default="save")
    parser.add_argument("--save-s", type=float, default=0.0)
    parser.add_argument("--fail-rank", type=int, default=-1)
    parser.add_argument("--fail-step", type=int, default=3)
    parser.add_argument("--fail-times", type=int, default=1_000_000)
    parser.add_argument("--fail-how", default="raise")
    parser.add_argument("--stuck-loaders", type=int, default=0)
    parser.add_argument("--plain-children", type=int, default=0)
    parser.add_argument("--silent", action="store_true")
    return parser.parse_args()


def beat(options: argparse.Namespace, phase: str, step: int) -> None:
    if options.silent:
        return
    path = options.run_dir / "logs" / f"rank{RANK}.heartbeat.json"
    content = {"rank": RANK, "pid": os.getpid(), "phase": phase, "epoch": 0, "step": step, "time": time.time()}
    temporary = path.with_suffix(".tmp")
    temporary.write_text(json.dumps(content))
    temporary.replace(path)


def write_error(error: BaseException, step: int, user_error: dict[str, str] | None = None) -> None:
    extra = {"py_callstack": traceback.format_exc(), "timestamp": str(int(time.time()))}
    content = {
        "message": {"message": f"{type(error).__name__}: {error}", "extraInfo": extra},
        "user_error": user_error,
        "rank": RANK,
        "epoch": 0,
        "step": step,
    }
    Path(os.environ["TORCHELASTIC_ERROR_FILE"]).write_text(json.dumps(content))


def start_stuck_loaders(count: int, guarded: bool = True) -> None:
    """Children in the worker's session that are in the middle of an endless item; foreign ones have no guard."""
    for number in range(count):
        if os.fork() == 0:
            if guarded:
                loader_init(number)
            hang_in_a_lock()


def fail(how: str, step: int) -> None:
    if how == "raise":
        raise ValueError(f"box 7 of image 12 is wrong (rank {RANK})")
    if how == "user":
        four = {
            "kind": "DataError",
            "what": "the data set has no labels",
            "seen": "0 files",
            "expected": "text files in labels/",
            "next_command": "yolo-launch doctor --data my.yaml",
        }
        write_error(RuntimeError("the data set has no labels"), step, four)
        sys.exit(2)
    if how == "hang":
        hang_in_a_lock()
    if how == "fail-then-hang":
        try:
            raise ValueError("the disk is gone")
        except ValueError as error:
            write_error(error, step)
        hang_in_a_lock()
    if how.startswith("exit"):
        os._exit(int(how[4:]))
    os.kill(os.getpid(), getattr(signal, how))
    time.sleep(60)


def peers_have_begun(run_dir: Path) -> bool:
    return all((run_dir / f"ready{rank}").exists() for rank in range(int(os.environ.get("WORLD_SIZE", "1"))))


def hang_in_a_lock() -> None:
    while True:
        time.sleep(3600)


def main() -> int:
    guard_worker()
    options = parse()
    stop: list[int] = []
    if options.on_term == "save":
        signal.signal(signal.SIGTERM, lambda number, frame: stop.append(number))
        signal.signal(signal.SIGUSR1, lambda number, frame: stop.append(number))
    elif options.on_term == "ignore":
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1):
            signal.signal(number, signal.SIG_IGN)
    start_stuck_loaders(options.stuck_loaders)
    start_stuck_loaders(options.plain_children, guarded=False)
    saved = options.run_dir / "step.txt"
    failures = options.run_dir / f"failures{RANK}.txt"
    first = int(saved.read_text()) if saved.exists() else 0
    print(f"rank {RANK} begins at step {first}", flush=True)
    print(f"rank {RANK} warns", file=sys.stderr, flush=True)
    step = first
    try:
        for step in range(first, options.steps):
            beat(options, "train", step)
            (options.run_dir / f"ready{RANK}").touch()
            if options.fail_rank == RANK and step >= options.fail_step:
                so_far = len(failures.read_text()) if failures.exists() else 0
                if so_far < options.fail_times:
                    failures.write_text("x" * (so_far + 1))
                    fail(options.fail_how, step)
            if stop:
                beat(options, "save", step)
                time.sleep(options.save_s)
                (options.run_dir / f"saved{RANK}").write_text(str(step))
                return 75
            time.sleep(options.step_s)
            if RANK == 0 and options.fail_times < 100 and peers_have_begun(options.run_dir):
                # No further, so that a slow peer still finds steps to fail in.
                saved.write_text(str(min(step + 1, 20)))
    except Exception as error:
        write_error(error, step)
        traceback.print_exc()
        return 1
    beat(options, "done", step)
    return 0


if __name__ == "__main__":
    sys.exit(main())

"""A worker that trains nothing but is real: gloo all-reduces, and a DataLoader whose items can get stuck."""

from __future__ import annotations

import argparse
import os
import signal
import sys
import time
from datetime import timedelta
from pathlib import Path

from tests.processes.workers.plain_worker import beat, write_error
from trainer.runtime.process_guard import guard_worker, loader_init

RANK = int(os.environ.get("RANK", "0"))


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    parser.add_argument("run_dir", type=Path)
    parser.add_argument("--steps", type=int, default=1_000_000)
    parser.add_argument("--fail-rank", type=int, default=-1)
    parser.add_argument("--fail-step", type=int, default=3)
    parser.add_argument("--fail-how", default="raise")
    parser.add_argument("--fail-times", type=int, default=1_000_000)
    parser.add_argument("--loaders", type=int, default=0)
    parser.add_argument("--stuck-after", type=int, default=1_000_000)
    parser.add_argument("--stuck-rank", type=int, default=-1)
    parser.add_argument("--silent", action="store_true")
    return parser.parse_args()


def train(options: argparse.Namespace, at_step: list[int]) -> int:
    import torch
    import torch.distributed as dist
    from torch.utils.data import DataLoader, Dataset

    class Items(Dataset):  # type: ignore[type-arg]
        def __len__(self) -> int:
            return 1_000_000

        def __getitem__(self, index: int) -> float:
            if index >= options.stuck_after and options.stuck_rank in (RANK, -1):
                (options.run_dir / f"stuck{RANK}").touch()
                time.sleep(3600)
            return 4.0

    stop: list[int] = []
    signal.signal(signal.SIGTERM, lambda number, frame: stop.append(number))
    several = "WORLD_SIZE" in os.environ
    if several:
        dist.init_process_group("gloo", timeout=timedelta(seconds=60))
    # Plain numbers: of a tensor, a killed loader may leave a handle that nobody can take any more, and then torch says
    # EOFError instead of who died.
    loader = DataLoader(Items(), num_workers=options.loaders, worker_init_fn=loader_init, collate_fn=sum)
    items = iter(loader)
    failures = options.run_dir / f"failures{RANK}.txt"
    for step in range(options.steps):
        at_step[:] = [step]
        beat(options, "train", step)
        (options.run_dir / f"ready{RANK}").touch()
        total = torch.tensor(next(items) + bool(stop))
        if options.fail_rank == RANK and step >= options.fail_step:
            so_far = len(failures.read_text()) if failures.exists() else 0
            if so_far < options.fail_times:
                failures.write_text("x" * (so_far + 1))
                if options.fail_how == "raise":
                    raise ValueError("no such class: 99")
                os.kill(os.getpid(), getattr(signal, options.fail_how))
        if several:
            dist.all_reduce(total)
        if total > 4 * int(os.environ.get("WORLD_SIZE", "1")):
            next(items)  # a save needs its loaders
            (options.run_dir / f"saved{RANK}").write_text(str(step))
            return 75
        time.sleep(0.02)
    if several:
        dist.barrier()
        dist.destroy_process_group()
    return 0


def main() -> int:
    guard_worker()
    options = parse()
    at_step = [0]
    try:
        return train(options, at_step)
    except Exception as error:
        # torch raises in the main thread, wherever that is, for each loader that ends: here too, as the others end now.
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        write_error(error, at_step[0])
        raise


if __name__ == "__main__":
    sys.exit(main())

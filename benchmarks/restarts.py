"""How many of N restarts succeed: two gloo workers, one of which fails once in every attempt but the last.

    python benchmarks/restarts.py --restarts 20

Each restart is a new elastic agent with a new store. Inside one agent a restart meets the keys of the round before,
and stock torch 2.15 managed 5 of 8.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
import time
from datetime import timedelta
from pathlib import Path

PROJECT_DIR = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(PROJECT_DIR))
STEPS = 3


def worker(run_dir: Path, failures: int) -> None:
    """Reduce over the ranks for a few steps; rank 1 fails after the first, so many times in all."""
    import torch
    import torch.distributed as dist

    from trainer.protocol import RunFiles
    from trainer.runtime.heartbeat import HeartbeatWriter
    from trainer.runtime.process_guard import guard_worker

    guard_worker()
    rank = int(os.environ["RANK"])
    heartbeat = HeartbeatWriter(RunFiles(run_dir).logs, rank, interval_s=0.0)
    began_at = time.monotonic()
    dist.init_process_group("gloo", timeout=timedelta(seconds=60))
    with (run_dir / f"joined{rank}.txt").open("a") as stream:
        stream.write(f"{time.monotonic() - began_at:.3f}\n")
    count = run_dir / "failures.txt"
    so_far = int(count.read_text()) if count.exists() else 0
    for step in range(STEPS):
        try:
            dist.all_reduce(torch.ones(1))
        except RuntimeError:
            os._exit(1)  # the peer is gone, as it should be
        heartbeat.beat("train", 0, step + 1)
        if rank == 1 and so_far < failures:
            count.write_text(str(so_far + 1))
            os._exit(7)
    dist.barrier()
    dist.destroy_process_group()


def main() -> int:
    """Run one job with so many failures and print what came of it."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--restarts", type=int, default=20)
    parser.add_argument("--as-worker", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.as_worker:
        worker(options.as_worker, options.restarts)
        return 0

    import torch

    from yolo_launch.host.inventory import inspect_host
    from yolo_launch.planning.plan import make_plan
    from yolo_launch.spec import LaunchRequest, WorkerCommand
    from yolo_launch.supervision.supervisor import launch

    request = LaunchRequest(gpus="cpu", nproc=2, global_batch_size=2, max_restarts=options.restarts)
    plan = make_plan(request, inspect_host())
    with tempfile.TemporaryDirectory() as folder:
        run_dir = Path(folder)
        arguments = (__file__, "--restarts", str(options.restarts), "--as-worker", folder)
        began_at = time.monotonic()
        outcome = launch(plan, WorkerCommand(arguments), run_dir, say=lambda line: None)
        elapsed_s = time.monotonic() - began_at
        joined = [float(line) for line in (run_dir / "joined0.txt").read_text().split()]
    succeeded = len(joined) - 1
    print("| torch | restarts | formed a group again | slowest join, s | s an attempt | outcome |")
    print("|---|---|---|---|---|---|")
    print(
        f"| {torch.__version__} | {options.restarts} | {succeeded} | {max(joined):.2f} "
        f"| {elapsed_s / len(joined):.1f} | {outcome.kind} |"
    )
    return 0 if succeeded == options.restarts and outcome.kind == "done" else 1


if __name__ == "__main__":
    sys.exit(main())

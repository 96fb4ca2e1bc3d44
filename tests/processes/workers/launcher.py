"""A launcher process for tests: builds a plan from its arguments, runs it, and writes the outcome as JSON."""

from __future__ import annotations

import argparse
import json
import sys
from dataclasses import asdict
from pathlib import Path

from yolo_launch.cli import report
from yolo_launch.spec import Device, LaunchPlan, WorkerCommand
from yolo_launch.supervision.limits import Limits
from yolo_launch.supervision.supervisor import launch


def make_plan(nproc: int, max_restarts: int = 0, stall_s: float = 300.0, port: int | None = None) -> LaunchPlan:
    return LaunchPlan(
        mode="ddp" if nproc > 1 else "single",
        nnodes=1,
        node_rank=0,
        nproc_per_node=nproc,
        world_size=nproc,
        global_batch_size=nproc,
        local_batch_size=1,
        devices=(Device("cpu"),) * nproc,
        backend="gloo",
        threads_per_rank=1,
        workers_per_rank=0,
        environment={"OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo"},
        removed_environment=(),
        port=port,
        max_restarts=max_restarts,
        stall_timeout_s=stall_s,
    )


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("--nproc", type=int, default=1)
    parser.add_argument("--run-dir", type=Path, required=True)
    parser.add_argument("--max-restarts", type=int, default=0)
    parser.add_argument("--stall-s", type=float, default=300.0)
    parser.add_argument("--port", type=int)
    parser.add_argument("--limits", default="{}", help="JSON")
    parser.add_argument("--foreign", action="store_true")
    parser.add_argument("--json", action="store_true")
    parser.add_argument("worker", nargs=argparse.REMAINDER)
    options = parser.parse_args()
    plan = make_plan(options.nproc, options.max_restarts, options.stall_s, options.port)
    command = WorkerCommand(tuple(options.worker), foreign=options.foreign)
    outcome = launch(
        plan,
        command,
        options.run_dir,
        console_json=options.json,
        say=lambda text: print(text, file=sys.stderr, flush=True),
        limits=Limits(**json.loads(options.limits)),
    )
    facts = {**asdict(outcome), "torch_loaded": "torch" in sys.modules}
    (options.run_dir / "outcome.json").write_text(json.dumps(facts), encoding="utf-8")
    lines = report.lines(outcome, plan, options.run_dir, "yolo-launch train")
    print(report.title(outcome, plan), *lines, sep="\n", file=sys.stderr)
    return outcome.exit_code


if __name__ == "__main__":
    sys.exit(main())

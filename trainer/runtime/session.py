"""Begins and ends a worker process of val, predict and export: its rank, its reports, its end."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch

from trainer.protocol import EXIT_DONE, RunFiles
from trainer.runtime.distributed import Collectives, DistEnv, process_group
from trainer.runtime.failure_report import report_failure
from trainer.runtime.heartbeat import HeartbeatWriter
from trainer.runtime.reporter import Reporter


@dataclass(frozen=True)
class Session:
    """One process of a job that uses a trained model."""

    collectives: Collectives
    device: torch.device
    run_dir: Path
    reporter: Reporter
    heartbeat: HeartbeatWriter


def run_entry(work: Callable[[Session], None], run_dir: Path) -> int:
    """Do ``work`` as one rank of the job that the environment describes; the exit code.

    A failure is described in the file that the launcher named; without a launcher a mistake of the user's goes to
    stderr. A defect shows its traceback either way.
    """
    env, reporter, heartbeat = DistEnv(), None, None
    try:
        env = DistEnv.from_environ()
        logs = RunFiles(run_dir).logs
        logs.folder.mkdir(parents=True, exist_ok=True)
        heartbeat = HeartbeatWriter(logs, env.rank)
        heartbeat.beat("start")
        reporter = Reporter(enabled=env.is_main, log_path=logs.log(0))
        device = env.device()
        with process_group(env, device):
            work(Session(Collectives(env), device, run_dir, reporter, heartbeat))
        heartbeat.beat("done")
        return EXIT_DONE
    except Exception as error:
        return report_failure(error, env, reporter, heartbeat)

"""Begins and ends a worker process of val, predict and export: its arguments, its rank, its reports, its end."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from trainer.errors import UserError
from trainer.protocol import EXIT_DONE, EXIT_USAGE, RunFiles
from trainer.runtime.process_guard import guard_worker

if TYPE_CHECKING:
    import torch

    from trainer.runtime.distributed import Collectives
    from trainer.runtime.heartbeat import HeartbeatWriter
    from trainer.runtime.reporter import Reporter

C = TypeVar("C")


@dataclass(frozen=True)
class Session:
    """One process of a job that uses a trained model."""

    collectives: Collectives
    device: torch.device
    run_dir: Path
    reporter: Reporter
    heartbeat: HeartbeatWriter


def run_worker(
    program: str,
    duty: str,
    read: Callable[[Path], C],
    work: Callable[[Session, C], None],
    arguments: Sequence[str] | None,
) -> int:
    """Does ``work`` as the command line ``CONFIG --run-dir DIR`` of ``program`` says; returns the exit code.

    ``duty`` is what its help says that it does.
    """
    parser = argparse.ArgumentParser(prog=f"python -m {program}", description=f"{duty} as one worker.")
    parser.add_argument("config", type=Path, help="a configuration that yolo-launch wrote, or one by hand")
    parser.add_argument("--run-dir", type=Path, required=True, help="folder of results, logs and summary")
    options = parser.parse_args(arguments)
    guard_worker(RunFiles(options.run_dir).logs.folder)
    try:
        config = read(options.config)
    except UserError as error:
        print(error, file=sys.stderr)
        return EXIT_USAGE
    return run_entry(lambda session: work(session, config), options.run_dir)


def run_entry(work: Callable[[Session], None], run_dir: Path) -> int:
    """Does ``work`` as one rank of the job that the environment describes; returns the exit code.

    A failure is described in the file that the launcher named; without a launcher a mistake of the user's goes to
    stderr. A defect shows its traceback either way.
    """
    # Only now, so that a mistake in the configuration is answered at once: importing torch takes seconds.
    from trainer.runtime.distributed import Collectives, DistEnv, process_group
    from trainer.runtime.failure_report import report_failure
    from trainer.runtime.heartbeat import HeartbeatWriter
    from trainer.runtime.reporter import Reporter

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

"""Runs one worker: from configuration and environment to a trained model or one described failure."""

from __future__ import annotations

import os
import signal
from pathlib import Path
from types import FrameType

import torch

from trainer.config.train import TrainConfig
from trainer.evaluation.validator import ValidationStopped
from trainer.protocol import EXIT_DONE, EXIT_SAVED_AND_STOPPED, RunFiles
from trainer.runtime.distributed import Collectives, DistEnv, process_group
from trainer.runtime.failure_report import report_failure
from trainer.runtime.heartbeat import HeartbeatWriter
from trainer.runtime.reporter import Reporter
from trainer.runtime.unloaded_compiler import leave_compiler_unloaded, use_deterministic_algorithms
from trainer.training.build import build_run
from trainer.training.loop import fit
from trainer.training.resume import find_saved, resume
from trainer.training.run import Run
from trainer.training.summary import draw_start, finish_run, keep_weights


def main(config: TrainConfig, run_dir: Path) -> int:
    """Trains as one rank of the job that the environment describes; returns the exit code."""
    env, reporter, heartbeat = DistEnv(), None, None
    try:
        env = DistEnv.from_environ()
        files = RunFiles(run_dir)
        files.make_folders()
        heartbeat = HeartbeatWriter(files.logs, env.rank)
        heartbeat.beat("start")
        reporter = Reporter(enabled=env.is_main, log_path=files.logs.log(0))
        device = env.device()
        if not config.compile:
            leave_compiler_unloaded()
        set_determinism(device, config.deterministic, fixed_shapes=not (config.multi_scale or config.rect))
        with process_group(env, device):
            finished = train(config, env, device, run_dir, reporter, heartbeat)
        heartbeat.beat("done")
        return EXIT_DONE if finished else EXIT_SAVED_AND_STOPPED
    except Exception as error:
        return report_failure(error, env, reporter, heartbeat)


def train(
    config: TrainConfig,
    env: DistEnv,
    device: torch.device,
    run_dir: Path,
    reporter: Reporter,
    heartbeat: HeartbeatWriter,
) -> bool:
    """Builds, resumes, fits and finishes; False if a signal asked to stop and the state is saved."""
    saved = find_saved(RunFiles(run_dir).weights, Collectives(env), reporter)
    run, data = build_run(config, env, device, run_dir, reporter, heartbeat, saved)
    _stop_on_signals(run)
    resume(run, saved)
    del saved
    draw_start(run, data, run_dir, pictures=config.plots)
    finished = fit(run)
    keep_weights(run, finished=finished)
    if finished:
        try:
            finish_run(run, data, run_dir, pictures=config.plots)
        except ValidationStopped:
            finished = False
    run.results.close()
    return finished


def set_determinism(device: torch.device, deterministic: bool, *, fixed_shapes: bool = True) -> None:
    """Makes a CPU do every sum in a fixed order, at no cost worth naming; on CUDA only if ``deterministic``."""
    if device.type == "cpu" or deterministic:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
        use_deterministic_algorithms()
        # Filling memory that is about to be overwritten anyway costs 6 % of a step.
        torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]
    # Each new shape costs a search for the fastest algorithm.
    torch.backends.cudnn.benchmark = device.type == "cuda" and not deterministic and fixed_shapes


def _stop_on_signals(run: Run) -> None:
    """Makes SIGTERM, SIGUSR1 and Ctrl-C ask for a save and a stop at the next update, which all ranks then share.

    A second Ctrl-C ends at once.
    """

    def request_stop(number: int, frame: FrameType | None) -> None:
        run.local_requests.stop_requested = True
        signal.signal(signal.SIGINT, signal.SIG_DFL)

    for name in ("SIGTERM", "SIGUSR1", "SIGINT"):
        if hasattr(signal, name):
            signal.signal(getattr(signal, name), request_stop)

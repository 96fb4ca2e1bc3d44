"""Runs one worker without an agent: in a child that is watched like any other, or in this process itself."""

from __future__ import annotations

import os
import runpy
import subprocess
import sys
from collections.abc import Callable

from trainer.protocol import ERROR_FILE_VARIABLE
from yolo_launch.errors import ExitCode, LaunchError
from yolo_launch.spec import Outcome, WorkerCommand
from yolo_launch.workers.files import WorkerFiles


def run_child(
    command: WorkerCommand, files: WorkerFiles, *, rank0_to_stderr: bool, started: Callable[[int, int], None]
) -> int:
    """Runs the worker to its end and returns its exit code; ``started(rank, pid)`` is called at once.

    The child leads a session of its own, so the terminal's Ctrl-C reaches the launcher alone. Torch is not imported
    here. Raises LaunchError when the interpreter cannot be started.
    """
    environment = {**os.environ, ERROR_FILE_VARIABLE: str(files.error(0).absolute())}
    try:
        child = subprocess.Popen(
            [sys.executable, "-u", *command.arguments],
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=2 if rank0_to_stderr else None,
            start_new_session=True,
        )
    except OSError as error:
        raise LaunchError(
            "the worker cannot be started",
            seen=str(error),
            expected=f"a Python interpreter at {sys.executable}",
            exit_code=ExitCode.ENVIRONMENT,
        ) from error
    started(0, child.pid)
    return child.wait()


def run_inline(command: WorkerCommand) -> Outcome:
    """Runs the worker in this process, for a debugger; its exceptions pass through."""
    arguments = list(command.arguments)
    module = arguments[:1] == ["-m"]
    target, *rest = arguments[1:] if module else arguments
    saved = sys.argv
    sys.argv = [target, *rest]
    try:
        if module:
            runpy.run_module(target, run_name="__main__", alter_sys=True)
        else:
            runpy.run_path(target, run_name="__main__")
    except SystemExit as ended:
        code = ended.code if isinstance(ended.code, int) else int(ended.code is not None)
        if code == ExitCode.SAVED_AND_STOPPED:
            return Outcome("saved_and_stopped", code)
        if code != 0:
            return Outcome("worker_failed", code)
    finally:
        sys.argv = saved
    return Outcome("done", ExitCode.DONE)

"""Runs one worker without an agent: in a child that is watched like any other, or in this process itself."""

from __future__ import annotations

import os
import runpy
import subprocess
import sys
from collections.abc import Callable, Mapping

from trainer.protocol import ERROR_FILE_VARIABLE
from yolo_launch.errors import ExitCode, LaunchError
from yolo_launch.spec import Outcome, WorkerCommand
from yolo_launch.workers.files import WorkerFiles
from yolo_launch.workers.rank0_output import Rank0Output


def run_child(
    command: WorkerCommand,
    files: WorkerFiles,
    output: Rank0Output,
    *,
    environment: Mapping[str, str],
    started: Callable[[int, int], None],
) -> int:
    """Runs the worker to its end and returns its exit code; ``started(rank, pid)`` is called at once.

    The child leads a session of its own, so the terminal's Ctrl-C reaches the launcher alone. ``environment`` is added
    to this process's own. Torch is not imported here. Raises LaunchError when the interpreter cannot be started.
    """
    error_file = {ERROR_FILE_VARIABLE: str(files.error(0).absolute())}
    try:
        child = subprocess.Popen(
            [sys.executable, "-u", *command.arguments],
            env={**os.environ, **environment, **error_file},
            stdin=None if command.foreign else subprocess.DEVNULL,
            stdout=output.stdout,
            stderr=output.stderr,
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

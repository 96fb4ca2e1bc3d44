"""Lets a command outlive its terminal: what it refuses is said there, and once its run exists it goes on without it."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import sys
from collections.abc import Mapping
from pathlib import Path
from types import FrameType
from typing import NoReturn

from yolo_launch.cli.conclude import conclude
from yolo_launch.cli.console import Console
from yolo_launch.errors import ExitCode, LaunchError
from yolo_launch.jobs.run_directory import launcher_log, writing_to
from yolo_launch.spec import Ready, nobody_waits


def detached(asked: bool, console: Console) -> Ready:
    """Returns what a job calls once it can go on alone. With ``--detach`` the rest of the command is another process.

    That process has a session of its own, so no terminal ends it. This one waits until the job calls, says what to
    type next, and ends; if the job ends before, so does this one, with its exit code.
    Raises LaunchError where nothing may outlive the command.
    """
    if not asked:
        return nobody_waits
    refuse_to_detach(os.environ, os.getpid())
    for stream in (sys.stdout, sys.stderr):
        stream.flush()
    reader, writer = os.pipe()
    # The terminal may be closed between the two calls that leave it; from then on nothing hangs up.
    hangup = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    child = os.fork()  # before anything has started a thread
    if child:
        signal.signal(signal.SIGHUP, hangup)
        os.close(writer)
        _wait_for(child, reader, console)
    os.close(reader)
    os.setsid()

    def ready(run_dir: Path) -> None:
        log = launcher_log(run_dir)
        with writing_to(run_dir):
            log.parent.mkdir(parents=True, exist_ok=True)
            _turn_output_to(log)
        started = {"run_dir": str(run_dir), "pid": os.getpid(), "log": str(log)}
        with contextlib.suppress(BrokenPipeError), os.fdopen(writer, "w") as pipe:  # the terminal may be closed already
            json.dump(started, pipe)

    return ready


def refuse_to_detach(environ: Mapping[str, str], pid: int) -> None:
    """Raises LaunchError where the end of this process ends all that it has started, and where none can be left."""
    reasons = {
        "a task of Slurm, which ends all that the task has started": "SLURM_STEP_ID" in environ,
        "the first process of a container, which ends with it": pid == 1,
        f"{sys.platform}, where a process cannot be left behind": not hasattr(os, "fork"),
    }
    for reason, is_so in reasons.items():
        if is_so:
            raise LaunchError("--detach cannot work here.", seen=reason, expected="a shell", next_command="without it")


def _turn_output_to(log: Path) -> None:
    with log.open("ab") as file, open(os.devnull, "rb") as nothing:
        os.dup2(nothing.fileno(), 0)
        for stream in (sys.stdout, sys.stderr):
            stream.flush()
            os.dup2(file.fileno(), stream.fileno())


def _wait_for(child: int, reader: int, console: Console) -> NoReturn:
    def pass_on(signum: int, frame: FrameType | None) -> None:
        os.kill(child, signum)

    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, pass_on)  # the terminal's Ctrl-C reaches this session alone
    with os.fdopen(reader, "rb") as pipe:
        told = pipe.read()
    if not told:
        status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        conclude(console, status if status >= 0 else 128 - status, result=None)
    started = json.loads(told)

    def show() -> None:
        run_dir = started["run_dir"]
        console.line(f"{run_dir} goes on without this terminal, as PID {started['pid']}")
        steps = [["see it", f"yolo-launch attach {run_dir}"], ["end it", f"yolo-launch stop {run_dir}"]]
        console.table("", (), steps)

    conclude(console, ExitCode.DONE, result=started, show=show)

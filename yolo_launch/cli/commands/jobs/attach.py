"""Runs ``yolo-launch attach RUN``: shows what a run says and how far it is, until it ends."""

from __future__ import annotations

import os
import shutil
import sys
from dataclasses import asdict
from typing import NoReturn

import typer

from yolo_launch.cli.conclude import conclude
from yolo_launch.cli.console import Console
from yolo_launch.errors import ExitCode
from yolo_launch.jobs.follow import Glance, glances, log_of
from yolo_launch.jobs.run_directory import find_run, read_outcome
from yolo_launch.request.machine_options import AttachOptions
from yolo_launch.words import fitted

_EVERY_S = 0.5


def attach(ctx: typer.Context, options: AttachOptions) -> None:
    """Follows the run; its launcher's exit code is this command's. Ctrl-C ends this command alone."""
    console = Console(json_mode=options.json)
    run_dir = find_run(options.project, options.run)
    follower = _Follower(console)
    console.note(f"{run_dir}, from {log_of(run_dir)}")
    try:
        for glance in glances(run_dir, lines=options.lines, every_s=_EVERY_S):
            follower.show(glance)
    except KeyboardInterrupt:
        follower.clear()
        console.note(f"{run_dir} goes on; yolo-launch stop {run_dir} ends it")
        conclude(console, ExitCode.DONE, result=None)
    follower.clear()
    outcome = read_outcome(run_dir)
    _conclude(glance, outcome, console)


def _conclude(last: Glance, outcome: dict[str, object], console: Console) -> NoReturn:
    run = last.overview
    code = outcome.get("exit_code")
    if not isinstance(code, int):
        # Nobody is left who could say; only a killed launcher writes nothing.
        code = ExitCode.DONE if run.state == "done" else ExitCode.WORKER_FAILED
    best = "" if run.map5095 is None else f", best mAP50-95 {run.map5095:.3f}"
    after = f"; yolo-launch train --resume {run.run_dir} goes on with it" if run.state == "unfinished" else ""
    epochs = f" after {run.epoch} of {run.epochs} epochs" if run.epochs else ""
    conclude(
        console,
        code,
        result={**asdict(run), "outcome": outcome.get("outcome"), "exit_code": int(code)},
        show=lambda: console.note(f"{run.run_dir} is {run.state}{epochs}{best}{after}"),
    )


class _Follower:
    """Prints lines, and on a terminal keeps one below them that says how far the run is."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._is_terminal = sys.stderr.isatty() and os.environ.get("TERM") != "dumb"
        self._drawn = False

    def show(self, glance: Glance) -> None:
        """Prints what is new, and draws the line anew."""
        if glance.lines:
            self.clear()
        for text in glance.lines:
            self._console.line(text)
        if self._is_terminal:
            sys.stderr.write("\r\x1b[K" + fitted(glance.progress, shutil.get_terminal_size().columns))
            sys.stderr.flush()
            self._drawn = True

    def clear(self) -> None:
        """Takes the line away."""
        if self._drawn:
            sys.stderr.write("\r\x1b[K")
            sys.stderr.flush()
            self._drawn = False

"""Runs ``python -m trainer CONFIG --run-dir DIR``: one worker, started by a launcher or by hand."""

from __future__ import annotations

import argparse
import contextlib
import os
import sys
from pathlib import Path
from typing import NoReturn

from trainer.config.fields import read_options
from trainer.config.train import make_config
from trainer.errors import UserError
from trainer.protocol import CONFIG_FILE, EXIT_FAILED, EXIT_USAGE, PARENT_VARIABLE, RunFiles
from trainer.runtime.process_guard import guard_worker

FAILED = (EXIT_FAILED, EXIT_USAGE)


def run(arguments: list[str] | None = None) -> int:
    """Parses the command line and trains; returns the exit code."""
    parser = argparse.ArgumentParser(prog="python -m trainer", description="Train as one worker.")
    parser.add_argument("config", type=Path, help=f"a run's {CONFIG_FILE}")
    parser.add_argument("--run-dir", type=Path, required=True, help="where the run writes, and resumes from")
    parser.add_argument("--data", help="the same data set at another path of this machine")
    parser.add_argument("--val-data", help="the same of its validation split")
    parser.add_argument("--workers", type=int, help="loader processes of this worker")
    options = parser.parse_args(arguments)
    guard_worker(RunFiles(options.run_dir).logs.folder)
    try:
        values = read_options(options.config)
        values.update(
            {name: value for name in ("data", "val_data", "workers") if (value := getattr(options, name)) is not None}
        )
        config = make_config(values)
    except UserError as error:
        print(error, file=sys.stderr)
        return EXIT_USAGE
    # Only now, so that a mistake in the configuration is answered at once.
    from trainer.training.worker import main

    return main(config, options.run_dir)


def leave(exit_code: int, *, watched: bool) -> NoReturn:
    """Ends this process. A watched worker that has written everything exits at once.

    Taking torch apart lasted up to 4 s on a busy machine: longer than the grace of a Ctrl-C, so that a launcher saw a
    kill though the state was saved. A failed worker ends in the usual way, and so does one inside another program.
    """
    if watched and exit_code not in FAILED:
        for stream in (sys.stdout, sys.stderr):
            with contextlib.suppress(OSError, ValueError):
                stream.flush()
        os._exit(exit_code)
    sys.exit(exit_code)


if __name__ == "__main__":
    has_launcher = PARENT_VARIABLE in os.environ  # the guard takes it away
    leave(run(), watched=has_launcher)

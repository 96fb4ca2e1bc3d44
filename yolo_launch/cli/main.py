"""Runs the program ``yolo-launch``: calls its commands, and turns errors into messages and exit codes."""

from __future__ import annotations

import contextlib
import io
import logging
import os
import shlex
import signal
import sys
from collections.abc import Sequence
from types import FrameType
from typing import Annotated, NoReturn

import typer

import trainer
from trainer.errors import UserError
from trainer.protocol import EXIT_USAGE
from yolo_launch.cli.command_table import CommandGroup
from yolo_launch.cli.console import Console
from yolo_launch.cli.typed_command import own_words
from yolo_launch.errors import ExitCode, LaunchError

AGENT_MODULE = "yolo_launch.workers.elastic_agent"
"""Imported, with torch, if several workers were started."""
COMMAND_MODULE = "yolo_launch.cli.conclude"
"""Loaded by every command that does something."""
DEBUG_VARIABLE = "YOLO_LAUNCH_DEBUG"

app = typer.Typer(
    name="yolo-launch",
    cls=CommandGroup,
    help="Train YOLOv5-class detectors on every device you have.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _show_version(asked: bool) -> None:
    if asked:
        Console().line(f"yolo-launch {trainer.__version__}")
        raise typer.Exit


@app.callback()
def _program(
    _version: Annotated[
        bool, typer.Option("--version", help="show the version and exit", is_eager=True, callback=_show_version)
    ] = False,
) -> None:
    """Takes the program's own options; ``--version`` is answered before a command is missed."""


def run_program(arguments: Sequence[str]) -> int:
    """Runs one command line and returns its exit code. A mistake of the user's is shown without a traceback."""
    own = own_words(arguments)
    debug = "--debug" in own or bool(os.environ.get(DEBUG_VARIABLE))
    logging.basicConfig(level=logging.DEBUG if debug else logging.WARNING, format="%(levelname)s: %(message)s")
    try:
        app(args=list(arguments), prog_name="yolo-launch")
    except LaunchError as error:
        _explain(error, arguments, debug=debug, as_json="--json" in own, exit_code=error.exit_code)
        return error.exit_code
    except UserError as error:
        _explain(error, arguments, debug=debug, as_json="--json" in own, exit_code=EXIT_USAGE)
        return EXIT_USAGE
    except SystemExit as end:
        return _exit_code(end)
    return ExitCode.DONE


def make_streams_usable() -> None:
    """Gives the process the three streams that everything expects, and lets no text or failing log message end it.

    A closed descriptor (``>&-``) would be given to the next file that is opened, which would then get the output.
    """
    for descriptor in range(3):
        try:
            os.fstat(descriptor)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # takes the lowest number that is free: this one
    sys.stdout = sys.stdout or os.fdopen(1, "w", closefd=False)
    sys.stderr = sys.stderr or os.fdopen(2, "w", closefd=False)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")  # a path's signs that the terminal's encoding does not have
    logging.raiseExceptions = False  # a log on a full disk


def _leave(signum: int, frame: FrameType | None) -> NoReturn:
    raise SystemExit(128 + signum)


def main() -> None:
    """Runs the console script: the command line of this process, and its exit."""
    make_streams_usable()
    if os.getpid() == 1:
        # The first process of a container gets no signal that it has no handler for.
        signal.signal(signal.SIGTERM, _leave)
    exit_code = run_program(sys.argv[1:])
    if AGENT_MODULE in sys.modules or COMMAND_MODULE not in sys.modules:
        # All workers have ended and all is said, or help was shown: taking the modules apart would keep the user
        # waiting, with torch for seconds.
        for stream in (sys.stdout, sys.stderr):
            with contextlib.suppress(OSError, ValueError):
                stream.flush()
        os._exit(exit_code)
    sys.exit(exit_code)


def _explain(
    error: LaunchError | UserError, arguments: Sequence[str], *, debug: bool, as_json: bool, exit_code: int
) -> None:
    if debug:
        logging.getLogger(__name__).debug("traceback", exc_info=error)
    console = Console(json_mode=as_json)
    is_refused_one = error.next_command == shlex.join(("yolo-launch", *arguments))
    next_command = shlex.join(("yolo-launch", *arguments[:1], "--help")) if is_refused_one else error.next_command
    parts = {"seen": error.seen, "expected": error.expected, "next_command": next_command}
    console.error(error.what, **parts)
    if as_json:
        console.json({"error": {"what": error.what, **parts}, "exit_code": int(exit_code)})


def _exit_code(end: SystemExit) -> int:
    if end.code is None:
        return ExitCode.DONE
    return end.code if isinstance(end.code, int) else ExitCode.WORKER_FAILED

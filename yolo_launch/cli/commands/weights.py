"""``yolo-launch weights FILE``: what is in a weights file, and its conversion into this project's own."""

from __future__ import annotations

import inspect
import json
import os
import subprocess
import sys
from typing import Annotated, Any

import typer

from yolo_launch.cli.console import Console
from yolo_launch.cli.model_command import InferenceCommand, check_weights_file
from yolo_launch.cli.typer_options import with_options
from yolo_launch.errors import ExitCode, LaunchError
from yolo_launch.host.inventory import INSTALLED_ONLY
from yolo_launch.request.options import DEBUG, JSON, Option

WEIGHTS_OPTIONS = (
    Option("convert", ("--convert",), "write weights of yolo-launch: OUT.pt or OUT.safetensors", str, metavar="OUT"),
    JSON,
    DEBUG,
)
_FILE = inspect.Parameter(
    "file",
    inspect.Parameter.KEYWORD_ONLY,
    annotation=Annotated[str, typer.Argument(metavar="FILE", help="a .pt or .safetensors file")],
)


def register(app: typer.Typer) -> None:
    """Add the command."""
    text = "Say what is in a weights file; with --convert, write it as weights of yolo-launch."
    app.command("weights", cls=InferenceCommand, help=text)(weights)


@with_options(WEIGHTS_OPTIONS, _FILE)
def weights(ctx: typer.Context, **values: Any) -> None:
    """Read the file in a process of its own, since a foreign file is not to be trusted with this one."""
    console = Console(json_mode=bool(values["json"]))
    path = check_weights_file(values["file"], "weights")
    command = [sys.executable, "-m", "trainer.weights.inspect"]
    if values["convert"]:
        command += ["--convert", values["convert"]]
    command += ["--json"] * console.json_mode + ["--", str(path)]
    # With --json both streams are read, so that the answer is one object here as with every command.
    captured = subprocess.PIPE if console.json_mode else None
    environment = {**os.environ, **INSTALLED_ONLY}
    child = subprocess.run(
        command, env=environment, stdin=subprocess.DEVNULL, stdout=captured, stderr=captured, text=True, check=False
    )
    if console.json_mode:
        if child.returncode == ExitCode.USAGE:
            raise _refusal(child.stderr)
        if child.returncode == 0:
            console.json(json.loads(child.stdout))
        else:
            console.note(child.stderr.rstrip())
    if child.returncode:
        raise typer.Exit(child.returncode if child.returncode > 0 else 128 - child.returncode)


def _refusal(text: str) -> LaunchError:
    """The worker's refusal as the launcher's own error."""
    try:
        error = json.loads(text.strip().splitlines()[-1])["error"]
        return LaunchError(
            error["what"], seen=error["seen"], expected=error["expected"], next_command=error["next_command"]
        )
    except (ValueError, KeyError, IndexError, TypeError):
        return LaunchError(text.strip() or "The weights file was refused.")

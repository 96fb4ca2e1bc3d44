"""Runs ``yolo-launch weights FILE``: says what is in a weights file, or converts it into this project's own format."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import typer

from yolo_launch.cli.conclude import conclude
from yolo_launch.cli.console import Console
from yolo_launch.cli.model_command import check_weights_file
from yolo_launch.errors import ExitCode, LaunchError
from yolo_launch.host.inventory import INSTALLED_ONLY
from yolo_launch.request.inference_options import WeightsOptions


def weights(ctx: typer.Context, options: WeightsOptions) -> None:
    """Reads the file in another process, since a foreign file is not to be trusted with this one."""
    console = Console(json_mode=options.json)
    path = check_weights_file(options.file, "weights")
    command = [sys.executable, "-m", "trainer.weights.inspect"]
    if options.convert:
        command += ["--convert", options.convert]
    if console.json_mode:
        command.append("--json")
    command += ["--", str(path)]
    # With --json both streams are read, so that the answer is one object here as with every command.
    captured = subprocess.PIPE if console.json_mode else None
    environment = {**os.environ, **INSTALLED_ONLY}
    child = subprocess.run(
        command, env=environment, stdin=subprocess.DEVNULL, stdout=captured, stderr=captured, text=True, check=False
    )
    result = None
    if console.json_mode:
        if child.returncode == ExitCode.USAGE:
            raise _refusal(child.stderr)
        if child.returncode == 0:
            result = json.loads(child.stdout)
        else:
            console.note(child.stderr.rstrip())
    exit_code = child.returncode if child.returncode >= 0 else 128 - child.returncode
    conclude(console, exit_code, result=result)


def _refusal(text: str) -> LaunchError:
    """Returns the worker's refusal as the launcher's own error."""
    try:
        error = json.loads(text.strip().splitlines()[-1])["error"]
        return LaunchError(
            error["what"], seen=error["seen"], expected=error["expected"], next_command=error["next_command"]
        )
    except (ValueError, KeyError, IndexError, TypeError):
        return LaunchError(text.strip() or "The weights file was refused.")

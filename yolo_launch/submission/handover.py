"""Writes a job's file, and hands it to sbatch or kubectl."""

from __future__ import annotations

import itertools
import re
import shlex
import shutil
import subprocess
from pathlib import Path

from yolo_launch.errors import ExitCode, LaunchError

_FOLDER = Path("runs", "submit")
_ANSWER_S = 120.0
"""Seconds in which sbatch or kubectl has to answer: both wait for a server that may be away."""


def write_job_file(name: str, suffix: str, text: str) -> Path:
    """Writes the job's file and returns its path; a file of another text keeps its name. Raises LaunchError."""
    try:
        _FOLDER.mkdir(parents=True, exist_ok=True)
        for number in itertools.count(1):
            path = _FOLDER / f"{name}{'' if number == 1 else number}{suffix}"
            try:
                with path.open("x", encoding="utf-8") as file:
                    file.write(text)
            except FileExistsError:
                if path.read_text(encoding="utf-8", errors="replace") != text:
                    continue
            break
    except OSError as error:
        raise LaunchError(
            "The job's file cannot be written, so nothing was submitted.",
            seen=f"{_FOLDER}: {error.strerror or error}",
            expected="a folder that can be written to",
            exit_code=ExitCode.ENVIRONMENT,
        ) from None
    return path


def submit_to_slurm(path: Path) -> str:
    """Returns the number of the Slurm job that sbatch made of a batch file. Raises LaunchError."""
    answer = _answer_of(("sbatch", "--parsable", str(path)), path, "squeue --me")
    lines = [line.partition(";")[0].strip() for line in answer.splitlines()]
    numbers = [line for line in lines if re.fullmatch(r"\d+", line)]
    if not numbers:
        raise LaunchError(
            "sbatch named no job.",
            seen=repr(answer[:200]),
            expected="the number of a job",
            next_command="squeue --me",
            exit_code=ExitCode.ENVIRONMENT,
        )
    return numbers[-1]


def submit_to_kubernetes(path: Path, namespace: str | None) -> str:
    """Returns what kubectl says of the objects that it made of manifests. Raises LaunchError."""
    inside = ("--namespace", namespace) if namespace else ()
    # Not apply: a job of this name that runs already must not be changed.
    command = ("kubectl", "create", *inside, "--filename", str(path))
    return _answer_of(command, path, shlex.join(("kubectl", "get", *inside, "--filename", str(path))))


def _answer_of(command: tuple[str, ...], path: Path, look: str) -> str:
    """Returns a program's output. ``look`` shows whether something was submitted. Raises LaunchError."""
    program, typed = command[0], shlex.join(command)
    if shutil.which(program) is None:
        raise LaunchError(
            f"{program} is not on this machine; {path} is written, and nothing was submitted.",
            seen=f"no {program} on the PATH",
            expected=f"a machine with {program}, which sees the same files",
            next_command=typed,
            exit_code=ExitCode.ENVIRONMENT,
        )
    try:
        ended = subprocess.run(
            command,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=_ANSWER_S,
            check=False,
        )
    except subprocess.TimeoutExpired:
        raise LaunchError(
            f"{program} gave no answer; {path} is written, and may have been submitted.",
            seen=f"nothing in {_ANSWER_S:g} s from {typed}",
            expected="an answer of the cluster",
            next_command=look,
            exit_code=ExitCode.ENVIRONMENT,
        ) from None
    except OSError as error:
        raise LaunchError(
            f"{program} cannot be started; {path} is written, and nothing was submitted.",
            seen=str(error),
            expected=f"a {program} that runs",
            next_command=typed,
            exit_code=ExitCode.ENVIRONMENT,
        ) from None
    if ended.returncode:
        raise LaunchError(
            f"{program} refused {path}.",
            seen=(ended.stderr or ended.stdout).strip()[-2000:] or f"exit code {ended.returncode}",
            expected="a job that the cluster takes",
            next_command=typed,
            exit_code=ExitCode.ENVIRONMENT,
        )
    return ended.stdout.strip()

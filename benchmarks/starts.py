"""How long the launcher takes to show its help, beside the libraries that draw it alone and the peers' help.

    python benchmarks/starts.py [--peer-python PYTHON]

Every program is started in turn, so that a busy neighbor hits all alike; medians are printed, and ratios to the first.
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.peers import OWN, ProgramError, add_options, environment_of, find_programs, introduce

PROGRAM = "import sys; from yolo_launch.cli.main import main; main()"
STARTS = {
    "typer and rich alone": ("-c", "import typer, rich.console"),
    "yolo-launch --help": ("-c", PROGRAM, "--help"),
    "yolo-launch train --help": ("-c", PROGRAM, "train", "--help"),
    "yolo-launch run --help": ("-c", PROGRAM, "run", "--help"),
    "yolo-launch plan --gpus cpu": ("-c", PROGRAM, "plan", "--gpus", "cpu"),
}


def commands_of(programs) -> dict[str, list[str]]:
    """Every start by its name in the table; of the peers that of their documented command."""
    commands = {name: [sys.executable, *words] for name, words in STARTS.items()}
    for program in programs[1:]:
        folder = Path(program.python).parent
        is_yolov5 = program.name.startswith("YOLOv5")
        words = [str(folder / "yolov5"), "train", "--help"] if is_yolov5 else [str(folder / "yolo"), "help"]
        commands[f"{program.name}: `{' '.join([Path(words[0]).name, *words[1:]])}`"] = words
    return commands


def seconds_of(command: list[str], folder: Path) -> float:
    """How long one start takes by the clock. Raises ProgramError."""
    environ = environment_of(folder, command[0] == sys.executable, None)
    environ.pop("PYTHONDONTWRITEBYTECODE", None)  # an installed program has its byte code
    began_at = time.perf_counter()
    try:
        subprocess.run(command, env=environ, check=True, capture_output=True, timeout=120, cwd=folder)
    except (OSError, subprocess.SubprocessError) as error:
        raise ProgramError(f"failed: {error}") from error
    return time.perf_counter() - began_at


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_options(parser, repeats=9)
    options = parser.parse_args()
    programs = find_programs(options.peer_python)
    seconds: dict[str, list[float]] = {}
    failed: dict[str, str] = {}
    with tempfile.TemporaryDirectory() as folder:
        commands = commands_of(programs)
        for turn in range(options.repeats + 1):
            for name, command in commands.items():
                try:
                    if name not in failed:
                        found = seconds_of(command, Path(folder))
                        seconds.setdefault(name, []).extend([found] if turn else [])  # the first writes byte code
                except ProgramError as error:
                    if OWN in name:
                        raise
                    failed[name] = f"peer: {error}"
    introduce(programs, options.repeats, "From the start of the process to its end")
    print("| program | seconds | ratio |\n|---|---|---|")
    base = statistics.median(next(iter(seconds.values())))
    for name in commands:
        median = statistics.median(seconds[name]) if name not in failed else 0.0
        print(f"| {name} | " + (f"{failed[name]} | |" if name in failed else f"{median:.3f} | {median / base:.2f} |"))


if __name__ == "__main__":
    main()

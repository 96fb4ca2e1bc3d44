"""How long it takes from a typed command to what its user waits for: the first step, one picture's boxes, an answer.

    python benchmarks/first_steps.py --data bccd.yaml --weights yolov5n.pt --picture PICTURE [--peer-python PYTHON]

Every command is started in turn, so that a busy neighbor hits all alike; medians are printed, and ratios to the first
of each table. A training has come to its first step when each rank's heartbeat says so, and is then ended.
"""

from __future__ import annotations

import argparse
import os
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.peers import OWN, ProgramError, add_options, environment_of, find_programs, introduce
from trainer.protocol import RunFiles, read_heartbeat

PROGRAM = ("-c", "import sys; from yolo_launch.cli.main import main; main()")
GROUP = "import torch, torch.distributed as dist\ndist.init_process_group('gloo')\nprint('group', flush=True)\n"
LIMIT_S = 300.0


@dataclass(frozen=True)
class Command:
    """One line of a table, and how to tell that it has come to its end."""

    name: str
    words: list[str]
    reached: Callable[[subprocess.Popen[str], Path], None]
    is_own: bool = True


def ended(process: subprocess.Popen[str], folder: Path) -> None:
    """Waits until the process is over. Raises ProgramError if it fails."""
    _, complaint = process.communicate(timeout=LIMIT_S)
    if process.returncode != 0:
        raise ProgramError(f"exit code {process.returncode}: {complaint.strip()[-300:]}")


def groups_made(process: subprocess.Popen[str], folder: Path) -> None:
    """Waits until both workers of torchrun have their group."""
    assert process.stdout is not None
    for _ in range(2):
        process.stdout.readline()


def first_step(ranks: int) -> Callable[[subprocess.Popen[str], Path], None]:
    """Returns what waits until every rank of a training has finished a step."""

    def reached(process: subprocess.Popen[str], folder: Path) -> None:
        files, deadline = RunFiles(folder / "run").logs, time.monotonic() + LIMIT_S
        while time.monotonic() < deadline and process.poll() is None:
            beats = [read_heartbeat(files, rank) for rank in range(ranks)]
            if all(beat is not None and beat.finished_a_step for beat in beats):
                return
            time.sleep(0.005)
        raise ProgramError(f"no first step; exit code {process.poll()}")

    return reached


def seconds_of(command: Command) -> float:
    """How long one start takes by the clock. Raises ProgramError."""
    with tempfile.TemporaryDirectory(prefix="yolo-launch-bench-") as name:
        folder = Path(name)
        (folder / "group.py").write_text(GROUP)
        environ = environment_of(folder, command.is_own, None)
        environ.pop("PYTHONDONTWRITEBYTECODE", None)
        words = [word.replace("FOLDER", name) for word in command.words]
        began_at = time.perf_counter()
        process = subprocess.Popen(
            words,
            env=environ,
            cwd=folder,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )
        try:
            command.reached(process, folder)
            return time.perf_counter() - began_at
        finally:
            if process.poll() is None:
                process.send_signal(signal.SIGINT)
            process.communicate(timeout=LIMIT_S)


def tables(options: argparse.Namespace) -> dict[str, list[Command]]:
    """Every table by its title; its first line is what the others are compared to."""
    own = [sys.executable, *PROGRAM]
    train = [*own, "train", "--data", os.path.abspath(options.data), "--gpus", "cpu", "--cfg", "yolov5n"]
    train += ["--imgsz", "320", "--batch", "16", "--epochs", "1", "--noplots", "--project", "FOLDER", "--name", "run"]
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node", "2", "group.py"]
    weights, picture = os.path.abspath(options.weights), os.path.abspath(options.picture)
    predict = [Command(f"{OWN} predict", [*own, "predict", "--weights", weights, picture, "--gpus", "cpu"], ended)]
    for program in find_programs(options.peer_python)[1:]:
        folder = Path(program.python).parent
        if program.name.startswith("YOLOv5"):
            words = [str(folder / "yolov5"), "detect", "--weights", weights, "--source", picture, "--device", "cpu"]
        else:  # it reads no checkpoint of YOLOv5's: the same network without what it learned
            words = [str(folder / "yolo"), "predict", "model=yolov5n.yaml", f"source={picture}", "device=cpu"]
        predict.append(Command(f"{program.name}: `{' '.join([Path(words[0]).name, words[1]])}`", words, ended, False))
    return {
        "To the first step, two workers": [
            Command("torchrun, a script that makes a group", torchrun, groups_made),
            Command(f"{OWN} train", [*train, "--nproc", "2"], first_step(2)),
        ],
        "To the first step, one worker": [
            Command("python -c 'import torch'", [sys.executable, "-c", "import torch"], ended),
            Command(f"{OWN} train", train, first_step(1)),
        ],
        "One picture, from start to end": predict,
        "An answer": [
            Command("python -c 'import torch'", [sys.executable, "-c", "import torch"], ended),
            Command(f"{OWN} doctor", [*own, "doctor"], ended),
        ],
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", required=True, help="a data-set YAML")
    parser.add_argument("--weights", required=True, help="a checkpoint of YOLOv5n")
    parser.add_argument("--picture", required=True)
    add_options(parser, repeats=5)
    options = parser.parse_args()
    introduce(find_programs(options.peer_python), options.repeats, "From the start of the command")
    for title, commands in tables(options).items():
        seconds: dict[str, list[float]] = {command.name: [] for command in commands}
        failed: dict[str, str] = {}
        for turn in range(options.repeats + 1):
            for command in (one for one in commands if one.name not in failed):
                try:
                    found = seconds_of(command)
                    seconds[command.name] += [found] if turn else []  # the first writes byte code
                except ProgramError as error:
                    if command.is_own:
                        raise
                    failed[command.name] = f"peer: {error}"
        print(f"\n| {title} | seconds | ratio |\n|---|---|---|")
        base = statistics.median(seconds[commands[0].name])
        for name, values in seconds.items():
            median = statistics.median(values) if values and name not in failed else 0.0
            print(
                f"| {name} | " + (f"{failed[name]} | |" if name in failed else f"{median:.2f} | {median / base:.2f} |")
            )


if __name__ == "__main__":
    main()

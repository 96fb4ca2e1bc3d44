"""The image's command as PID 1: read-only root, 64 MB of shared memory, a user without a name, the time of one CPU."""

from __future__ import annotations

import signal
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.image.conftest import USER, Container

pytestmark = pytest.mark.image

TRAINING = ("--data", "bccd/bccd.yaml", "--cfg", "yolov5n", "--imgsz", "64", "--batch", "16")
CPU = ("--gpus", "cpu", "--nproc")
ORPHAN = """
import os, pathlib, sys, time
if os.fork() == 0:
    if os.fork() == 0:
        os.setsid()
        time.sleep(0.5)
        pathlib.Path("orphan").write_text(str(os.getppid()))
    os._exit(0)
os.wait()
for _ in range(300):  # until PID 1 has the orphan, and the orphan has ended and been waited for
    time.sleep(0.1)
    states = [path.read_text().rsplit(")", 1)[1].split()[0] for path in pathlib.Path("/proc").glob("[0-9]*/stat")]
    if os.path.exists("orphan") and "Z" not in states:
        sys.exit(9)
"""

Make = Callable[[], Container]


def test_the_container_is_what_it_is_said_to_be(container: Make):
    box = container()
    box.run("sh", "-c", "echo $$ $(id -u) $(id -un 2>&1); touch /x /tmp/x; df -k --output=size /dev/shm; echo $HOME.")
    assert f"1 {USER} id: cannot find name" in box.output
    assert box.output.count("Read-only file system") == 2
    assert "65536\n.\n" in box.output


def test_trains(container: Make):
    box = container()
    assert box.run("yolo-launch", "train", *TRAINING, "--epochs", "1", *CPU, "2", "--workers", "1") == 0, box.output
    assert len((box.work / "runs/train/exp/results.csv").read_text().splitlines()) == 2
    assert "2 workers share 1 core" in box.output  # the quota, on any machine
    assert not (box.work / "~").exists()


def test_trains_in_two_containers(container: Make, networks: tuple[str, str]):
    first, second = container(), container()
    node = ("yolo-launch", "node", "--master", "10.79.0.1", "--data", "bccd/bccd.yaml", *CPU, "1", "--workers", "0")
    learning = ("--nodes", "2", *TRAINING, "--noplots", "--epochs", "1")
    first.start(*node, "--rank", "0", *learning, network=networks[0])
    second.start(*node, "--rank", "1", network=networks[1])
    codes = [first.wait(), second.wait()]
    assert codes == [0, 0], first.output + second.output
    assert (first.work / "runs/train/exp/weights/last.pt").exists()


def test_sigterm_to_pid_1_saves(container: Make):
    box = container()
    box.start("yolo-launch", "train", *TRAINING, "--epochs", "300", *CPU, "1", "--workers", "1", "--noplots")
    box.wait_for("1/300")
    box.send(signal.SIGTERM)
    assert box.wait() == 75, box.output
    assert "stopped by SIGTERM with the state saved" in box.output
    assert (box.work / "runs/train/exp/weights/last.pt").exists()


def test_pid_1_waits_for_orphans_and_has_the_scripts_exit_code(container: Make):
    box = container()
    Path(box.work / "orphan.py").write_text(ORPHAN)
    code = box.run("yolo-launch", "run", *CPU, "1", "--max-restarts", "0", "orphan.py")
    assert "exit code 9" in box.output, box.output
    assert code == 1
    assert (box.work / "orphan").read_text() == "1"

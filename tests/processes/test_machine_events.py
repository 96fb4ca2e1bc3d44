"""What a machine does to a job: it pauses as a whole, leaves orphans to the launcher, is started several times."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time

import psutil
import pytest

from tests.processes.conftest import PROGRAM, PROJECT_DIR, wait_until

COMMAND = [sys.executable, *(["-P"] if sys.version_info >= (3, 11) else []), "-c", PROGRAM]
BEATS = """
import json, os, sys, time
beat = os.environ["YOLO_LOGS_DIR"] + "/rank0.heartbeat.json"
for step in range(1, 10_000):
    open(beat + ".tmp", "w").write(json.dumps({"phase": "train", "epoch": 0, "step": step}))
    os.replace(beat + ".tmp", beat)
    open("step", "w").write(str(step))
    if os.path.exists("end"):
        sys.exit(0)
    time.sleep(0.05)
"""


def write(job, text):
    job.run_dir.mkdir(parents=True, exist_ok=True)
    (job.run_dir / "script.py").write_text(text)


@pytest.mark.slow
def test_a_pause_of_the_whole_machine_is_no_stall(job):
    write(job, BEATS)
    job.start_program("run", "--gpus", "cpu", "--stall-timeout", "2", "script.py").wait_for("step")
    everyone = [job.process.pid, *(process.pid for process in job.alive())]
    for _ in range(3):
        for pid in everyone:
            os.kill(pid, signal.SIGSTOP)
        time.sleep(3)
        for pid in everyone:  # the launcher first: it wakes before anybody can have moved
            os.kill(pid, signal.SIGCONT)
        before = (job.run_dir / "step").read_text()
        wait_until(lambda before=before: (job.run_dir / "step").read_text() not in ("", before), 10, "it goes on")
    time.sleep(2.5)
    (job.run_dir / "end").touch()
    assert job.wait() == 0, job.stderr


def test_a_worker_that_alone_is_stopped_has_stalled(job):
    write(job, BEATS)
    job.start_program("run", "--gpus", "cpu", "--stall-timeout", "2", "script.py").wait_for("step")
    os.kill(job.worker().pid, signal.SIGSTOP)
    assert job.wait() == 4
    assert "the process is stopped (SIGSTOP or a debugger)" in job.stderr


ORPHANS = """
import os, sys, time
for _ in range(20):
    if os.fork() == 0:
        os.setsid()
        if os.fork() == 0:
            time.sleep(0.2)
        os._exit(0)
    os.wait()
time.sleep(1)  # now all of them have ended
open("forked", "w")
while not os.path.exists("end"):
    time.sleep(0.05)
"""


def test_adopted_orphans_do_not_stay_as_zombies(job):
    write(job, ORPHANS)
    job.start_program("run", "--gpus", "cpu", "script.py").wait_for("forked")

    def zombies():
        children = psutil.Process(job.process.pid).children()
        return [child for child in children if child.status() == psutil.STATUS_ZOMBIE]

    wait_until(lambda: not zombies(), 10, "zombies")
    (job.run_dir / "end").touch()
    assert job.wait() == 0


@pytest.mark.parametrize("command", [["train", "--epochs", "1"], ["run", "script.py"]], ids=["train", "run"])
def test_torchrun_around_the_launcher_is_noticed(tmp_path, command):
    (tmp_path / "script.py").write_text("print('trained')\n")
    launcher = tmp_path / "launcher.py"
    launcher.write_text(f"import sys\nsys.argv = ['yolo-launch', *{command!r}]\n{PROGRAM}\n")
    outer = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2", str(launcher)]
    environment = {**os.environ, "PYTHONPATH": str(PROJECT_DIR)}
    ended = subprocess.run(outer, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=120)
    assert ended.returncode != 0
    assert f"torchrun has started this yolo-launch {command[0]} as one of 2" in ended.stderr
    assert "trained" not in ended.stdout
    assert not (tmp_path / "runs").exists()


REFUSED = {
    "bad-weights": ["train", "--data", "{data}", "--weights", "bad.pt", "--gpus", "cpu"],
    "other-classes": ["val", "--data", "{data}", "--weights", "{weights}", "--split", "test", "--gpus", "cpu"],
    "no-picture": ["predict", "--weights", "{weights}", "nothing.jpg", "--gpus", "cpu"],
    "no-cfg": ["train", "--data", "{data}", "--cfg", "nothing.yaml", "--gpus", "cpu"],
    "no-script": ["run", "nothing.py"],
    "shell-script": ["run", "start.sh"],
    "notebook": ["run", "train.ipynb"],
    "folder": ["run", "folder"],
    "misplaced": ["run", "--data", "coco.yaml", "start.py"],
    "no-gpu": ["train", "--data", "{data}", "--gpus", "0-3"],
    "too-uneven": ["train", "--data", "{data}", "--gpus", "cpu", "--nproc", "2", "--batch", "7"],
    "no-run": ["train", "--resume", "nothing"],
    "habit": ["detect", "--weights", "w.pt"],
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_was_refused_leaves_nothing_and_is_not_proposed_again(tmp_path, name, bccd_yaml, detector):
    (tmp_path / "bad.pt").write_bytes(b"version https://git-lfs.github.com/spec/v1\nsize 42\n")
    (tmp_path / "start.sh").write_text("#!/bin/bash\npython train.py\n")
    (tmp_path / "train.ipynb").write_text("{}")
    (tmp_path / "folder").mkdir()
    typed = [word.format(data=bccd_yaml, weights=detector) for word in REFUSED[name]]
    environment = {**os.environ, "PYTHONPATH": str(PROJECT_DIR)}
    ended = subprocess.run(
        [*COMMAND, *typed], cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=120
    )
    assert ended.returncode in (2, 3), ended.stderr
    assert "Traceback" not in ended.stderr
    report = re.search(r"Next: +(.*)", ended.stderr)
    assert report is not None, ended.stderr
    assert report[1].split() != ["yolo-launch", *typed]
    left = [path for path in (tmp_path / "runs").rglob("*") if path.is_file()]
    assert left == []
    assert not (tmp_path / "runs/train/exp").exists()


def test_as_the_first_process_of_a_container_sigterm_ends_what_waits(tmp_path):
    if os.geteuid() != 0:
        pytest.skip("needs root for a namespace of processes")
    waiting = ["node", "--rank", "1", "--master", "192.0.2.1", "--join-timeout", "60", "--gpus", "cpu"]
    environment = {**os.environ, "PYTHONPATH": str(PROJECT_DIR)}
    inner = subprocess.Popen(
        ["unshare", "--pid", "--fork", "--kill-child", "--mount-proc", *COMMAND, *waiting],
        cwd=tmp_path,
        env=environment,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        time.sleep(5)
        (first,) = psutil.Process(inner.pid).children()
        os.kill(first.pid, signal.SIGTERM)
        assert inner.wait(20) == 128 + signal.SIGTERM
    finally:
        if inner.poll() is None:
            inner.kill()
            inner.wait()

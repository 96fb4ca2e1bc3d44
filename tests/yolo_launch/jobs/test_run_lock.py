"""One launcher a run, told by the lock of a process that lives."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from yolo_launch.errors import LaunchError
from yolo_launch.jobs import run_directory, run_lock

ENVIRONMENT = {**os.environ, "PYTHONPATH": str(Path(__file__).resolve().parents[3])}


def test_a_run_belongs_to_one_launcher_as_long_as_it_lives(tmp_path):
    code = (
        "import sys, pathlib, time; from yolo_launch.jobs.run_lock import hold\n"
        "with hold(pathlib.Path(sys.argv[1])): print('held', flush=True); time.sleep(60)"
    )
    holder = subprocess.Popen(
        [sys.executable, "-c", code, str(tmp_path)], stdout=subprocess.PIPE, text=True, env=ENVIRONMENT
    )
    try:
        assert holder.stdout.readline() == "held\n"
        assert run_lock.is_held(tmp_path)
        with pytest.raises(LaunchError, match="being trained right now") as caught, run_lock.hold(tmp_path):
            raise AssertionError("the run is held twice")
        assert caught.value.seen == f"held by PID {holder.pid} on {socket.gethostname()}"
    finally:
        holder.kill()
        holder.wait()
    assert not run_lock.is_held(tmp_path)
    with run_lock.hold(tmp_path):
        assert run_lock.is_held(tmp_path)
    assert not run_lock.is_held(tmp_path)


def test_how_the_last_launcher_ended_is_forgotten_when_another_begins(tmp_path):
    run_directory.write_outcome(tmp_path, {"outcome": "stalled", "exit_code": 4})
    assert run_directory.read_outcome(tmp_path) == {"outcome": "stalled", "exit_code": 4}
    with run_lock.hold(tmp_path):
        assert run_directory.read_outcome(tmp_path) == {}

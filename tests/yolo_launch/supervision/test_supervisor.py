"""Checks a launch on one node up to its first worker, and what a restart goes on from."""

from __future__ import annotations

import os
import socket
from dataclasses import replace

import pytest

from yolo_launch.errors import LaunchError
from yolo_launch.host.inventory import inspect_host
from yolo_launch.planning.plan import make_plan
from yolo_launch.spec import LaunchRequest, WorkerCommand
from yolo_launch.supervision.supervisor import launch, source_of_restart

COMMAND = WorkerCommand(("-c", "raise SystemExit('it was started')"))


def test_a_busy_port_names_its_holder(tmp_path):
    with socket.socket() as taken:
        taken.bind(("", 0))
        taken.listen()
        port = taken.getsockname()[1]
        plan = replace(make_plan(LaunchRequest(gpus="cpu", nproc=2), inspect_host()), port=port)
        with pytest.raises(LaunchError, match=f"port {port} is busy") as caught:
            launch(plan, COMMAND, tmp_path, say=print)
    assert f"PID {os.getpid()} (" in f"{caught.value.seen} {caught.value.what}"


def test_inline_runs_one_worker_only(tmp_path):
    plan = make_plan(LaunchRequest(gpus="cpu", nproc=2), inspect_host())
    with pytest.raises(LaunchError, match="--inline runs one worker"):
        launch(plan, COMMAND, tmp_path, say=print, inline=True)


def test_a_restart_says_what_it_goes_on_from(tmp_path):
    assert source_of_restart(tmp_path) == "from the first step: no checkpoint was written yet"
    assert source_of_restart(tmp_path, foreign=True) == "the script starts again"
    (tmp_path / "weights").mkdir()
    (tmp_path / "weights" / "last.pt").touch()
    assert source_of_restart(tmp_path) == f"going on from the newest good checkpoint in {tmp_path / 'weights'}"

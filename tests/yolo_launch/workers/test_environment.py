"""Checks what workers inherit: the plan's variables, and nothing of another launcher."""

from __future__ import annotations

import os

from yolo_launch.host.inventory import inspect_host
from yolo_launch.planning.plan import make_plan
from yolo_launch.spec import LaunchRequest
from yolo_launch.workers.environment import applied, child_environment
from yolo_launch.workers.files import WorkerFiles

LEFTOVERS = {"RANK": "3", "WORLD_SIZE": "8", "LOCAL_RANK": "3", "NODE_RANK": "1", "MASTER_ADDR": "far.away"}
LEFTOVERS |= {"PET_NNODES": "4", "TORCHELASTIC_RUN_ID": "other", "MASTER_PORT": "29500"}


def test_ranks_of_another_launcher_do_not_leak_in(tmp_path):
    plan = make_plan(LaunchRequest(gpus="cpu"), inspect_host())
    found = child_environment(plan, WorkerFiles(tmp_path), "mark", {**LEFTOVERS, "HOME": "/home/me"})
    assert not set(found) & set(LEFTOVERS)
    assert found["HOME"] == "/home/me"
    assert found["CUDA_VISIBLE_DEVICES"] == ""
    assert found["YOLO_LOGS_DIR"] == str(tmp_path / "logs")
    assert found["YOLO_PARENT_PID"] == str(os.getpid())
    assert "YOLO_TRAINER_OUTPUT" not in found


def test_json_on_stdout_sends_the_trainers_output_to_stderr(tmp_path):
    plan = make_plan(LaunchRequest(gpus="cpu"), inspect_host())
    found = child_environment(plan, WorkerFiles(tmp_path), "mark", {}, console_json=True)
    assert found["YOLO_TRAINER_OUTPUT"] == "stderr"


def test_an_environment_is_this_processs_own_for_a_while(monkeypatch):
    monkeypatch.setenv("ONLY_OUTSIDE", "1")
    before = dict(os.environ)
    with applied({"ONLY_INSIDE": "1"}):
        assert dict(os.environ) == {"ONLY_INSIDE": "1"}
    assert dict(os.environ) == before

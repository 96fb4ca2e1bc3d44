"""What is said of runs: of folders made by hand, and of a real training that is stopped and goes on."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from yolo_launch.errors import ExitCode, LaunchError
from yolo_launch.jobs import overview, run_lock

HEADER = "epoch,metrics/mAP_0.5,metrics/mAP_0.5:0.95\n"


def make_run(folder, *, epochs=None, rows=(), summary=False):
    folder.mkdir(parents=True)
    (folder / "plan.json").write_text("{}")
    if epochs is not None:
        (folder / "config.yaml").write_text(f"data: a.yaml\nepochs: {epochs}\nnominal: 3\n")
    if rows:
        (folder / "results.csv").write_text(HEADER + "".join(f"{epoch},0.5,{value}\n" for epoch, value in rows))
    if summary:
        (folder / "summary.json").write_text("{}")
    return folder


def test_states_epochs_and_the_best_are_read_from_the_folders(tmp_path):
    make_run(tmp_path / "train" / "a", epochs=3, rows=((0, "0.1"), (1, "0.30"), (2, "0.25")))
    make_run(tmp_path / "train" / "b", epochs=1, rows=((1, "0.4"),), summary=True)
    make_run(tmp_path / "run" / "c")
    make_run(tmp_path / "train" / "d", epochs=9)
    found = {Path(run.run_dir).name: run for run in overview.list_runs([tmp_path])}
    assert {name: (run.state, run.epoch, run.epochs, run.map5095) for name, run in found.items()} == {
        "a": ("unfinished", 2, 3, 0.3),
        "b": ("done", 1, 1, 0.4),
        "c": ("ended", 0, 0, None),
        "d": ("unfinished", 0, 9, None),
    }
    assert all(0 <= run.age_s < 60 for run in found.values())


def test_the_newest_comes_first_and_a_folder_may_be_given_twice(tmp_path):
    for number, name in enumerate("abc"):
        folder = make_run(tmp_path / name, epochs=1)
        os.utime(folder, (1000 + number, 1000 + number))
    found = overview.list_runs([tmp_path, tmp_path, tmp_path / "a"])
    assert [Path(run.run_dir).name for run in found] == ["c", "b", "a"]


def test_damaged_files_are_no_end(tmp_path):
    folder = make_run(tmp_path / "a", epochs=2)
    (folder / "results.csv").write_bytes(b"\xff\xfe\0")
    assert overview.look_at(folder).epoch == 0


def test_what_does_not_run_is_not_stopped(tmp_path):
    folder = make_run(tmp_path / "a", epochs=2)
    with pytest.raises(LaunchError, match="is not running"):
        overview.stop_run(folder, 1.0)


def test_a_run_of_another_machine_is_stopped_there(tmp_path):
    folder = make_run(tmp_path / "a", epochs=2)
    with run_lock.hold(folder):
        assert overview.look_at(folder).machine == socket.gethostname()
        (folder / run_lock.HOLDER_FILE).write_text("PID 1 on elsewhere\n")
        with pytest.raises(LaunchError, match="not run by this machine") as caught:
            overview.stop_run(folder, 1.0)
    assert caught.value.next_command == f"on elsewhere: yolo-launch stop {folder}"


def launch(folder, *words, **options):
    command = [sys.executable, "-m", "yolo_launch", *map(str, words)]
    return subprocess.Popen(command, cwd=folder, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, **options)


def listed(folder):
    output, _ = launch(folder, "runs", "--json").communicate(timeout=60)
    return json.loads(output)["runs"]


def test_a_training_is_listed_stopped_and_taken_up(tmp_path, bccd_yaml):
    options = ("--cfg", "yolov5n", "--imgsz", "32", "--batch", "8", "--gpus", "cpu", "--noplots", "--workers", "0")
    training = launch(tmp_path, "train", "--data", bccd_yaml, *options, "--epochs", "100")
    try:
        deadline = time.monotonic() + 120
        while not (found := listed(tmp_path)) or found[0]["epoch"] < 1:
            assert time.monotonic() < deadline, found
            assert training.poll() is None
            time.sleep(0.2)
        assert (found[0]["state"], found[0]["machine"]) == ("running", socket.gethostname())
        output, _ = launch(tmp_path, "stop", "exp").communicate(timeout=120)
        assert "has stopped; yolo-launch train --resume runs/train/exp goes on with it" in output
        assert training.wait(20) == ExitCode.SAVED_AND_STOPPED
    finally:
        training.kill()
        training.communicate()
    stopped = listed(tmp_path)[0]
    assert stopped["state"] == "unfinished"
    assert 1 <= stopped["epoch"] < 100
    assert (tmp_path / "runs" / "train" / "exp" / "weights" / "last.pt").is_file()

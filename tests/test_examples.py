"""The examples work: the tiny data set is a whole one, and the torchrun script runs as its own text says."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from trainer.data.dataset import load_dataset_file
from trainer.data.scan.scan import scan_split

PROJECT_DIR = Path(__file__).resolve().parents[1]
EXAMPLES = PROJECT_DIR / "examples"


@pytest.mark.parametrize(("split", "count"), [("train", 12), ("val", 4)])
def test_the_tiny_data_set_has_no_fault(split, count, tmp_path):
    dataset = load_dataset_file(EXAMPLES / "tiny" / "tiny.yaml")
    assert list(dataset.names) == ["mug", "fish", "star", "apple", "sign"]
    labeled, report = scan_split(dataset, split, num_classes=5, cache_dir=tmp_path)
    assert len(labeled.paths) == count
    assert report.problems() == []
    assert {int(row[0]) for boxes in labeled.boxes for row in boxes} == set(range(5))


def test_the_script_runs_as_one_rank():
    environ = {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "1", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "0"}
    losses = [loss_of(script("--steps", steps, environ=environ), ranks=1) for steps in ("1", "40")]
    assert losses[1] < 0.1 * losses[0]


@pytest.mark.slow
def test_the_script_runs_under_the_launcher(tmp_path):
    command = [sys.executable, "-m", "yolo_launch", "run", str(EXAMPLES / "ddp.py"), "--gpus", "cpu", "--nproc", "2"]
    environ = {**os.environ, "PYTHONPATH": str(PROJECT_DIR)}
    ended = subprocess.run(
        [*command, "--", "--steps", "40"], cwd=tmp_path, env=environ, capture_output=True, text=True, timeout=200
    )
    assert ended.returncode == 0, ended.stderr
    assert loss_of(ended.stdout, ranks=2) < 1.0


def script(*arguments, environ):
    command = [sys.executable, str(EXAMPLES / "ddp.py"), *arguments]
    environ = {**os.environ, **environ}
    return subprocess.run(command, env=environ, capture_output=True, text=True, timeout=200, check=True).stdout


def loss_of(text, *, ranks):
    (loss,) = re.findall(rf"{ranks} ranks, mean loss (\S+)", text)
    return float(loss)

"""The examples work: the tiny data set is a whole one, and the torchrun script runs as its own text says."""

from __future__ import annotations

import os
import re
import shlex
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
    text = script("--steps", "40", environ=environ)
    assert loss_of(text, ranks=1) < 1.0  # 14 at its start


@pytest.mark.slow
@pytest.mark.parametrize("word", ["yolo-launch train", "yolo-launch run"])
def test_the_commands_of_the_page_run_in_a_checkout(word, tmp_path):
    page = (EXAMPLES / "README.md").read_text(encoding="utf-8")
    (line,) = re.findall(rf"^{word} .*$", page, flags=re.MULTILINE)
    words = shlex.split(line)[1:]
    command = [sys.executable, "-m", "yolo_launch", words[0], "--project", str(tmp_path), *words[1:]]
    ended = subprocess.run(command, cwd=PROJECT_DIR, capture_output=True, text=True, timeout=300, check=False)
    assert ended.returncode == 0, ended.stderr
    if word == "yolo-launch train":
        assert (tmp_path / "exp" / "weights" / "best.pt").is_file()
    else:
        assert loss_of(ended.stdout, ranks=2) < 1.0


def script(*arguments, environ):
    command = [sys.executable, str(EXAMPLES / "ddp.py"), *arguments]
    environ = {**os.environ, **environ}
    return subprocess.run(command, env=environ, capture_output=True, text=True, timeout=200, check=True).stdout


def loss_of(text, *, ranks):
    (loss,) = re.findall(rf"{ranks} ranks, mean loss (\S+)", text)
    return float(loss)

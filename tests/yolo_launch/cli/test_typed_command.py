"""Commands as people type them for torchrun and YOLOv5: what the script gets, and what the launcher does."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest

from yolo_launch.cli.command_table import COMMANDS, load_command
from yolo_launch.cli.typed_command import own_words

PROBE = """
import argparse, json, os, sys
parser = argparse.ArgumentParser(description="the script's own help")
for name in ("--rank", "--gpus", "--nodes", "--batch", "--data", "--weights", "--device", "--cfg"):
    parser.add_argument(name)
parser.add_argument("--sync-bn", action="store_true")
parser.add_argument("--json", action="store_true")
parser.parse_args()
places = {name: os.environ[name] for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE")}
with open(f"seen{os.environ['RANK']}.json", "w") as file:
    json.dump({"arguments": sys.argv[1:], **places}, file)
"""


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "train.py").write_text(PROBE)
    return tmp_path


def run(folder, *typed):
    command = [sys.executable, "-m", "yolo_launch", "run", *typed]
    hidden = {**os.environ, "CUDA_VISIBLE_DEVICES": ""}  # whatever the machine has
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=120, env=hidden)


def seen(folder, rank=0):
    return json.loads((folder / f"seen{rank}.json").read_text())


def test_a_scripts_options_may_have_the_launchers_names(folder):
    own = ["--rank", "3", "--gpus", "7", "--nodes", "2", "--json"]
    ended = run(folder, "--gpus", "cpu", "train.py", *own)
    assert ended.returncode == 0, ended.stderr
    assert seen(folder)["arguments"] == own
    helped = run(folder, "--gpus", "cpu", "train.py", "--help")
    assert "the script's own help" in helped.stdout
    assert seen(folder)["arguments"] == own


def test_todays_order_stays(folder):
    ended = run(folder, "train.py", "--gpus", "cpu", "--nproc", "2", "--", "--gpus", "7")
    assert ended.returncode == 0, ended.stderr
    assert [seen(folder, rank)["arguments"] for rank in (0, 1)] == [["--gpus", "7"]] * 2
    assert seen(folder, 1)["WORLD_SIZE"] == "2"


ARTICLE = {
    "single": "train.py --batch 64 --data coco.yaml --weights yolov5s.pt --device 0",
    "DataParallel": "train.py --batch 64 --data coco.yaml --weights yolov5s.pt --device 0,1",
    "DDP": "--nproc_per_node 2 train.py --batch 64 --data coco.yaml --weights yolov5s.pt --device 2,3",
    "SyncBatchNorm": "--nproc_per_node 2 train.py --batch 64 --data coco.yaml --cfg yolov5s.yaml --sync-bn",
}
MACHINE = "--nproc_per_node 2 --nnodes 2 --node_rank 1 --master_addr 192.168.1.1 --master_port 1234"


@pytest.mark.parametrize("name", ARTICLE)
def test_the_articles_commands_run_as_written(folder, name):
    """With every GPU hidden, the words stay as they are."""
    ended = run(folder, *ARTICLE[name].split())
    assert ended.returncode == 0, ended.stderr
    own = ARTICLE[name].split("train.py ")[1].split()
    world = "2" if "nproc" in ARTICLE[name] else "1"
    assert (seen(folder)["arguments"], seen(folder)["WORLD_SIZE"]) == (own, world)


def test_the_articles_command_for_machines_is_that_of_node():
    node = load_command(next(entry for entry in COMMANDS if entry.name == "node"))
    typed = [*MACHINE.split(), "--batch", "64", "--data", "coco.yaml", "--cfg", "yolov5s.yaml", "--weights", ""]
    with node.make_context("node", typed) as context:
        found = {name: context.params[name] for name in ("nproc", "nodes", "rank", "master", "port", "cfg", "weights")}
    expected = {"nproc": 2, "nodes": "2", "rank": 1, "master": "192.168.1.1", "port": 1234}
    assert found == {**expected, "cfg": "yolov5s.yaml", "weights": ""}


def test_torchruns_options_without_a_meaning_are_noted_and_the_script_runs(folder):
    typed = "--standalone --rdzv_backend=c10d --rdzv-endpoint localhost:0 --monitor_interval 5 -r 3 --nproc_per_node=2"
    ended = run(folder, *typed.split(), "train.py", "--batch", "64")
    assert ended.returncode == 0, ended.stderr
    notes = [line.split()[1] for line in ended.stderr.splitlines() if line.startswith("note: ")]
    assert notes == ["--rdzv_backend", "--rdzv-endpoint", "--monitor_interval", "--redirects"]
    assert seen(folder, 1)["arguments"] == ["--batch", "64"]


def test_a_proposed_command_keeps_the_scripts_words(folder):
    ended = run(folder, "--gpus", "cpu", "train.py", "--gpus", "7", "--unknown")
    assert ended.returncode != 0
    assert not os.path.exists(folder / "seen0.json")
    assert "Next:     yolo-launch run --gpus cpu train.py -- --gpus 7 --unknown" in ended.stderr


@pytest.mark.parametrize(
    ("typed", "own"),
    [
        ("run --json a.py --debug", "run --json a.py"),
        ("run a.py --debug -- --json", "run a.py --debug"),
        ("train --data a.yaml --json", "train --data a.yaml --json"),
        ("", ""),
    ],
)
def test_the_launchers_own_words_end_with_the_script(typed, own):
    assert own_words(typed.split()) == own.split()

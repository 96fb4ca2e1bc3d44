"""Whose an option of ``submit`` is."""

from __future__ import annotations

import pytest

from yolo_launch.request.machine_options import RunOptions
from yolo_launch.request.node_options import NodeOptions
from yolo_launch.request.options import options_of
from yolo_launch.submission.submit_options import SLURM, SubmitOptions, own_and_others, typed_of


def flags_of(*kinds):
    return {flag for kind in kinds for one in options_of(kind) for flag in one.flags}


def test_few_names_are_both_submits_and_a_commands():
    """Another one would be taken from the command without a word."""
    shared = {"--nodes", "--dry-run", "--json", "--debug"}
    assert flags_of(SubmitOptions) & flags_of(NodeOptions, RunOptions) == shared


@pytest.mark.parametrize(
    ("typed", "own", "others"),
    [
        (
            "slurm train --data coco.yaml --nodes 4 --batch 8 --time=1:0:0 --dry-run",
            "slurm train --nodes 4 --time=1:0:0 --dry-run",
            "--data coco.yaml --batch 8",
        ),
        ("--json slurm node --gpus_per_node 2 --cfg yolov5n", "--json slurm node --gpus_per_node 2", "--cfg yolov5n"),
        ("--job-name big slurm train", "--job-name big slurm train", ""),
        (
            "slurm run --nodes 2 --gpus 0,1 train.py --nodes 7 --time 3 --dry-run",
            "slurm run --nodes 2",
            "--gpus 0,1 -- train.py --nodes 7 --time 3 --dry-run",
        ),
        ("slurm run train.py --nodes 2 -- --nodes 7", "slurm run --nodes 2", "train.py -- --nodes 7"),
        ("slurm run --nproc_per_node 2 train.py --help", "slurm run", "--nproc_per_node 2 -- train.py --help"),
        ("slurm", "slurm", ""),
        ("--help", "--help", ""),
        ("", "", ""),
    ],
)
def test_the_table_decides_and_a_scripts_words_stay_the_scripts(typed, own, others):
    found_own, found_others = own_and_others(typed.split(), lambda flag: flag in ("--gpus", "--nproc_per_node"))
    assert found_own == own.split()
    expected = others.split()
    if "train.py" in expected and expected[0] != "train.py":  # a script stands before the sign
        expected = [word for word in expected if word != "--"]
        expected.insert(expected.index("train.py") + 1, "--")
    assert found_others == expected


def test_what_was_typed_of_a_panel():
    assert typed_of(SubmitOptions(time="5", partition="x", image="y"), SLURM) == ["--time", "--partition"]
    assert typed_of(SubmitOptions(), SLURM) == []

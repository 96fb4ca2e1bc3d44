"""What a submitted job is, and what none can have."""

from __future__ import annotations

import pytest

from yolo_launch.errors import LaunchError
from yolo_launch.submission.job import make_submitted_job
from yolo_launch.submission.submit_options import SubmitOptions


def make(typed=None, words=(), scheduler="slurm", command="train", **options):
    return make_submitted_job(SubmitOptions(scheduler, command, tuple(words), **options), typed or {}, words)


@pytest.mark.parametrize(
    ("typed", "command", "name"),
    [
        ({"data": "/data/My_Cells v2.yaml"}, "train", "my-cells-v2"),
        ({"script": "train.py"}, "run", "train"),
        ({}, "node", "node"),
        ({"data": "___.yaml"}, "train", "train"),
        ({"data": "a" * 90}, "train", "a" * 40),
    ],
)
def test_a_job_is_named_after_its_subject(typed, command, name):
    assert make(typed, command=command).name == name


def test_train_becomes_node_and_a_range_is_elastic():
    job = make(nodes="2:4")
    assert (job.command, job.nodes, job.is_elastic, job.is_training) == ("node", (2, 4), True, True)
    assert not make(nodes="4").is_elastic
    assert not make(command="run").is_training


def test_a_configuration_file_counts_at_the_first_start_only():
    job = make(words=("--config", "a.yaml", "--batch", "8"))
    assert (job.fresh_only(), job.kept_words()) == (["--config", "a.yaml"], ["--batch", "8"])
    script = make(words=("train.py", "--", "--config", "a.yaml"), command="run")
    assert (script.fresh_only(), script.kept_words()) == ([], ["train.py", "--", "--config", "a.yaml"])


@pytest.mark.parametrize(
    ("more", "said"),
    [
        ({"scheduler": "pbs"}, "The scheduler cannot be used"),
        ({"command": "val"}, "The command to submit cannot be used"),
        ({"kind": "mpijob", "scheduler": "kubernetes"}, "--kind cannot be used"),
        ({"image": "x"}, "--image is an option of submit kubernetes"),
        ({"time": "5", "scheduler": "kubernetes"}, "--time is an option of submit slurm"),
        ({"typed": {"rank": 0}}, "--rank cannot be submitted: the scheduler numbers the machines"),
        ({"typed": {"master": "a"}}, "--master cannot be submitted"),
        ({"typed": {"resume": "newest"}}, "--project and --name of a run go on with that run"),
        ({"typed": {"token": "secret"}}, "a secret would stand in a file"),
        ({"gpus_per_node": 0}, "--gpus-per-node cannot be used"),
        ({"cpus_per_node": -1}, "--cpus-per-node cannot be used"),
        ({"nodes": "4:2"}, "--nodes cannot be used"),
        ({"job_name": "Big job"}, "--job-name cannot be used"),
    ],
)
def test_what_no_job_can_have_is_refused(more, said):
    with pytest.raises(LaunchError, match=said):
        make(**more)

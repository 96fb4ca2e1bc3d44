"""Several launchers that should be one, by the variables that each kind of starter sets."""

from __future__ import annotations

import pytest

from yolo_launch.checks.launchers import refuse_several_launchers
from yolo_launch.errors import LaunchError

STEP = {"SLURM_JOB_ID": "7", "SLURM_STEP_ID": "0", "SLURM_PROCID": "1", "SLURM_STEP_NUM_TASKS": "2"}


@pytest.mark.parametrize(
    ("environ", "started_by"),
    [
        ({"TORCHELASTIC_RUN_ID": "x", "RANK": "1", "WORLD_SIZE": "2"}, "torchrun"),
        (STEP, "srun"),
        ({"SLURM_STEP_ID": "3", "SLURM_PROCID": "0", "SLURM_NTASKS": "4"}, "srun"),
        ({"OMPI_COMM_WORLD_SIZE": "4", "OMPI_COMM_WORLD_RANK": "0"}, "mpirun"),
        ({"PMI_SIZE": "2", "PMI_RANK": "1"}, "mpirun"),
        ({"PET_NNODES": "2", "PET_NODE_RANK": "0"}, "a training operator"),
        ({"PET_NNODES": "1:4"}, "a training operator"),
        ({"RANK": "0", "WORLD_SIZE": "2", "MASTER_ADDR": "job-master-0", "MASTER_PORT": "23456"}, "another launcher"),
    ],
)
@pytest.mark.parametrize("command", ["train", "run", "val"])
def test_one_of_several_is_refused(environ, started_by, command):
    with pytest.raises(LaunchError) as caught:
        refuse_several_launchers(command, environ)
    assert caught.value.what.startswith(f"{started_by} has started this yolo-launch {command} as one of ")
    name, _, value = caught.value.seen.partition("=")
    assert environ[name] == value
    assert "unset" in caught.value.next_command


@pytest.mark.parametrize(
    "environ",
    [
        {},
        {"TORCHELASTIC_RUN_ID": "x", "RANK": "0", "WORLD_SIZE": "1"},
        {"SLURM_JOB_ID": "7", "SLURM_NTASKS": "4", "SLURM_PROCID": "0"},  # a batch script, which srun has not started
        {**STEP, "SLURM_STEP_ID": "4294967290"},  # a shell of salloc
        {**STEP, "SLURM_STEP_NUM_TASKS": "1"},
        {"OMPI_COMM_WORLD_SIZE": "1"},
        {"PET_NNODES": "1"},
        {"WORLD_SIZE": "8"},
        {"RANK": "0", "WORLD_SIZE": "1", "MASTER_ADDR": "a"},
        {"WORLD_SIZE": "many", "TORCHELASTIC_RUN_ID": "x"},
    ],
)
def test_one_alone_is_not(environ):
    refuse_several_launchers("train", environ)

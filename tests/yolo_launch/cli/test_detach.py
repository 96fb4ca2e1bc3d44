"""Where a command may not leave its terminal; tests/processes has it leave real ones."""

from __future__ import annotations

import pytest

from yolo_launch.cli.detach import refuse_to_detach
from yolo_launch.errors import LaunchError


@pytest.mark.parametrize(
    ("environ", "pid", "seen"),
    [({"SLURM_STEP_ID": "0"}, 77, "a task of Slurm"), ({}, 1, "the first process of a container")],
)
def test_nothing_is_left_where_its_end_comes_with_this_one(environ, pid, seen):
    with pytest.raises(LaunchError, match="cannot work here") as caught:
        refuse_to_detach(environ, pid)
    assert seen in caught.value.seen


def test_a_shell_in_an_allocation_may_leave_one():
    refuse_to_detach({"SLURM_JOB_ID": "7"}, 77)

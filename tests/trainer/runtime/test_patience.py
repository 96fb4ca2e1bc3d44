"""Ranks that wait for one another's work before a collective, in real processes whose collectives give up early."""

from __future__ import annotations

import pytest

SCRIPT = """
import sys, time
import torch
from trainer.runtime.distributed import Collectives, DistEnv, process_group

env = DistEnv.from_environ()

def work(is_writer=True):
    if is_writer:
        time.sleep(1.8)  # longer than any collective waits here
        if "fail" in sys.argv:
            raise ValueError("the folder is gone")
    return f"seen by {'the writer' if is_writer else 'a reader'}"

with process_group(env, torch.device("cpu"), timeout_s=1.0):
    collectives = Collectives(env)
    for call in (collectives.main_first, collectives.from_main):
        try:
            print(call(work), flush=True)
        except ValueError as error:
            print("failed:", error, flush=True)
"""


@pytest.fixture
def script(tmp_path):
    path = tmp_path / "script.py"
    path.write_text(SCRIPT)
    return str(path)


def test_work_may_last_longer_than_a_collective_waits(run_ranks, script):
    first, second = run_ranks([script], 2)
    assert first.splitlines()[-2:] == ["seen by the writer"] * 2
    assert second.splitlines()[-2:] == ["seen by a reader", "seen by the writer"]


def test_a_failure_of_long_work_reaches_every_rank(run_ranks, script):
    for output in run_ranks([script, "fail"], 2):
        assert output.splitlines()[-2:] == ["failed: the folder is gone"] * 2

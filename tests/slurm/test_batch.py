"""The batch file of docs/clusters.md through what Slurm does to jobs: limits, preemption, suspension, lost machines."""

from __future__ import annotations

import signal
import time

import psutil
import pytest

from tests.slurm.cluster import NODES, wait_until
from tests.slurm.conftest import results

pytestmark = [pytest.mark.slurm, pytest.mark.timeout(600)]
ENDLESS = ("--epochs", "5000")


def go_on(job):
    """Starts a job that was saved and queued again; Slurm itself would let it wait for two minutes."""
    job.wait_for_state("PENDING")
    job.wait_for_end()
    assert (job.run_dir / "weights/last.pt").is_file()
    job.change("TimeLimit=30")
    # A node takes what comes within a second of the first start's end for that start's.
    job.change("StartTime=now+3")
    job.wait_for_state("COMPLETED")
    assert job.fact("Restarts") == "1"


def test_the_time_limit_saves_and_the_next_start_ends_with_the_same_numbers(folder, uninterrupted):
    start = time.monotonic()
    job = folder.submit("--time=30", "--signal=USR1@120")
    job.wait_for_step(1)
    print(f"TIME from sbatch to the first step: {time.monotonic() - start:.1f} s")
    worker = job.freeze_in_training()
    # Lowered to the minute after the next, so that Slurm's look every 30 seconds finds it less than 120 seconds away.
    hours, minutes, _ = job.fact("RunTime").split(":")
    job.change(f"TimeLimit={60 * int(hours) + int(minutes) + 2}")
    job.thaw_at(worker, "SIGUSR1 on machine ")
    go_on(job)
    assert "stopped by SIGUSR1 with the state saved" in job.output
    assert job.output.count("Exited with exit code 75") == 2
    assert results(job.run_dir) == results(uninterrupted.run_dir)


def test_a_job_of_another_partition_preempts_and_the_next_start_ends_with_the_same_numbers(folder, uninterrupted):
    job = folder.submit("--time=30")
    worker = job.freeze_in_training()
    urgent = folder.cluster.slurm("sbatch", "--parsable", "-N2", "-p", "urgent", "--output=none", "--wrap=sleep 1")
    job.thaw_at(worker, "SIGTERM on machine ")
    go_on(job)
    assert "stopped by SIGTERM with the state saved" in job.output
    assert "JobState=COMPLETED" in folder.cluster.slurm("scontrol", "show", "job", urgent)
    assert results(job.run_dir) == results(uninterrupted.run_dir)


def test_suspended_it_stands_still_and_cancelled_it_is_saved(folder):
    job = folder.submit("--time=30", training=ENDLESS)
    job.wait_for_step(3)
    folder.cluster.slurm("scontrol", "suspend", job.number)
    parts = [job.launcher(node) for node in NODES] + [
        job.processes(node, RANK=str(rank))[0] for rank, node in enumerate(NODES)
    ]
    wait_until(lambda: {part.status() for part in parts} == {psutil.STATUS_STOPPED}, 30, lambda: str(parts))
    stood = job.step()
    time.sleep(10)  # longer than the silence after which a machine counts as lost
    assert job.step() == stood
    folder.cluster.slurm("scontrol", "resume", job.number)
    job.wait_for_step(stood + 5)
    assert "is lost" not in job.output
    folder.cluster.slurm("scancel", job.number)
    job.wait_for_state("CANCELLED")
    job.wait_for_end()
    assert "stopped by SIGTERM with the state saved" in job.output
    assert (job.run_dir / "weights/last.pt").is_file()


def test_a_launcher_that_is_killed_ends_the_job_with_the_reason(folder):
    job = folder.submit("--time=30", training=(*ENDLESS, "--rejoin-timeout", "3"))
    job.wait_for_step(3)
    job.launcher("n2").send_signal(signal.SIGKILL)
    job.wait_for_state("FAILED")
    job.wait_for_end()
    assert "machine 1 n2 (10.77.0.12, 1x CPU) is lost: its connection was closed" in job.output
    assert "machine 1 did not come back within 3 s" in job.output
    assert "n1: task 0: Exited with exit code 5" in job.output
    assert job.fact("ExitCode") == "137:0", "that of the killed one, as srun reports the highest"


def test_with_no_kill_and_a_range_it_goes_on_without_a_machine(folder):
    job = folder.submit("--time=30", "--no-kill", srun="--no-kill", training=("--nodes", "1:2"))
    job.freeze_in_training()
    try:
        folder.cluster.lose("n2")
        job.wait_for_state("COMPLETED", "FAILED")
    finally:
        folder.cluster.bring_back("n2")
    print(job.output)
    assert "machine 1 n2 (10.77.0.12, 1x CPU) is lost" in job.output
    assert job.fact("JobState") == "COMPLETED"

"""``yolo-launch run`` as typed: scripts and modules, what each worker finds in its environment, nohup."""

from __future__ import annotations

import json
import os
import signal
import sys
import time

import pytest

from tests.processes.conftest import PROGRAM

SHOW = """
import json, os, pathlib, sys, time
rank = os.environ.get("RANK", "0")
facts = {"argv": sys.argv[1:], "environment": dict(os.environ), "path": sys.path[0], "name": __name__}
pathlib.Path(f"seen{rank}.json").write_text(json.dumps(facts))
print("rank", rank, "was here")
"""
LEFTOVERS = {"RANK": "0", "WORLD_SIZE": "1", "LOCAL_RANK": "3", "NODE_RANK": "1", "MASTER_ADDR": "far.away"}
LEFTOVERS |= {"PET_NNODES": "1", "TORCHELASTIC_RUN_ID": "other", "MASTER_PORT": "29500"}


def seen(job, rank=0):
    return json.loads((job.run_dir / f"seen{rank}.json").read_text())


def with_script(job, text=SHOW, name="show.py"):
    path = job.run_dir / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


def test_a_module_runs_with_its_arguments_and_leaves_a_log(job):
    with_script(job, name="their/show.py")
    job.start_program("run", "--module", "their.show", "--gpus", "cpu", "--", "--epochs", "3", "--json")
    assert job.wait() == 0
    facts = seen(job)
    assert (facts["argv"], facts["path"], facts["name"]) == (["--epochs", "3", "--json"], str(job.run_dir), "__main__")
    assert "rank 0 was here" in job.stdout
    assert "done; logs: runs/run/exp/logs" in job.stdout
    assert "rank 0 was here" in (job.run_dir / "runs/run/exp/logs/rank0.log").read_text()
    assert json.loads((job.run_dir / "runs/run/exp/plan.json").read_text())["world_size"] == 1


def test_threads_come_from_the_cores_that_this_process_may_use(job):
    with_script(job)
    one_core = f"import os; os.sched_setaffinity(0, {{min(os.sched_getaffinity(0))}}); {PROGRAM}"
    own = {"OMP_NUM_THREADS", "MKL_NUM_THREADS"}
    kept = {name: value for name, value in os.environ.items() if name not in own}
    command = ["env", *(f"--unset={name}" for name in own), sys.executable, "-c", one_core]
    job._start([*command, "run", "--gpus", "cpu", "show.py"], kept)
    assert job.wait() == 0
    assert seen(job)["environment"]["OMP_NUM_THREADS"] == "1"
    assert "rank 0 -> CPU (1 thread)" in job.stdout


@pytest.mark.slow
def test_each_worker_has_its_own_rank_whatever_was_inherited(job):
    with_script(job)
    job.start_program("run", "--gpus", "cpu", "--nproc", "2", "show.py", **LEFTOVERS)
    assert job.wait() == 0
    for rank in range(2):
        environment = seen(job, rank)["environment"]
        expected = {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1"}
        assert {name: environment.get(name) for name in expected} == expected
        assert "PET_NNODES" not in environment
        assert "NODE_RANK" not in environment
        assert environment["MASTER_PORT"] != "29500"
        assert environment["TORCHELASTIC_RUN_ID"] != "other"
        assert environment["CUDA_VISIBLE_DEVICES"] == ""


MEET = """
import torch, torch.distributed as dist
dist.init_process_group("gloo")
total = torch.ones(1)
dist.all_reduce(total)
if dist.get_rank() == 0:
    print("sum", int(total))
dist.barrier()
dist.destroy_process_group()
"""


@pytest.mark.slow
def test_workers_meet_without_a_word_of_warning(job):
    """torchrun's usual ones: names that resolve to nothing, IPv6 tried first, OMP_NUM_THREADS."""
    with_script(job, MEET, "meet.py")
    job.start_program("run", "--gpus", "cpu", "--nproc", "2", "meet.py")
    assert job.wait() == 0
    assert "sum 2" in job.stdout
    assert job.stderr == ""
    assert (job.run_dir / "runs/run/exp/logs/rank1.log").read_text().count("\n") == 1  # the attempt's own line


@pytest.mark.slow
def test_nohup_is_obeyed_with_torchs_agent_too(job):
    with_script(job, "import time\nopen('ready', 'a').write('x')\ntime.sleep(4)\nprint('to its end')\n", "slow.py")
    typed = ["run", "--gpus", "cpu", "--nproc", "2", "slow.py"]
    job._start(["nohup", sys.executable, "-c", PROGRAM, *typed], {})
    job.wait_for("ready")
    job.signal(signal.SIGHUP)
    assert job.wait() == 0
    assert "to its end" in job.stdout
    assert "to its end" in (job.run_dir / "runs/run/exp/logs/rank1.log").read_text()


LOADERS = """
import multiprocessing, os, pathlib, threading, time

def stuck(name):
    pathlib.Path(name).touch()
    time.sleep(600)

def start(name):
    multiprocessing.get_context("fork").Process(target=stuck, args=(name,), daemon=True).start()

start("ready.loader")
passing = threading.Thread(target=start, args=("ready.passing",))
passing.start()
passing.join()
while not (os.path.exists("ready.loader") and os.path.exists("ready.passing")):
    time.sleep(0.01)
time.sleep(0.5)
pathlib.Path(f"count{len(multiprocessing.active_children())}").touch()
time.sleep(600)
"""


def test_a_scripts_stuck_loaders_die_with_a_killed_launcher(job):
    with_script(job, LOADERS, "load.py")
    job.start_program("run", "--gpus", "cpu", "load.py")
    job.wait_for("count2")  # the one that a passing thread started has outlived that thread
    assert len(job.loaders()) == 2
    since = job.signal(signal.SIGKILL)
    job.wait()
    assert job.seconds_until_nothing_is_left(since) < 2.7


def test_a_scripts_stuck_loaders_die_with_a_killed_worker(job):
    with_script(job, LOADERS, "load.py")
    job.start_program("run", "--gpus", "cpu", "load.py")
    job.wait_for("count2")
    job.worker().kill()
    since = time.monotonic()
    assert job.seconds_until_nothing_is_left(since) < 2.2
    assert job.wait() == 1
    assert "killed by SIGKILL" in job.stderr

"""A script of the user's on two machines, here two launchers on loopback: started, told apart, and ended as one job."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time

import pytest

SCRIPT = """
import json, os, signal, sys, time
import torch
import torch.distributed as dist

kept = [name for name in os.environ if name.startswith(("TORCHELASTIC", "ROLE_", "GROUP_", "LOCAL_", "MASTER_"))]
seen = {name: os.environ[name] for name in (*kept, "RANK", "WORLD_SIZE")} | {"argv": sys.argv}
rank = int(os.environ["RANK"])
if "--fail-once" in sys.argv and os.environ["TORCHELASTIC_RESTART_COUNT"] == "0" and rank == 2:
    with open(f"{os.environ['YOLO_LOGS_DIR']}/rank2.heartbeat.json", "w") as file:
        json.dump({"phase": "train", "epoch": 0, "step": 3, "time": time.time()}, file)
    time.sleep(2)
    raise RuntimeError("the first try")
if "--fail" in sys.argv and rank == 2:
    raise RuntimeError("no such class: 7")
dist.init_process_group("gloo")
if "--wait" in sys.argv:
    open(f"waiting{rank}", "w").close()
    time.sleep(120)
total = torch.tensor([rank + 1.0])
dist.all_reduce(total)
with open(f"seen{rank}.json", "w") as file:
    json.dump({**seen, "total": total.item()}, file)
dist.destroy_process_group()
"""
LAUNCHER = (sys.executable, "-c", "from yolo_launch.cli.main import main; main()", "run")
TORCHRUN = (sys.executable, "-m", "torch.distributed.run")


class Machines:
    """Two folders with the script, and a command in each; what still runs is ended with the test."""

    def __init__(self, folder):
        with socket.socket() as listener:
            listener.bind(("127.0.0.1", 0))
            self.port = str(listener.getsockname()[1])
        self.folders = [folder / "a", folder / "b"]
        for each in self.folders:
            each.mkdir()
            (each / "train.py").write_text(SCRIPT)
        self.started = []

    def start(self, machine, *words, program=LAUNCHER, **environment):
        output = (self.folders[machine] / "output").open("w")
        environ = {**os.environ, "PYTHONPATH": os.getcwd(), "NO_COLOR": "1", **environment}
        process = subprocess.Popen(
            [*program, *words],
            cwd=self.folders[machine],
            stdout=output,
            stderr=subprocess.STDOUT,
            env=environ,
            start_new_session=True,
        )
        self.started.append(process)
        return process

    def run(self, master, member=("train.py",), *, options=(), member_options=(), **environment):
        """Both machines to their ends: exit codes and outputs."""
        place = ("--master", "127.0.0.1", "--port", self.port, "--gpus", "cpu")
        self.start(0, "--rank", "0", "--nodes", "2", *place, "--nproc", "2", *options, *master, **environment)
        self.start(1, "--rank", "1", *place, "--nproc", "1", *member_options, *member, **environment)
        return self.ends()

    def ends(self):
        codes = [process.wait(120) for process in self.started[-2:]]
        return codes, [(each / "output").read_text() for each in self.folders]

    def seen(self, rank):
        return json.loads((self.folders[rank // 2] / f"seen{rank}.json").read_text())

    def close(self):
        for process in self.started:
            if process.poll() is None:
                process.kill()
                process.wait()


@pytest.fixture
def machines(tmp_path):
    made = Machines(tmp_path)
    yield made
    made.close()


def test_a_script_runs_on_two_machines_with_the_masters_arguments(machines):
    codes, outputs = machines.run(("train.py", "--data", "coco.yaml", "--rank", "7"))
    assert codes == [0, 0], outputs
    assert [machines.seen(rank)["total"] for rank in range(3)] == [6.0] * 3
    assert [machines.seen(rank)["argv"] for rank in range(3)] == [
        ["train.py", "--data", "coco.yaml", "--rank", "7"]
    ] * 3
    assert "rank 2 -> CPU" in outputs[1]


UNLIKE = {"MASTER_PORT", "TORCHELASTIC_RUN_ID", "TORCHELASTIC_ERROR_FILE"}
"""Of one start alone."""
UNLIKE |= {"ROLE_NAME", "TORCHELASTIC_SIGNALS_TO_HANDLE"}
"""What the agent calls the workers, and the signals that it waits for: the launcher's own monitor does."""


@pytest.mark.slow
def test_ranks_and_variables_are_torchruns(machines):
    words = ("--nproc_per_node", "2", "--nnodes", "2", "--master_addr", "127.0.0.1", "--master_port", machines.port)
    for machine in range(2):
        machines.start(machine, *words, "--node_rank", str(machine), "train.py", "--batch", "64", program=TORCHRUN)
    assert machines.ends()[0] == [0, 0]
    theirs = [machines.seen(rank) for rank in range(4)]
    for machine in range(2):
        machines.start(machine, *words, "--node_rank", str(machine), "--gpus", "cpu", "train.py", "--batch", "64")
    codes, outputs = machines.ends()
    assert codes == [0, 0], outputs
    for rank in range(4):
        ours = machines.seen(rank)
        assert {name: ours.get(name) for name in theirs[rank] if name not in UNLIKE} == {
            name: value for name, value in theirs[rank].items() if name not in UNLIKE
        }


@pytest.mark.slow
def test_a_failure_on_one_machine_is_told_on_both(machines):
    codes, outputs = machines.run(("train.py", "--fail"))
    assert codes == [1, 1], outputs
    for output in outputs:
        assert "rank 2" in output
        assert "no such class: 7" in output


@pytest.mark.slow
def test_restarts_are_the_masters_to_ask_for(machines):
    codes, outputs = machines.run(("train.py", "--fail-once"), options=("--max-restarts", "1"))
    assert codes == [0, 0], outputs
    assert [machines.seen(rank)["TORCHELASTIC_RESTART_COUNT"] for rank in range(3)] == ["1"] * 3


def test_another_content_is_named_with_both_hashes(machines):
    (machines.folders[1] / "train.py").write_text(SCRIPT + "# newer\n")
    codes, outputs = machines.run(("train.py",), options=("--join-timeout", "5"))
    assert codes[1] == 2, outputs
    assert "another script or other arguments" in outputs[1]
    assert outputs[1].count("with the content ") == 1
    assert "in the job" in outputs[1]
    assert codes[0] != 0
    assert not (machines.folders[0] / "seen0.json").exists()


def test_other_arguments_are_named(machines):
    codes, outputs = machines.run(
        ("train.py", "--batch", "64"), ("train.py", "--batch", "32"), options=("--join-timeout", "5")
    )
    assert codes[1] == 2, outputs
    assert "--batch 32 here, --batch 64 in the job" in outputs[1]


def test_a_script_that_is_missing_on_one_machine_is_named(machines):
    (machines.folders[1] / "train.py").unlink()
    codes, outputs = machines.run(("train.py",), options=("--join-timeout", "5"))
    assert codes[1] != 0, outputs
    assert "the script train.py is missing" in outputs[1]


def test_training_and_a_script_are_no_one_job(machines, bccd_yaml):
    place = ("--master", "127.0.0.1", "--port", machines.port, "--gpus", "cpu")
    master = ("--rank", "0", "--nodes", "2", *place, "--join-timeout", "5", "train.py")
    machines.start(0, *master)
    node = (*LAUNCHER[:-1], "node")
    machines.start(1, "--rank", "1", *place, "--data", str(bccd_yaml), program=node)
    codes, outputs = machines.ends()
    assert codes[0] != 0, outputs
    assert codes[1] == 2
    assert "The master runs a script, and this machine was told to train" in outputs[1]


@pytest.mark.slow
def test_a_signal_to_one_launcher_ends_the_job_everywhere(machines):
    place = ("--master", "127.0.0.1", "--port", machines.port, "--gpus", "cpu")
    master = machines.start(0, "--rank", "0", "--nodes", "2", *place, "train.py", "--wait")
    machines.start(1, "--rank", "1", *place, "train.py")
    deadline = time.monotonic() + 60
    while not (machines.folders[1] / "waiting1").exists():
        assert time.monotonic() < deadline, machines.ends()
        time.sleep(0.1)
    master.send_signal(signal.SIGTERM)
    codes, outputs = machines.ends()
    assert codes == [143, 143], outputs
    for output in outputs:
        assert "SIGTERM" in output


@pytest.mark.slow
def test_in_a_slurm_step_one_command_is_enough(machines):
    step = {
        "SLURM_JOB_ID": "7",
        "SLURM_STEP_ID": "0",
        "SLURM_STEP_NUM_NODES": "2",
        "SLURM_STEP_TASKS_PER_NODE": "1(x2)",
    }
    step |= {"SLURM_STEP_NODELIST": "127.0.0.[1,2]", "SLURM_LOCALID": "0", "SLURM_NTASKS": "2"}
    for machine in range(2):
        place = {**step, "SLURM_NODEID": str(machine), "SLURM_PROCID": str(machine)}
        machines.start(machine, "--gpus", "cpu", "--port", machines.port, "train.py", "--data", "coco.yaml", **place)
    codes, outputs = machines.ends()
    assert codes == [0, 0], outputs
    assert json.loads((machines.folders[1] / "seen1.json").read_text())["argv"] == ["train.py", "--data", "coco.yaml"]


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("--nodes", "1:2", "train.py"), "--max-restarts N, which says that the script resumes by itself"),
        (("--nodes", "2", "nothing.py"), "the script nothing.py is missing"),
        (("train.py",), "The master has to know how many machines take part"),
    ],
)
def test_what_cannot_work_is_refused_at_once(machines, words, said):
    process = machines.start(0, "--rank", "0", "--master", "127.0.0.1", "--gpus", "cpu", *words)
    assert process.wait(60) != 0
    assert said in " ".join((machines.folders[0] / "output").read_text().split())
    assert not (machines.folders[0] / "runs").exists()


def test_a_members_dry_run_starts_nothing(machines):
    process = machines.start(1, "--rank", "1", "--master", "127.0.0.1", "--gpus", "cpu", "--dry-run", "train.py")
    assert process.wait(60) == 2
    assert "which only the master knows" in (machines.folders[1] / "output").read_text()


def test_a_dry_run_shows_torchruns_line_of_each_machine(machines):
    place = ("--rank", "0", "--master", "192.168.1.1", "--nodes", "2", "--gpus", "cpu", "--nproc", "2")
    process = machines.start(0, *place, "--dry-run", "train.py", "--data", "x")
    assert process.wait(60) == 0
    lines = [line for line in (machines.folders[0] / "output").read_text().splitlines() if " torchrun " in line]
    rendezvous = "--nnodes=2 --rdzv_backend=c10d --rdzv_endpoint=192.168.1.1:1234 --rdzv_id=$SLURM_JOB_ID"
    assert (
        f"srun --nodes=2 --ntasks=2 --ntasks-per-node=1 torchrun {rendezvous} --nproc_per_node=2 train.py" in lines[2]
    )
    for rank, line in enumerate(lines[:2]):
        assert f"--nnodes=2 --node_rank={rank} --master_addr=192.168.1.1 --master_port=1234" in line
        assert line.endswith("--nproc_per_node=2 train.py --data x")
    assert len(lines) == 3
    assert not (machines.folders[0] / "runs").exists()

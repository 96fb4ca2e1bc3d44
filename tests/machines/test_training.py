"""Several machines train one model, as the README's commands say."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.machines.conftest import CPU, PROJECT_DIR, TRAINING, results

pytestmark = [pytest.mark.netns, pytest.mark.timeout(300)]


def test_two_machines_by_hand(network):
    a, b = network(2)
    b.node("--data", "data/data.yaml")
    b.wait_for("nothing listens on 10.77.0.1:1234 yet: is the master started")
    a.node(epochs=2)
    assert (a.wait(), b.wait()) == (0, 0), a.net.outputs()
    for machine in (a, b):
        assert "2/2 machines: 0 gpu-a (10.77.0.1, 1x CPU), 1 gpu-b (10.77.0.2, 1x CPU)" in machine.output
        assert "GLOO_SOCKET_IFNAME=eth0" in machine.output
    assert "rank 0 -> CPU" in a.output
    assert "rank 1 -> CPU" in b.output
    assert "whoever reaches port 1234 of this machine can join" in a.output
    assert "mAP50" in a.output
    assert "mAP50" not in b.output, "rank 0's output is the master's"
    summary = json.loads((a.run_dir / "summary.json").read_text())
    assert (summary["world_size"], summary["epochs"], summary["global_batch_size"]) == (2, 2, 4)
    assert (b.run_dir / "logs" / "rank1.log").is_file()
    assert not list(b.run_dir.glob("weights/*")), "checkpoints are the master's"
    assert not a.processes() + b.processes()


def test_uneven_machines_learn_what_three_workers_of_one_machine_learn(network):
    a, b = network(2)
    a.node("--batch", "6", workers=2, epochs=2, OMP_NUM_THREADS="1")
    b.node(workers=1, OMP_NUM_THREADS="1")
    assert (a.wait(), b.wait()) == (0, 0), a.net.outputs()
    assert "rank 1 -> CPU" in a.output
    assert "rank 2 -> CPU" in b.output
    alone = a.folder / "runs" / "alone"
    # torchrun itself, outside the namespaces, where the host's name can be resolved.
    torchrun = (sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "3", "-m", "trainer")
    subprocess.run(
        [*torchrun, str(a.run_dir / "config.yaml"), "--run-dir", str(alone)],
        cwd=a.folder,
        env={**os.environ, "PYTHONPATH": str(PROJECT_DIR), "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""},
        check=True,
        capture_output=True,
        timeout=120,
    )
    assert results(alone) == results(a.run_dir)
    assert len(results(alone)) == 3


def test_inside_a_slurm_step_one_command_is_enough(network):
    """What ``srun yolo-launch node ...`` starts on each machine, with the variables that Slurm sets there."""
    machines = network(2)
    command = ("node", "--data", "data/data.yaml", "--epochs", "1", *CPU, "1", *TRAINING)
    for rank, machine in enumerate(machines):
        step = {"SLURM_STEP_ID": "0", "SLURM_STEP_NUM_NODES": "2", "SLURM_STEP_NODELIST": "gpu-a,gpu-b"}
        place = {"SLURM_NODEID": str(rank), "SLURM_PROCID": str(rank), "SLURM_LOCALID": "0"}
        machine.start(*command, SLURM_JOB_ID="42", SLURM_STEP_TASKS_PER_NODE="1(x2)", **step, **place)
    a, b = machines
    assert (a.wait(), b.wait()) == (0, 0), a.net.outputs()
    for machine in machines:
        assert "Slurm job 42: machine" in machine.output
        assert "master gpu-a:15042" in machine.output
    assert (a.run_dir / "summary.json").is_file()
    assert not (b.run_dir / "summary.json").exists()


def test_weights_are_needed_on_the_master_alone(network, detector):
    a, b = network(2)
    shutil.copy(detector, a.folder / "start.pt")
    a.node("--weights", "start.pt", "--cfg", "", epochs=1)
    b.node()
    assert (a.wait(), b.wait()) == (0, 0), a.net.outputs()
    assert "start.pt" in a.output


def test_slow_and_lossy_network(network):
    a, b = network(2)
    qdisc = ("tc", "qdisc", "add", "dev", "eth0", "root", "netem", "delay", "20ms", "5ms", "loss", "1%")
    done = subprocess.run(["ip", "netns", "exec", b.namespace, *qdisc], capture_output=True, text=True, check=False)
    if done.returncode:
        pytest.skip(f"tc netem is not available: {done.stderr.strip()}")
    a.node(epochs=1)
    b.node()
    assert (a.wait(200), b.wait()) == (0, 0), a.net.outputs()
    assert "is lost" not in a.output


def test_torchruns_printed_lines_train_what_node_trains(network):
    a, b = network(2)
    options = ("--batch", "4", "--seed", "3")
    a.node(*options, "--dry-run", epochs=2)
    assert a.wait() == 0, a.net.outputs()
    lines = [line.strip() for line in a.output.splitlines() if "--node_rank=" in line]
    assert len(lines) == 2
    a.node(*options, epochs=2)
    b.node()
    assert (a.wait(), b.wait()) == (0, 0), a.net.outputs()
    by_node = a.run_dir.rename(a.run_dir.with_name("by-node"))
    for machine in (a, b):  # what a user would copy there
        shutil.rmtree(machine.run_dir, ignore_errors=True)
        (machine.run_dir / "logs").mkdir(parents=True)
        shutil.copy(by_node / "config.yaml", machine.run_dir)
    environment = {"GLOO_SOCKET_IFNAME": "eth0", "PYTHONPATH": str(PROJECT_DIR)}
    environment["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    started = [
        subprocess.Popen(
            machine.command("sh", "-c", line),
            cwd=machine.folder,
            env={**os.environ, **environment},
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
        )
        for machine, line in zip((a, b), lines, strict=True)
    ]
    for process in started:
        _, complaint = process.communicate(timeout=200)
        assert process.returncode == 0, complaint
    assert results(a.run_dir) == results(by_node)
    assert len(results(by_node)) == 3

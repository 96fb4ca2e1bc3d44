"""What srun starts: the trainer, a script, doctor; and what is refused there."""

from __future__ import annotations

import json

import pytest

from tests.slurm.conftest import CPU, EPOCHS, results

pytestmark = [pytest.mark.slurm, pytest.mark.timeout(300)]
SCRIPT = """
import os, sys
import torch
import torch.distributed as dist

dist.init_process_group("gloo")
total = torch.tensor([dist.get_rank() + 1.0])
dist.all_reduce(total)
print(f"rank {os.environ['RANK']} of {os.environ['WORLD_SIZE']}: sum {total.item()}, {sys.argv[1:]}")
dist.destroy_process_group()
"""


def test_srun_of_node_trains_on_both_machines(cluster, uninterrupted):
    said = uninterrupted.said
    assert uninterrupted.code == 0, said
    for node, address in ((0, "n1 (10.77.0.11 via eth0)"), (1, "n2 (10.77.0.12 via eth0)")):
        assert f"machine {node} on {address}, master n1:15" in said
    summary = json.loads((uninterrupted.run_dir / "summary.json").read_text())
    assert (summary["world_size"], summary["epochs"], summary["global_batch_size"]) == (2, EPOCHS, 4)
    assert len(results(uninterrupted.run_dir)) == 1 + EPOCHS


def test_srun_of_run_starts_a_script_on_both_machines(folder):
    (folder.path / "train.py").write_text(SCRIPT)
    code, said = folder.call("srun", "-N2", "yolo-launch", "run", *CPU, "train.py", "--steps", "3")
    assert code == 0, said
    assert "rank 0 of 2: sum 3.0, ['--steps', '3']" in said


@pytest.mark.parametrize(
    ("command", "counts", "seen", "instead"),
    [
        ("node", "-N2 --ntasks-per-node=2", "SLURM_STEP_TASKS_PER_NODE=2(x2)", "--nodes=2 --ntasks=2"),
        ("run", "-N2 --ntasks-per-node=2", "SLURM_STEP_TASKS_PER_NODE=2(x2)", "--nodes=2 --ntasks=2"),
        ("run", "-N1 --ntasks=2", "SLURM_STEP_TASKS_PER_NODE=2", "--nodes=1 --ntasks=1"),
    ],
)
def test_several_launchers_on_a_machine_are_told_the_line_that_works(folder, command, counts, seen, instead):
    words = {"node": "--data data/data.yaml", "run": "train.py -- --steps 3"}[command]
    code, said = folder.call("srun", *counts.split(), "yolo-launch", command, *words.split())
    assert code == 2, said
    assert "Slurm starts more than one launcher on a machine." in said
    assert f"Seen:     {seen}\n" in said
    assert f"Next:     srun {instead} --ntasks-per-node=1 yolo-launch {command} {words}\n" in said
    assert not (folder.path / "runs").exists()


@pytest.mark.parametrize("counts", ["-N2", "-N1 --ntasks=2"])
def test_srun_of_train_is_refused_before_each_trains_by_itself(folder, counts):
    code, said = folder.call("srun", *counts.split(), "yolo-launch", "train", *folder.training)
    assert code == 2, said
    assert said.count("srun has started this yolo-launch train as one of 2: each would train by itself.") == 2
    assert "Next:     srun --ntasks-per-node=1 yolo-launch node ..." in said
    assert not (folder.path / "runs").exists()


def test_in_an_allocation_without_srun_the_line_is_told(folder):
    code, said = folder.call("salloc", "-N2", "yolo-launch", "node", "--data", "data/data.yaml")
    assert code == 2, said
    expected = "srun --nodes=2 --ntasks=2 --ntasks-per-node=1 yolo-launch node --data data/data.yaml"
    assert f"Next:     {expected}\n" in said


def test_doctor_measures_between_the_machines(folder):
    code, said = folder.call("srun", "-N2", "yolo-launch", "doctor", "--master", "n1", *CPU)
    assert code == 0, said
    assert said.count("ok all-reduce: 2 workers on 2 machines over gloo: ") == 2
    assert "ok machines: node 1 n2 (10.77.0.12) -> master 10.77.0.11:" in said
    assert "ok machines: master n1 (10.77.0.11) -> node 1 n2 10.77.0.12:" in said
    assert "FAILURE" not in said

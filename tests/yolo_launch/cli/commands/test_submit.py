"""``submit`` as typed: what sbatch and kubectl get, what is said then, and what is refused before."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

PROJECT_DIR = Path(__file__).resolve().parents[4]
RECORDER = """#!{python}
import json, sys
from pathlib import Path
arguments = sys.argv[1:]
seen = {{"arguments": arguments, "input": sys.stdin.read(), "file": Path(arguments[-1]).read_text()}}
Path({seen!r}).write_text(json.dumps(seen))
print({answer!r})
"""
SLURM = ("submit", "slurm", "train", "--data", "coco.yaml", "--batch", "256", "--nodes", "4", "--gpus-per-node", "4")
KUBERNETES = ("submit", "kubernetes", "train", "--data", "/data/coco.yaml", "--batch", "8", "--nodes", "2")
IMAGE = ("--image", "registry.example.com/yolo-launch:1")


@pytest.fixture
def cluster(tmp_path):
    """A machine with sbatch and kubectl that record what they get, or without; runs the program there."""
    programs = tmp_path / "bin"
    programs.mkdir()

    class Cluster:
        folder = tmp_path

        def give(self, name, answer):
            record = RECORDER.format(python=sys.executable, seen=str(tmp_path / f"{name}.json"), answer=answer)
            (programs / name).write_text(record)
            (programs / name).chmod(0o755)

        def run(self, *typed):
            environ = {**os.environ, "PATH": str(programs), "PYTHONPATH": str(PROJECT_DIR), "CUDA_VISIBLE_DEVICES": ""}
            command = [sys.executable, "-m", "yolo_launch", *typed]
            return subprocess.run(command, cwd=tmp_path, env=environ, capture_output=True, text=True, timeout=120)

        def seen(self, name):
            path = tmp_path / f"{name}.json"
            return json.loads(path.read_text()) if path.exists() else None

    return Cluster()


def test_slurm_gets_the_file_and_the_user_what_to_type_next(cluster):
    cluster.give("sbatch", "42")
    ended = cluster.run(*SLURM, "--time", "12:00:00")
    assert (ended.returncode, ended.stderr) == (0, "")
    example = (PROJECT_DIR / "examples" / "slurm" / "train.sh").read_text()
    assert cluster.seen("sbatch") == {
        "arguments": ["--parsable", "runs/submit/coco.sh"],
        "input": "",
        "file": example,
    }
    said = ended.stdout
    assert said.startswith("Slurm job 42 is submitted: runs/submit/coco.sh\n")
    for command in ("squeue --jobs 42 ", "yolo-launch attach runs/train/slurm-42 ", "scancel 42 "):
        assert f"  {command}" in said


def test_a_dry_run_prints_the_file_and_touches_nothing(cluster):
    cluster.give("sbatch", "42")
    before = sorted(cluster.folder.iterdir())
    ended = cluster.run(*SLURM, "--dry-run")
    assert (ended.returncode, ended.stderr) == (0, "")
    assert ended.stdout.startswith("#!/bin/bash\n#SBATCH --job-name=coco\n")
    assert cluster.seen("sbatch") is None
    assert sorted(cluster.folder.iterdir()) == before
    facts = json.loads(cluster.run(*SLURM, "--dry-run", "--json").stdout)
    assert facts["text"] == ended.stdout
    assert facts["command"] == ["yolo-launch", "node", "--data", "coco.yaml", "--batch", "256"]


def test_a_script_keeps_its_own_words(cluster):
    cluster.give("sbatch", "7;west")
    ended = cluster.run("submit", "slurm", "run", "--nodes", "2", "--json", "train.py", "--time", "x", "--nodes", "9")
    assert ended.returncode == 0, ended.stderr
    facts = json.loads(ended.stdout)
    assert (facts["job"], facts["file"], facts["next"][0]) == ("7", "runs/submit/train.sh", "squeue --jobs 7")
    text = cluster.seen("sbatch")["file"]
    assert "#SBATCH --nodes=2\n" in text
    assert "    train.py -- --time x --nodes 9 || code=$?" in text


@pytest.mark.parametrize("kind", ["trainjob", "pytorchjob", "job"])
def test_kubernetes_gets_manifests(cluster, kind):
    cluster.give("kubectl", "job.batch/coco created")
    ended = cluster.run(*KUBERNETES, *IMAGE, "--kind", kind, "--namespace", "lab")
    assert (ended.returncode, ended.stderr) == (0, "")
    seen = cluster.seen("kubectl")
    assert seen["arguments"] == ["create", "--namespace", "lab", "--filename", "runs/submit/coco.yaml"]
    assert {one["metadata"]["namespace"] for one in yaml.safe_load_all(seen["file"])} == {"lab"}
    assert "job.batch/coco created: runs/submit/coco.yaml" in ended.stdout
    assert "kubectl logs --follow --namespace lab " in ended.stdout
    assert "kubectl delete --namespace lab --filename runs/submit/coco.yaml " in ended.stdout


@pytest.mark.parametrize(
    ("typed", "program"), [(SLURM, "sbatch --parsable"), ((*KUBERNETES, *IMAGE), "kubectl create --filename")]
)
def test_without_the_program_the_file_is_written_and_the_next_command_said(cluster, typed, program):
    ended = cluster.run(*typed)
    assert ended.returncode == 3
    (path,) = (cluster.folder / "runs" / "submit").iterdir()
    assert f"Next:     {program} runs/submit/{path.name}" in ended.stderr
    assert "nothing was submitted" in ended.stderr


@pytest.mark.parametrize(
    ("typed", "said"),
    [
        ("slurm train --nope", "No such option"),
        ("slurm train --evolve 3", "hyperparameters are not evolved here"),
        ("slurm train --lr0 0.1", "--set lr0=VALUE"),
        ("slurm train --set lr=0.1", "did you mean 'lrf'?"),
        ("slurm train --optimizer RMSprop", "--optimizer cannot be used"),
        ("slurm train --stall-timeout 0", "--stall-timeout cannot be used"),
        ("slurm train --nodes 2 --gpus-per-node 4 --batch 15", "over the 8 workers of all machines"),
        ("slurm train --gpus-per-node 4 --batch 15", "over 4 GPUs"),
        ("slurm run --nope train.py", "has no option --nope"),
        ("slurm run --port 0 train.py", "--port cannot be used"),
        ("slurm train --rank 0", "--rank cannot be submitted"),
        ("slurm train --resume", "--resume cannot be submitted"),
        ("slurm train --token x", "a secret would stand in a file"),
        ("slurm train --image x", "--image is an option of submit kubernetes"),
        ("slurm val", "The command to submit cannot be used"),
        ("pbs train", "The scheduler cannot be used"),
        ("kubernetes train", "A pod needs an image"),
        ("kubernetes train --image x --set lr=0.1", "did you mean 'lrf'?"),
        ("slurm", "Missing argument"),
    ],
)
def test_what_the_command_would_refuse_is_refused_before(cluster, typed, said):
    cluster.give("sbatch", "42")
    ended = cluster.run("submit", *typed.split())
    assert ended.returncode == 2
    assert said in ended.stderr
    assert "Traceback" not in ended.stderr
    assert cluster.seen("sbatch") is None
    assert not (cluster.folder / "runs").exists()


def test_files_of_an_image_are_not_looked_for_here(cluster):
    words = ("--hyp", "/data/hyp.yaml", "--config", "/data/config.yaml")
    assert cluster.run(*KUBERNETES, *IMAGE, *words, "--dry-run").returncode == 0
    assert cluster.run(*SLURM, *words[:2], "--dry-run").returncode == 2


def test_gpus_chosen_there_and_fewer_machines_share_a_batch_as_they_can(cluster):
    for more in (("--gpus", "0,1,2"), ("--nodes", "1:3")):
        assert cluster.run(*SLURM, *more, "--dry-run").returncode == 0

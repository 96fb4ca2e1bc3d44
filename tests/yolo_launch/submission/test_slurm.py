"""Batch files: that bash and a step make of them what was asked. docs/clusters.md's own has tests of its own."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

from yolo_launch.errors import LaunchError
from yolo_launch.submission.job import make_submitted_job
from yolo_launch.submission.slurm import batch_file, run_directory_of
from yolo_launch.submission.submit_options import SubmitOptions

SRUN = """#!{python}
import json, sys
with open({calls!r}, "a") as file:
    file.write(json.dumps(sys.argv[1:]) + "\\n")
"""


def make(*words, command="train", typed=None, **options):
    return make_submitted_job(SubmitOptions("slurm", command, words, **options), typed or {}, words)


@pytest.fixture
def step(tmp_path):
    """Runs a batch file as Slurm does; the words that srun got."""
    program, calls = tmp_path / "bin" / "srun", tmp_path / "calls"
    program.parent.mkdir()
    program.write_text(SRUN.format(python=sys.executable, calls=str(calls)))
    program.chmod(0o755)

    def run(job):
        calls.unlink(missing_ok=True)
        environ = {"PATH": f"{program.parent}:/usr/bin:/bin", "SLURM_JOB_ID": "42", "SLURM_CPUS_PER_TASK": "8"}
        subprocess.run(["bash", "-eu", "-c", batch_file(job)], cwd=tmp_path, env=environ, check=True)
        (line,) = calls.read_text().splitlines()
        return json.loads(line)

    return run


def directives(job):
    return [line.removeprefix("#SBATCH ") for line in batch_file(job).splitlines() if line.startswith("#SBATCH")]


def test_words_reach_the_launcher_as_typed(step):
    odd = ("--data", "my cells/$HOME.yaml", "--name", "it's")
    got = step(make(*odd, typed={"data": odd[1], "name": odd[3]}))
    assert got == [
        *("--kill-on-bad-exit=0", "yolo-launch", "node", *odd),
        *("--project", "runs/train", "--exist-ok"),
    ]


def test_a_run_that_was_named_is_resumed_with_its_own_configuration(step, tmp_path):
    words = ("--config", "a.yaml", "--project", "big runs", "--name", "one")
    job = make(*words, typed={"project": "big runs", "name": "one"})
    kept = ["yolo-launch", "node", "--project", "big runs", "--name", "one", "--exist-ok"]
    assert step(job)[1:] == [*kept, "--config", "a.yaml"]
    weights = tmp_path / "big runs" / "one" / "weights"
    weights.mkdir(parents=True)
    (weights / "last.pt").touch()
    assert step(job)[1:] == [*kept, "--resume", "big runs/one"]
    assert run_directory_of(job, "42") == "big runs/one"


def test_a_script_gets_its_words_and_no_resume(step):
    job = make(
        "--gpus", "0,1", "train.py", "--", "--name", "a b", "--", "x", command="run", typed={"script": "train.py"}
    )
    assert step(job)[1:] == [
        *("yolo-launch", "run", "--project", "runs/run", "--name", "slurm-42"),
        *("--gpus", "0,1", "train.py", "--", "--name", "a b", "--", "x"),
    ]
    assert "resume" not in batch_file(job)
    assert run_directory_of(job, "42") == "runs/run/slurm-42"


def test_an_elastic_job_survives_the_loss_of_a_machine(step):
    job = make(nodes="2:4")
    assert {"--nodes=4", "--no-kill"} <= set(directives(job))
    assert step(job)[:5] == ["--kill-on-bad-exit=0", "--no-kill", "yolo-launch", "node", "--nodes"]
    assert step(job)[5] == "2:4"


def test_cores_follow_the_gpus_unless_typed(step):
    assert "--cpus-per-task=16" in directives(make(gpus_per_node=2))
    assert "--cpus-per-task=3" in directives(make(gpus_per_node=2, cpus_per_node=3))
    alone = make()
    assert not [one for one in directives(alone) if one.startswith(("--cpus", "--gpus", "--time"))]
    assert "SRUN_CPUS" not in batch_file(alone)
    assert step(alone)  # under set -u


def test_further_options_are_written_one_a_line():
    job = make(partition="gpu", account="lab", sbatch="--qos=high -C 'a100&nvlink' --comment='two words'")
    assert directives(job)[-3:] == ["--qos=high", "-C 'a100&nvlink'", "'--comment=two words'"]
    assert {"--partition=gpu", "--account=lab"} <= set(directives(job))


@pytest.mark.parametrize(
    "options",
    [
        {"time": "soon"},
        {"time": "1:2:3:4"},
        {"time": "5\n#SBATCH --x"},
        {"partition": "a b"},
        {"account": "x\ny"},
        {"sbatch": "qos=high"},
        {"sbatch": "--qos 'x"},
        {"sbatch": "--qos=x\nrm"},
    ],
)
def test_what_slurm_would_misread_is_refused(options):
    (flag,) = options
    with pytest.raises(LaunchError, match=f"--{flag} cannot be used"):
        batch_file(make(**options))

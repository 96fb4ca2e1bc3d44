"""The batch file and the manifests of docs/clusters.md do what the page says."""

from __future__ import annotations

import re
import shlex
import subprocess
from pathlib import Path

import pytest
import typer
import yaml

from yolo_launch.cli.main import app, run_program

PROJECT_DIR = Path(__file__).resolve().parents[1]
PAGE = (PROJECT_DIR / "docs" / "clusters.md").read_text(encoding="utf-8")
ON_KUBERNETES = ("trainjob.yaml", "pytorchjob.yaml", "indexed-job.yaml")
KINDS = ("trainjob", "pytorchjob", "job")


def blocks(language):
    return re.findall(rf"^```{language}\n(.*?)^```$", PAGE, flags=re.MULTILINE | re.DOTALL)


def example(name):
    assert f"](../examples/{name})" in PAGE
    return (PROJECT_DIR / "examples" / name).read_text(encoding="utf-8")


def typed_on_the_page(scheduler):
    """The words of the page's command that submits to a scheduler."""
    (line,) = re.findall(rf"^yolo-launch (submit {scheduler} .*)$", PAGE.replace("\\\n", " "), flags=re.MULTILINE)
    return shlex.split(line)


def printed(capsys, *typed):
    assert run_program([*typed, "--dry-run"]) == 0
    return capsys.readouterr().out


def test_the_page_shows_the_batch_file_that_its_command_prints(capsys):
    assert blocks("bash") == [example("slurm/train.sh")]
    assert printed(capsys, *typed_on_the_page("slurm")) == example("slurm/train.sh")


@pytest.mark.parametrize(("kind", "name"), list(zip(KINDS, ON_KUBERNETES, strict=True)))
def test_the_page_names_the_manifests_that_its_command_prints(kind, name, capsys):
    assert f"| `{kind}` |" in PAGE
    assert printed(capsys, *typed_on_the_page("kubernetes"), "--kind", kind) == example(f"kubernetes/{name}")


def documents():
    return [one for name in ON_KUBERNETES for one in yaml.safe_load_all(example(f"kubernetes/{name}"))]


@pytest.fixture
def batch_job(tmp_path):
    """Runs the batch file with a srun that ends with a given code; what was called, a line each."""
    (script,) = blocks("bash")
    programs = tmp_path / "bin"
    programs.mkdir()
    calls = tmp_path / "calls"
    for name, code in (("srun", "${SRUN_CODE}"), ("scontrol", "0")):
        program = programs / name
        program.write_text(f'#!/bin/bash\necho "{name} $*" >> {calls}\nexit {code}\n')
        program.chmod(0o755)

    def run(srun_code):
        calls.unlink(missing_ok=True)
        environ = {"PATH": f"{programs}:/usr/bin:/bin", "SRUN_CODE": str(srun_code)}
        environ |= {"SLURM_JOB_ID": "42", "SLURM_CPUS_PER_TASK": "32"}
        ended = subprocess.run(
            ["bash", "-u", "-c", script], cwd=tmp_path, env=environ, capture_output=True, text=True, check=False
        )
        assert ended.stderr == ""
        return ended.returncode, calls.read_text().splitlines()

    return run


def test_a_saved_job_is_queued_again(batch_job):
    code, calls = batch_job(75)
    assert code == 75
    assert [call.split()[0] for call in calls] == ["srun", "scontrol"]
    assert calls[1] == "scontrol requeue 42"


@pytest.mark.parametrize("ended", [0, 1, 5, 6])
def test_any_other_end_is_the_jobs_end(batch_job, ended):
    code, calls = batch_job(ended)
    assert code == ended
    assert [call.split()[0] for call in calls] == ["srun"]


def test_the_next_start_resumes_where_a_checkpoint_is(batch_job, tmp_path):
    assert "--resume" not in batch_job(0)[1][0]
    weights = tmp_path / "runs/train/slurm-42/weights"
    weights.mkdir(parents=True)
    (weights / "last.pt").touch()
    assert batch_job(0)[1][0].endswith("--exist-ok --resume runs/train/slurm-42")


def test_every_container_starts_sound_shell_and_mounts_what_its_pod_has():
    train_job, pytorch_job, service, job = documents()
    replicas = pytorch_job["spec"]["pytorchReplicaSpecs"]
    assert [one["kind"] for one in (train_job, service, job)] == ["TrainJob", "Service", "Job"]
    pods = [replicas["Master"]["template"], replicas["Worker"]["template"], job["spec"]["template"]]
    for pod in pods:
        (container,) = pod["spec"]["containers"]
        mounted = {mount["name"] for mount in container["volumeMounts"]}
        assert mounted == {volume["name"] for volume in pod["spec"]["volumes"]}
    for container in [train_job["spec"]["trainer"], *(pod["spec"]["containers"][0] for pod in pods)]:
        assert container["command"] == ["bash", "-c"]
        subprocess.run(["bash", "-n", "-c", *container["args"]], check=True)


def test_the_indexed_job_names_its_own_first_pod():
    *_, service, job = documents()
    pod = job["spec"]["template"]["spec"]
    assert pod["subdomain"] == service["metadata"]["name"]
    assert service["spec"]["selector"] == {"job-name": job["metadata"]["name"]}
    master = f"{job['metadata']['name']}-0.{pod['subdomain']}"
    script = pod["containers"][0]["args"][0]
    assert f"--master {master} " in script
    assert f"--nodes {job['spec']['completions']} " in script
    assert job["spec"]["completions"] == job["spec"]["parallelism"]


@pytest.mark.parametrize("command", ["node", "doctor"])
def test_every_option_on_the_page_exists(command):
    parameters = typer.main.get_command(app).commands[command].params
    known = {flag for parameter in parameters for flag in (*parameter.opts, *parameter.secondary_opts)}
    joined = PAGE.replace("\\\n", " ")
    lines = re.findall(rf"yolo-launch,? {command}\b[^\n]*", joined)
    # Two commands stand side by side in the first example; what follows the second belongs to it.
    typed = {flag for line in lines for flag in re.findall(r"(?<![\w-])--[a-z][a-z-]+", line.split("#")[0])}
    assert typed - known == set()
    assert len(typed) > 2

"""The program as typed: its options, its exit codes, its words, and what it does not load."""

from __future__ import annotations

import json
import os
import resource
import subprocess
import sys
from dataclasses import asdict, replace
from pathlib import Path

import pytest
import typer

import trainer
from yolo_launch.cli.main import app, run_program
from yolo_launch.errors import ExitCode

PROJECT_DIR = Path(__file__).resolve().parents[3]
TRAIN_FLAGS = """
--allow-leakage --amp --autoanchor --batch --batch-size --cache --cfg --checkpoint-interval --compile --config
--cos-lr --data --debug --detach --deterministic --device --dry-run --epochs --exist-ok --freeze --gpus --hyp
--image-weights --img --img-size --imgsz --inline --json --label-smoothing --max-bad-share --max-restarts --mirror
--multi-scale --name --nbs --noautoanchor --nominal-batch --noplots --nosave --noval --nproc --optimizer --override
--parallel --patience --plots --port --project --recipe --rect --resume --save --save-period --seed --set --single-cls
--skip-difficult --skip-truncated --stall-timeout --sync-bn --val --val-data --weights --workers
"""
NODE_FLAGS = """
--rank --master --nodes --join-timeout --rejoin-timeout --join-grace --token --token-file
"""
PLAN_FLAGS = """
--batch --batch-size --debug --device --gpus --host --img --img-size --imgsz --json --max-restarts --nnodes --nproc
--parallel --port --stall-timeout --sync-bn --workers
"""
RUN_FLAGS = """
--debug --detach --device --dry-run --gpus --json --max-restarts --module --name --nproc --port --project
--stall-timeout --rank --master --nodes --join-timeout --rejoin-timeout --join-grace --token --token-file
"""
SUBMIT_FLAGS = """
--account --cpus-per-node --cpus-per-task --debug --dry-run --gpus-per-node --image --job-name --json --kind --namespace
--nnodes --nodes --partition --runtime --sbatch --time --token-secret --volumes
"""
DOCTOR_FLAGS = """
--batch --batch-size --data --debug --deep --device --gpus --img --img-size --imgsz --join-timeout --json --master
--nodes --nproc --port --project --rank --token --token-file --workers
"""


@pytest.mark.parametrize(
    ("command", "flags"),
    [
        ("train", TRAIN_FLAGS),
        ("node", TRAIN_FLAGS.replace("--inline", "") + NODE_FLAGS),
        ("plan", PLAN_FLAGS),
        ("run", RUN_FLAGS),
        ("submit", SUBMIT_FLAGS),
        ("runs", "--json --debug"),
        ("attach", "--project --lines --json --debug"),
        ("stop", "--project --wait --json --debug"),
        ("doctor", DOCTOR_FLAGS),
        ("data check", "--imgsz --img --img-size --json --debug"),
        ("data split", "--val --test --folds --group-by --seed --out --json --debug"),
        ("data convert", "--to --out --copy --json --debug"),
        ("data dedupe", "--near --out --json --debug"),
    ],
)
def test_the_options_are_these_and_no_others(command, flags):
    """A new option is a decision: it changes this list."""
    found = typer.main.get_command(app)
    for word in command.split():
        found = found.commands[word]
    parameters = found.params
    found = {flag for parameter in parameters for flag in (*parameter.opts, *parameter.secondary_opts)}
    assert {flag for flag in found if flag.startswith("--")} == set(flags.split())


@pytest.fixture
def here(tmp_path, monkeypatch):
    """An empty working folder, and no GPU whatever the machine has."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    return tmp_path


@pytest.mark.parametrize(
    "typed",
    [
        "--help",
        "train --help",
        "run --help",
        "plan --gpus cpu --json",
        "submit slurm train --dry-run",
        "doctor --gpus cpu",
        "train --dry-run --gpus cpu",
        "train --dry-run --json --cfg yolov5n --gpus cpu --nproc 2",
        "train --data nope.yaml",
        "train --resume",
    ],
)
def test_help_planning_and_preflight_leave_torch_unloaded(tmp_path, typed):
    code = (
        "import sys\nfrom yolo_launch.cli.main import run_program\nrun_program(sys.argv[1:])\n"
        "heavy = {'torch', 'torchvision', 'cv2', 'matplotlib', 'scipy'} & set(sys.modules)\n"
        "sys.exit(f'loaded: {heavy}' if heavy else 0)"
    )
    child = subprocess.run(
        [sys.executable, "-c", code, *typed.split()],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(PROJECT_DIR)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert child.returncode == 0, child.stderr


def test_the_version_is_said_without_a_command(capsys):
    assert run_program(["--version"]) == ExitCode.DONE
    said = capsys.readouterr()
    assert (said.out, said.err) == (f"yolo-launch {trainer.__version__}\n", "")


def test_a_dry_run_shows_all_and_makes_nothing(here, capsys):
    assert run_program(["train", "--dry-run", "--gpus", "cpu", "--nproc", "2", "--batch", "8"]) == 0
    out = capsys.readouterr().out
    for piece in (
        "(the embedded data set)",
        "yolov5n at 160",
        "runs/train/exp",
        "8 in all, 4 a worker",
        "rank 1 -> CPU (1 thread)",
        "torchrun --standalone --nproc_per_node=2 --max_restarts=3 -m trainer runs/train/exp/config.yaml",
    ):
        assert piece in out
    assert list(here.iterdir()) == []


def test_a_dry_run_in_json_is_one_object(here, capsys):
    typed = "train --dry-run --json --gpus cpu --nproc 2 --batch 8 --cfg yolov5n"
    assert run_program(typed.split()) == 0
    facts = json.loads(capsys.readouterr().out)
    assert (facts["mode"], facts["world_size"], facts["local_batch_size"]) == ("ddp", 2, 4)
    assert facts["backend"] == "gloo"
    assert facts["torchrun"].endswith("-m trainer runs/train/exp/config.yaml --run-dir runs/train/exp")


def test_a_dry_run_of_what_would_be_refused_shows_why_and_fails(here, capsys):
    assert run_program(["train", "--dry-run", "--json", "--data", "nope.yaml"]) == ExitCode.USAGE
    facts = json.loads(capsys.readouterr().out)
    assert any("nope.yaml" in finding["seen"] for finding in facts["findings"] if finding["level"] == "failure")


@pytest.mark.parametrize(
    ("typed", "exit_code", "said"),
    [
        ("train --batch 15 --gpus cpu --nproc 2", 2, "Use --batch 14 or 16, or one worker"),
        ("train --batch many", 2, "Expected: a number above 0, or auto"),
        ("train --gpus 0", 3, "there is none to use"),
        ("train --evolve 300", 2, "hyperparameters are not evolved here"),
        ("train --lr0 0.1", 2, "--set lr0=VALUE"),
        ("train --set lr=0.1", 2, "did you mean 'lrf'?"),
        ("train --set lr0=fast", 2, "hyperparameter lr0 cannot be used"),
        ("train --hyp nope.yaml", 2, "built-in set: low, med, high, none"),
        ("train --optimizer RMSprop", 2, "--optimizer cannot be used"),
        ("train --imgsz 0", 2, "--imgsz cannot be used"),
        ("train --cfg yolov5q", 2, "There is no model definition yolov5q"),
        ("train --weights yolov5s.pt", 2, "nothing is downloaded here"),
        ("train --config nope.yaml", 2, "the configuration file is missing"),
        ("train --resume exp7", 2, "The run to resume is not there"),
        ("train --resume --config x.yaml", 2, "--resume takes the run's own configuration"),
        ("train --nope", 2, "No such option"),
        ("run nope.py", 2, "the script nope.py is missing"),
        ("plan --host nope.json", 2, "The host file is missing"),
    ],
)
def test_mistakes_get_one_clear_error_and_no_traceback(here, capsys, typed, exit_code, said):
    assert run_program(typed.split()) == exit_code
    out, err = capsys.readouterr()
    assert said in err
    assert "Traceback" not in out + err
    assert list(here.iterdir()) == []


def test_json_errors_are_an_object_too(here, capsys):
    assert run_program(["train", "--json", "--gpus", "0"]) == ExitCode.ENVIRONMENT
    content = json.loads(capsys.readouterr().out)
    assert content["exit_code"] == 3
    assert content["error"]["next_command"] == "yolo-launch doctor"


def test_debug_shows_the_traceback(yolo_launch):
    assert "Traceback" not in yolo_launch("train", "--gpus", "x").stderr
    assert "Traceback" in yolo_launch("train", "--gpus", "x", "--debug").stderr


def test_a_plan_for_another_machine(here, capsys, make_host):
    (here / "server.json").write_text(json.dumps({"host": asdict(make_host(8)), "findings": []}))
    assert run_program(["plan", "--host", "server.json", "--gpus", "all", "--batch", "256", "--json"]) == 0
    facts = json.loads(capsys.readouterr().out)
    assert (facts["world_size"], facts["local_batch_size"], facts["backend"]) == (8, 32, "nccl")
    assert run_program(["plan", "--host", "server.json", "--gpus", "0,1,2", "--batch", "256"]) == 2
    proposed = "yolo-launch plan --host server.json --gpus 0,1 --batch 256"
    assert proposed in capsys.readouterr().err
    assert run_program(proposed.split()[1:]) == 0


def test_a_plan_for_a_machine_whose_gpu_is_in_parts(here, capsys, make_host, make_gpu):
    parts = [replace(make_gpu(i), uuid=f"MIG-{i}aaa", is_mig=True, name="A100 MIG 3g.20gb") for i in range(2)]
    (here / "mig.json").write_text(json.dumps({"host": asdict(make_host(tuple(parts)))}))
    assert run_program(["plan", "--host", "mig.json", "--json"]) == 0
    facts = json.loads(capsys.readouterr().out)
    assert (facts["mode"], facts["world_size"], facts["environment"]["CUDA_VISIBLE_DEVICES"]) == (
        "single",
        1,
        "MIG-0aaa",
    )
    assert any("one of 2 MIG instances" in finding["seen"] for finding in facts["findings"])
    assert run_program(["plan", "--host", "mig.json", "--gpus", "0,1"]) in (ExitCode.USAGE, ExitCode.ENVIRONMENT)
    assert "one MIG instance" in capsys.readouterr().err


def test_what_the_doctor_writes_can_be_planned_for(here, capsys):
    assert run_program(["doctor", "--json"]) == 0
    report = capsys.readouterr().out
    (here / "host.json").write_text(report)
    assert {"check", "level", "seen", "advice"} <= set(json.loads(report)["findings"][0])
    assert run_program(["plan", "--host", "host.json"]) == 0


def test_the_doctor_fails_with_the_environments_code(here, capsys):
    assert run_program(["doctor", "--data", "nope.yaml"]) == ExitCode.ENVIRONMENT
    out = capsys.readouterr().out
    assert "FAILURE data" in out
    assert out.splitlines()[-1].startswith("1 failure")
    assert run_program(["doctor", "--gpus", "3"]) == ExitCode.ENVIRONMENT


def test_a_script_is_planned_with_its_own_arguments(here, capsys):
    (here / "train.py").write_text("")
    typed = ["run", "train.py", "--gpus", "cpu", "--nproc", "2", "--dry-run", "--", "--data", "coco.yaml", "--evolve"]
    assert run_program(typed) == 0
    assert "torchrun --standalone --nproc_per_node=2 train.py --data coco.yaml --evolve" in capsys.readouterr().out


def test_a_scripts_batch_is_its_own(here, capsys):
    (here / "train.py").write_text("")
    assert run_program(["run", "--gpus", "cpu", "--dry-run", "train.py"]) == 0
    out = capsys.readouterr().out
    assert "  batch " not in out
    assert "loader" not in out
    assert "none; stopped after 300 s without progress if it writes heartbeats" in out


def test_an_option_before_the_script_has_to_exist(here, capsys):
    (here / "train.py").write_text("")
    assert run_program(["run", "--nope", "train.py", "--data", "coco.yaml"]) == ExitCode.USAGE
    err = capsys.readouterr().err
    assert "has no option --nope" in err
    assert "the launcher's options first, then the script" in err


def test_help_and_dry_runs_cost_little(yolo_launch):
    """Processor time beside that of the libraries they need: a busy neighbor or a slow core must not fail this."""
    libraries = (sys.executable, "-c", "import typer.main, rich.table, rich.panel, pydantic, yaml, psutil, numpy")
    allowed_s = 2 * _least_cost_s(lambda: subprocess.run(libraries, check=True))
    for typed in (("--help",), ("train", "--dry-run", "--gpus", "cpu")):
        assert _least_cost_s(lambda typed=typed: yolo_launch(*typed).check_returncode()) < allowed_s


def _least_cost_s(start):
    """Returns the seconds of processor time that the cheapest of three starts took."""
    costs_s = []
    for _ in range(3):
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        start()
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        costs_s.append(after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime)
    return min(costs_s)

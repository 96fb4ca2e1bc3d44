"""What a script sees under ``run``, beside plain python and torchrun: a script writes all of it down."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.processes.conftest import PROGRAM, PROJECT_DIR, WORKERS_DIR

UNSAFE = ["-P"] if sys.version_info >= (3, 11) else []
WAYS = {
    "python": [sys.executable],
    "torchrun": [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=1"],
    "torchrun2": [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"],
    "run": [sys.executable, *UNSAFE, "-c", PROGRAM, "run", "--gpus", "cpu"],
    "run2": [sys.executable, *UNSAFE, "-c", PROGRAM, "run", "--gpus", "cpu", "--nproc", "2"],
}
OURS = {"YOLO_LOGS_DIR", "YOLO_LAUNCH_JOB"}
"""Variables that a script finds under ``run`` alone."""
PLANNED = {"CUDA_VISIBLE_DEVICES", "CUDA_DEVICE_ORDER", "OMP_NUM_THREADS", "MKL_NUM_THREADS", "GOMP_SPINCOUNT"}
"""Variables that the plan sets: devices and threads."""
AGENTS = {"TORCHELASTIC_SIGNALS_TO_HANDLE"}
"""A variable by which torch's agent speaks to itself."""
DIFFERENT_EACH_TIME = {"MASTER_PORT", "TORCHELASTIC_RUN_ID", "TORCHELASTIC_ERROR_FILE", "PROBE_OUT"}


@pytest.fixture
def look(tmp_path):
    """Runs the probe in one of the ways; gives what each rank saw."""

    def run(way, *arguments, script="probe.py", ranks=1, module=False, stdin="", **environment):
        folder = tmp_path / "scripts"
        folder.mkdir(exist_ok=True)
        (folder / "probe.py").write_text((WORKERS_DIR / "probe.py").read_text())
        out = tmp_path / f"{way}.json"
        typed = ["-m", script] if module else [script]
        if way.startswith("run"):
            typed = [*(["--module"] if module else []), script, "--"]
        inherited = {**os.environ, **environment, "PROBE_OUT": str(out), "PYTHONPATH": str(PROJECT_DIR)}
        for name in ("OMP_NUM_THREADS", "GOMP_SPINCOUNT"):
            inherited.pop(name, None)
        subprocess.run(
            [*WAYS[way], *typed, *arguments],
            cwd=folder,
            env=inherited,
            input=stdin,
            text=True,
            check=True,
            capture_output=True,
            timeout=120,
        )
        seen = [json.loads(Path(f"{out}.{rank}").read_text()) for rank in range(ranks)]
        return seen if ranks > 1 else seen[0]

    return run


def without(seen, *names):
    return {name: value for name, value in seen.items() if name not in names}


# The intended differences of the interpreter: -u as under torchrun; stacks on SIGUSR2; output that is shown and kept.
INTENDED = ("environment", "flags", "our modules", "excepthook")


@pytest.mark.parametrize(
    ("script", "module", "environment"),
    [
        ("probe.py", False, {}),
        ("./../scripts/probe.py", False, {"PYTHONSAFEPATH": "1", "PYTHONWARNINGS": "error::UserWarning"}),
        ("probe", True, {}),
    ],
    ids=["file", "safe-path", "module"],
)
def test_one_worker_sees_what_plain_python_shows(look, script, module, environment):
    plain, ours = (
        look(way, "--epochs", "3", script=script, module=module, stdin="hello\n", PROBE_READS="1", **environment)
        for way in ("python", "run")
    )
    assert plain["stdin"] == ours["stdin"] == "hello\n"
    assert without(ours, *INTENDED) == without(plain, *INTENDED)
    assert {name for name, value in ours["flags"].items() if value != plain["flags"][name]} <= {"unbuffered"}
    for name in ("pickled", "pickled at exit", "pickled in a thread after the last line"):
        assert ours[name] == plain[name]


def test_one_worker_has_torchruns_variables(look):
    plain, torchrun, ours = (look(way)["environment"] for way in ("python", "torchrun", "run"))
    given = set(torchrun) - set(plain)
    assert {"RANK", "LOCAL_RANK", "WORLD_SIZE", "MASTER_ADDR", "TORCHELASTIC_RESTART_COUNT"} < given
    assert given - set(ours) <= AGENTS
    assert set(ours) - set(torchrun) - PLANNED == OURS
    differing = {name for name in given - AGENTS if ours[name] != torchrun[name]} - DIFFERENT_EACH_TIME - PLANNED
    # Nobody keeps the store of a lone worker: it serves its own. torchrun's --standalone has a name for the address.
    assert differing == {"TORCHELASTIC_USE_AGENT_STORE", "MASTER_ADDR", "ROLE_NAME"}


@pytest.mark.slow
def test_two_workers_see_what_torchrun_shows(look):
    for ours, theirs in zip(look("run2", ranks=2), look("torchrun2", ranks=2), strict=True):
        assert without(ours, *INTENDED, "terminal", "stdin") == without(theirs, *INTENDED, "terminal", "stdin")
        names = set(ours["environment"]) ^ set(theirs["environment"])
        assert names - PLANNED == OURS
        for name in ("RANK", "LOCAL_RANK", "WORLD_SIZE", "GROUP_RANK", "ROLE_RANK", "TORCHELASTIC_RESTART_COUNT"):
            assert ours["environment"][name] == theirs["environment"][name]


GROUP = """
import os, torch.distributed as dist
dist.init_process_group("gloo")
print("group of", dist.get_world_size(), "restart", os.environ["TORCHELASTIC_RESTART_COUNT"], flush=True)
dist.destroy_process_group()
raise SystemExit("no more" if os.environ["TORCHELASTIC_RESTART_COUNT"] == "0" else 0)
"""


@pytest.mark.parametrize("ranks", ["1", pytest.param("2", marks=pytest.mark.slow)])
def test_a_script_makes_its_group_and_knows_of_its_restarts(job, ranks):
    (job.run_dir / "group.py").parent.mkdir(parents=True)
    (job.run_dir / "group.py").write_text(
        "import json, os, time\nbeat = os.environ['YOLO_LOGS_DIR']\n"
        "open(beat + '/rank0.heartbeat.json', 'w').write(json.dumps({'phase': 'train', 'step': 3}))\n"
        "time.sleep(1)\n" + GROUP
    )
    job.start_program("run", "--gpus", "cpu", "--nproc", ranks, "--max-restarts", "1", "group.py")
    assert job.wait(120) == 0, job.stderr
    assert f"group of {ranks} restart 0" in job.stdout
    assert f"group of {ranks} restart 1" in job.stdout
    assert "no more" in job.stderr

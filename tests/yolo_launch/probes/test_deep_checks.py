"""The slower checks, with real processes on the CPU; what needs a GPU is judged on recorded answers."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import psutil
import pytest

from trainer.config.train import make_config
from yolo_launch.checks.context import Context
from yolo_launch.errors import LaunchError
from yolo_launch.host.inventory import inspect_host
from yolo_launch.planning.plan import make_plan
from yolo_launch.probes import batch_size as batch_probe
from yolo_launch.probes import deep_checks as probes
from yolo_launch.probes import runner as probe_child
from yolo_launch.probes.batch_search import search_largest
from yolo_launch.probes.batch_size import measure_batch
from yolo_launch.probes.deep_checks import ProbeLimits, judge_loading
from yolo_launch.probes.runner import ProbeEnd, probe_environment, run_processes
from yolo_launch.spec import Device, LaunchRequest

PROJECT_DIR = Path(__file__).resolve().parents[3]
GIB = 1 << 30


@pytest.fixture(autouse=True)
def _children_find_the_project(monkeypatch, tmp_path):
    monkeypatch.setenv("PYTHONPATH", str(PROJECT_DIR))
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


@pytest.fixture(scope="module")
def host():
    return inspect_host({})


@pytest.fixture
def context(host, tmp_path, bccd_yaml):
    plan = make_plan(LaunchRequest(gpus="cpu", nproc=2, global_batch_size=4, image_size=64, workers=0), host)
    config = make_config({"data": str(bccd_yaml), "imgsz": 64, "cfg": "yolov5n"})
    return Context(host, plan, config, tmp_path / "runs" / "exp")


def only(found):
    (finding,) = found
    return finding


def run_code(code: str, limit_s: float = 20.0, count: int = 1) -> list[ProbeEnd]:
    return run_processes([sys.executable, "-c", code], [probe_environment(None)] * count, limit_s)


def test_two_workers_sum_over_gloo(context):
    finding = only(probes.probe_all_reduce(context, ProbeLimits()))
    assert finding.level == "ok"
    assert finding.seen.startswith("2 workers over gloo: 29 MB summed in ")


def test_an_all_reduce_that_cannot_work_is_a_finding(context, monkeypatch):
    monkeypatch.setenv("GLOO_SOCKET_IFNAME", "absent0")
    finding = only(probes.probe_all_reduce(context, ProbeLimits()))
    assert finding.level == "failure"
    assert "absent0" in finding.seen
    assert finding.advice


def test_a_hung_probe_ends_at_its_limit_with_all_it_started():
    nap = f"time.sleep(600.{os.getpid()})"  # in the command lines of this run's processes and of no other's
    code = (
        f"import subprocess, sys, time\nsubprocess.Popen([sys.executable, '-c', 'import time; {nap}'])\ntime.sleep(600)"
    )
    before = {child.pid for child in psutil.Process().children(recursive=True)}
    began_at = time.monotonic()
    end = only(run_code(code, limit_s=1.5))
    assert 1.4 < time.monotonic() - began_at < 5
    assert end.timed_out
    assert "did not end within 1.5 s" in end.problem
    left = {child.pid for child in psutil.Process().children(recursive=True)} - before
    assert not left
    # A killed grandchild is the kernel's to take down, which is not over when the call returns.
    deadline = time.monotonic() + 2
    while napping(nap) and time.monotonic() < deadline:
        time.sleep(0.02)
    assert not napping(nap)


def napping(mark):
    """Live processes with the mark in their command line."""
    live = [p for p in psutil.process_iter(["cmdline", "status"]) if p.info["status"] != psutil.STATUS_ZOMBIE]
    return [process for process in live if mark in " ".join(process.info["cmdline"] or ())]


def test_a_probe_that_fails_says_why_and_ends_the_others_early(monkeypatch):
    monkeypatch.setattr(probe_child, "GRACE_S", 0.5)
    code = "import os, time; time.sleep(0.2 if os.environ['RANK'] == '1' else 600); raise OSError('no such wire')"
    environments = [probe_environment(None, RANK=str(rank)) for rank in range(2)]
    began_at = time.monotonic()
    ends = run_processes([sys.executable, "-c", code], environments, 60.0)
    assert time.monotonic() - began_at < 20
    assert "OSError: no such wire" in ends[1].problem
    assert "another process failed first" in ends[0].problem


def test_a_killed_probe_names_the_signal():
    assert "SIGKILL" in only(run_code("import os; os.kill(os.getpid(), 9)")).problem


def test_an_exception_inside_a_probe_becomes_a_finding(context, monkeypatch):
    def broken(context, limits):
        raise ZeroDivisionError("of its own")

    monkeypatch.setattr(probes, "PROBES", (("wires", broken), ("network", probes.probe_network)))
    heard: list[str] = []
    found = probes.run_probes(context, heard.append)
    assert (found[0].check, found[0].level) == ("wires", "warning")
    assert "ZeroDivisionError: of its own" in found[0].seen
    assert [finding.level for finding in found if finding.check == "port"] == ["ok"]
    assert len(heard) == 2


def test_the_disk_is_timed_and_nothing_stays(context, tmp_path):
    before = sorted(tmp_path.rglob("*"))
    finding = only(probes.probe_disk(context, ProbeLimits()))
    assert finding.check == "disk"
    assert "MB/s" in finding.seen
    assert sorted(tmp_path.rglob("*")) == before


def test_both_splits_are_scanned(context):
    found = list(probes.probe_data(context, ProbeLimits()))
    assert [finding.level for finding in found[:2]] == ["ok", "ok"]
    assert found[0].seen.startswith("train: ")
    assert found[1].seen.startswith("val: ")


def test_bad_labels_are_named_with_their_file(context, bccd_yaml, tmp_path):
    copied = tmp_path / "bccd"
    shutil.copytree(bccd_yaml.parent, copied)
    label = sorted((copied / "labels/train").glob("*.txt"))[0]
    label.write_text("0 0.5 0.5 nonsense 0.1\n")
    config = context.config.model_copy(update={"data": str(copied / "bccd.yaml")})
    found = list(probes.probe_data(replace(context, config=config), ProbeLimits()))
    warnings = [finding.seen for finding in found if finding.level == "warning"]
    assert any(f"{label}:1" in seen for seen in warnings)
    label.write_text("77 0.5 0.5 0.1 0.1\n")
    finding = only(probes.probe_data(replace(context, config=config), ProbeLimits()))
    assert finding.level == "failure"
    assert "class 77" in finding.seen


def test_without_data_the_way_to_have_it_checked_is_told(context):
    finding = only(probes.probe_data(replace(context, config=None), ProbeLimits()))
    assert "--data FILE" in finding.advice


def test_loading_is_timed_against_a_real_step(context, tmp_path, monkeypatch):
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    finding = only(probes.probe_loading(context, ProbeLimits()))
    assert finding.check == "loading"
    assert finding.seen.startswith("2 images load in 0.")
    assert "no loader process" in finding.seen


def test_a_step_that_takes_too_long_is_a_finding(context):
    finding = only(probes.probe_loading(context, ProbeLimits(loading_s=0.3)))
    assert finding.level == "warning"
    assert "did not end within 0.3 s" in finding.seen
    assert "--imgsz" in finding.advice


@pytest.mark.parametrize(
    ("load_s", "workers", "level", "advice"),
    [
        (0.05, 2, "ok", ""),  # hidden behind the step
        (0.4, 2, "warning", "--workers 8 or --cache ram"),
        (0.4, 16, "warning", "--cache ram"),  # no cores are left
        (0.1, 0, "warning", "--workers"),  # nothing is hidden without a process of its own
        (0.01, 0, "ok", ""),
    ],
)
def test_what_loading_times_mean(load_s, workers, level, advice):
    finding = judge_loading({"images": 16, "load_s": load_s, "step_s": 0.1}, workers, cores=16)
    assert finding.level == level
    assert finding.advice.startswith(advice)


def nccl(usual, without_peers):
    ends = [ProbeEnd({"bytes": 28_800_000, "seconds": s}) if isinstance(s, float) else ProbeEnd(problem=s)
            for s in (usual, without_peers)]  # fmt: skip
    return probes._judge_nccl(2, *ends)


def test_what_an_nccl_all_reduce_with_and_without_peers_means():
    assert nccl(0.001, 0.004).level == "ok"
    broken = nccl("it did not end within 90 s and was stopped", 0.004)
    assert broken.level == "failure"
    assert broken.advice.startswith("NCCL_P2P_DISABLE=1")
    assert "without peer-to-peer it works" in broken.seen
    slow = nccl(0.1, 0.004)
    assert (slow.level, slow.advice[:18]) == ("warning", "NCCL_P2P_DISABLE=1")
    assert nccl("unhandled system error", "unhandled system error").advice.startswith("NCCL_DEBUG=INFO")


def test_a_gpu_that_cannot_be_used_is_a_failure(context):
    gpu = Device("cuda", 0, "GPU-00000000-absent", "RTX 3090", 24 * GIB, 23 * GIB)
    gpus = replace(context, plan=replace(context.plan, devices=(gpu,), environment={}))
    finding = only(probes.probe_gpus(gpus, ProbeLimits()))
    assert finding.level == "failure"
    assert "GPU 0 (RTX 3090" in finding.seen


def test_the_search_finds_the_largest_batch_and_never_exceeds_the_budget():
    def peak_of(size):
        return 2 * GIB + size * GIB // 4 if size < 90 else None  # beyond, memory runs out

    found = search_largest(peak_of, 20 * GIB, 1024)
    assert found.batch_size == 72
    assert [size for size, _ in found.tried] == [1, 2, 4, 8, 16, 32, 64, 128, 72]
    assert search_largest(peak_of, 20 * GIB, 20).batch_size == 16
    assert search_largest(peak_of, GIB, 64).batch_size == 0
    assert search_largest(peak_of, 3 * GIB, 64).batch_size == 4
    assert search_largest(lambda size: GIB if size < 50 else None, 20 * GIB, 1024).batch_size == 48


def test_the_search_survives_a_prediction_that_does_not_fit():
    found = search_largest(lambda size: size if size <= 70 else None, 1 << 40, 1024)
    assert found.batch_size in (64, 72 - 8)


def test_measure_batch_takes_what_the_smallest_device_takes(context, monkeypatch):
    answers = iter([24, 16])

    def recorded(name, arguments, environments, timeout_s):
        assert len(environments) == 2
        assert arguments["most"] == 8
        return [ProbeEnd({"batch_size": next(answers), "tried": [[1, 1]], "budget_bytes": 9}) for _ in environments]

    monkeypatch.setattr(batch_probe, "run_probe", recorded)
    heard: list[str] = []
    assert measure_batch(context.plan, context.config, say=heard.append) == 32
    assert heard[-1].startswith("--batch auto: 32 in all, 16 for each of 2 devices")


def test_measure_batch_runs_real_steps(context, monkeypatch):
    monkeypatch.setattr(batch_probe, "FEWEST_IMAGES", 3)
    monkeypatch.setattr(batch_probe, "FEWEST_STEPS", 1000)
    heard: list[str] = []
    plan = replace(context.plan, devices=context.plan.devices[:1])
    assert measure_batch(plan, context.config, say=heard.append, budget_bytes=64 * GIB) == 3
    assert heard[0] == "CPU: tried 1, 2, 3 with success"
    assert "training images" in heard[1]


def test_measure_batch_says_where_nothing_fits(context, monkeypatch):
    end = ProbeEnd({"batch_size": 0, "tried": [[1, None]], "budget_bytes": GIB})
    monkeypatch.setattr(batch_probe, "run_probe", lambda *arguments: [end])
    plan = replace(context.plan, devices=context.plan.devices[:1])
    with pytest.raises(LaunchError, match="no room for a single image"):
        measure_batch(plan, context.config, say=lambda line: None)


def test_doctor_deep_prints_its_findings(tmp_path):
    command = [
        sys.executable,
        "-c",
        "from yolo_launch.cli.main import main; main()",
        "doctor",
        "--deep",
        "--gpus",
        "cpu",
    ]
    run = subprocess.run(
        [*command, "--json"], cwd=tmp_path, capture_output=True, text=True, timeout=120, env=os.environ
    )
    assert run.returncode == 0, run.stdout + run.stderr
    for check in ('"disk"', '"data set"', '"port"'):
        assert check in run.stdout


@pytest.mark.slow
def test_doctor_looks_at_everything_a_run_on_the_cpu_meets(tmp_path, bccd_yaml):
    typed = f"doctor --deep --gpus cpu --nproc 2 --imgsz 64 --data {bccd_yaml}"
    command = [sys.executable, "-c", "from yolo_launch.cli.main import main; main()", *typed.split()]
    run = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=240, env=os.environ)
    assert run.returncode == 0, run.stdout + run.stderr
    rows = run.stdout.splitlines()
    found = {row.split(":")[0].split(" ", 1)[1] for row in rows if row.startswith(("ok ", "warning "))}
    assert found >= {"python", "torch", "torchvision", "data", "model", "run directory", "shm", "memory"}
    assert found >= {"all-reduce", "disk", "host name", "port", "data set", "loading"}
    assert "warning" in rows[-1] or rows[-1] == "nothing stands in the way"
    assert list(tmp_path.glob("runs*")) == []

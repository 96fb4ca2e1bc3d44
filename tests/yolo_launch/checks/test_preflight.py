"""Each check by itself: what it sees, and what it says to type."""

from __future__ import annotations

import os
import socket
from dataclasses import replace

import cv2
import numpy as np
import pytest

from trainer.config.train import make_config
from yolo_launch.checks import inputs as input_checks
from yolo_launch.checks import machine as machine_checks
from yolo_launch.checks.context import Context
from yolo_launch.checks.preflight import CHECKS, refuse_failures, run_checks
from yolo_launch.errors import ExitCode, LaunchError
from yolo_launch.planning.plan import make_plan
from yolo_launch.spec import Finding, LaunchRequest


@pytest.fixture
def dataset(tmp_path):
    """A data set of two pictures."""
    for split in ("train", "val"):
        (tmp_path / "images" / split).mkdir(parents=True)
        cv2.imwrite(str(tmp_path / "images" / split / "a.png"), np.zeros((8, 8, 3), np.uint8))
        (tmp_path / "labels" / split).mkdir(parents=True)
        (tmp_path / "labels" / split / "a.txt").write_text("0 0.5 0.5 0.4 0.4\n")
    path = tmp_path / "data.yaml"
    path.write_text("path: .\ntrain: images/train\nval: images/val\nnames: [cat, dog]\n")
    return path


@pytest.fixture
def context(make_host, dataset, tmp_path):
    """A run with nothing wrong."""
    host = make_host(1)
    config = make_config({"data": str(dataset), "cfg": "yolov5n"})
    return Context(host, make_plan(LaunchRequest(), host), config, tmp_path / "runs" / "train" / "exp")


def found(check, context):
    return [(finding.level, finding.seen) for finding in check(context)]


def configured(context, **options):
    return replace(context, config=make_config({**context.config.model_dump(mode="json"), **options}))


def test_nothing_wrong_is_all_ok(context):
    findings = run_checks(context)
    assert {finding.level for finding in findings} == {"ok"}
    refuse_failures(findings)
    assert ("ok", "2 classes, 1 training and 1 validation images") in found(input_checks.check_data, context)


def test_compiling_needs_a_compiler(context, monkeypatch, tmp_path):
    wanted = configured(context, compile=True)
    assert found(machine_checks.check_compiler, context) == found(machine_checks.check_compiler, wanted) == []
    monkeypatch.setenv("CC", "no-such-compiler")
    ((level, seen),) = found(machine_checks.check_compiler, wanted)
    assert (level, seen) == ("failure", "--compile needs the compiler no-such-compiler, not found here")
    monkeypatch.delenv("CC")
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    ((_, seen),) = found(machine_checks.check_compiler, wanted)
    assert seen == "--compile needs the compiler gcc and the package triton, not found here"
    on_cpu = replace(wanted, plan=make_plan(LaunchRequest(gpus="cpu"), context.host))
    ((_, seen),) = found(machine_checks.check_compiler, on_cpu)
    assert seen == "--compile needs the compiler g++, not found here"


def test_every_check_that_is_written_is_used():
    named = {
        value
        for room in (input_checks, machine_checks)
        for name, value in vars(room).items()
        if name.startswith("check_") and value.__module__ == room.__name__
    }
    assert set(CHECKS) == named


def test_checks_without_their_subject_say_nothing(make_host):
    levels = {finding.level for finding in run_checks(Context(make_host(1)))}
    assert "failure" not in levels


@pytest.mark.parametrize(
    ("version", "level"), [("3.9.1", "failure"), ("3.10.0", "ok"), ("3.13.2", "ok"), ("3.14.0", "warning")]
)
def test_python(make_host, version, level):
    assert found(machine_checks.check_python, Context(make_host(python_version=version)))[0][0] == level


@pytest.mark.parametrize("content", [None, ""])
def test_a_validation_split_without_labels_is_warned_of(context, dataset, content):
    label = dataset.parent / "labels" / "val" / "a.txt"
    label.unlink()
    if content is not None:
        label.write_text(content)
    cv2.imwrite(str(dataset.parent / "images" / "val" / "b.png"), np.zeros((8, 8, 3), np.uint8))
    input_checks._count_data.cache_clear()
    seen = (
        f"no validation image has a label (looked for {label}): the run cannot be judged, so no epoch is the best one, "
    )
    findings = found(input_checks.check_data, context)
    assert findings[1:] == [("warning", f"{seen}none ends it early, and the exit code is 7")]
    label.with_name("b.txt").write_text("0 0.5 0.5 0.4 0.4\n")
    input_checks._count_data.cache_clear()
    assert [level for level, _ in found(input_checks.check_data, context)] == ["ok"], "one label is enough"


def test_missing_data_shows_where_it_was_looked_for(context, tmp_path):
    level, seen = found(input_checks.check_data, configured(context, data=str(tmp_path / "nope.yaml")))[0]
    assert level == "failure"
    assert str(tmp_path / "nope.yaml") in seen
    (tmp_path / "empty.yaml").write_text("train: images/none\nval: images/val\nnames: [cat]\n")
    level, seen = found(input_checks.check_data, configured(context, data=str(tmp_path / "empty.yaml")))[0]
    assert level == "failure"
    assert "images/none" in seen


def test_an_unknown_model_gets_the_nearest_name(context):
    finding = next(iter(input_checks.check_model(configured(context, cfg="yolov5sm"))))
    assert finding.level == "failure"
    assert finding.advice.startswith("--cfg yolov5")


@pytest.mark.parametrize(
    ("weights", "said"),
    [
        ("yolov5s.pt", "releases page of github.com/ultralytics/yolov5"),
        ("models/yolov3-tiny.pt", "releases page of github.com/ultralytics/yolov3"),
        ("mine.pt", "the weights file mine.pt is missing"),
    ],
)
def test_missing_weights_are_never_downloaded(context, weights, said):
    level, seen = found(input_checks.check_weights, configured(context, weights=weights))[0]
    assert level == "failure"
    assert said in seen


def test_weights_that_are_there_or_not_needed(context, tmp_path):
    (tmp_path / "mine.pt").write_bytes(b"x")
    assert found(input_checks.check_weights, configured(context, weights=str(tmp_path / "mine.pt")))[0][0] == "ok"
    assert found(input_checks.check_weights, configured(context, weights=str(tmp_path)))[0][0] == "failure"
    assert found(input_checks.check_weights, replace(configured(context, weights="gone.pt"), is_resume=True)) == []
    assert found(input_checks.check_weights, context) == []


def test_an_image_size_that_is_rounded_says_so(context):
    level, seen = found(input_checks.check_image_size, configured(context, imgsz=330))[0]
    assert (level, "352 is used" in seen) == ("warning", True)


@pytest.mark.parametrize(
    ("script", "fails"),
    [
        ("missing.py", True),
        ("-m json.tool", False),
        ("-m json.toool", True),
        ("-m no_such_module_here", True),
        ("-m .json", True),
        ("-m sys", False),
    ],
)
def test_scripts(context, script, fails):
    assert bool(found(input_checks.check_script, replace(context, script=script))) is fails


def test_a_module_in_the_working_folder_is_found_and_not_imported(context, tmp_path, monkeypatch):
    (tmp_path / "their_package").mkdir()
    (tmp_path / "their_package" / "__init__.py").write_text("raise RuntimeError('imported')")
    (tmp_path / "their_package" / "train.py").write_text("")
    monkeypatch.chdir(tmp_path)
    for script, count in (("-m their_package.train", 0), ("-m their_package.trian", 1)):
        assert len(found(input_checks.check_script, replace(context, script=script))) == count


def test_a_run_directory_below_a_file_or_without_permission(context, tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    assert found(machine_checks.check_run_dir, replace(context, run_dir=tmp_path / "file" / "exp"))[0][0] == "failure"
    monkeypatch.setattr(os, "access", lambda *_: False)
    level, seen = found(machine_checks.check_run_dir, context)[0]
    assert (level, "cannot be written" in seen) == ("failure", True)


@pytest.mark.parametrize(("free", "level"), [(0, "failure"), (5 << 20, "warning"), (50 << 30, "ok")])
def test_disk_space(context, monkeypatch, free, level):
    monkeypatch.setattr(machine_checks.shutil, "disk_usage", lambda _: type("Usage", (), {"free": free}))
    assert found(machine_checks.check_run_dir, context)[0][0] == level


def test_limits_of_containers(make_host):
    assert found(machine_checks.check_open_files, Context(make_host(open_file_limit=256)))[0][0] == "warning"
    assert found(machine_checks.check_shared_memory, Context(make_host(shm_total_bytes=64 << 20)))[0][0] == "warning"
    assert found(machine_checks.check_shared_memory, Context(make_host())) == []
    assert found(machine_checks.check_gpus, Context(make_host(gpu_problem="mismatch"))) == [("warning", "mismatch")]


def test_a_cache_larger_than_memory(context):
    small = replace(context, host=replace(context.host, memory_available_bytes=1 << 20))
    assert found(input_checks.check_memory_for_cache, configured(small, cache="ram"))[0][0] == "warning"
    level, seen = found(input_checks.check_memory_for_cache, configured(context, cache="ram"))[0]
    assert (level, seen) == ("ok", "100.0 GB are free; --cache ram needs up to 2 MB for 2 images")
    level, seen = found(input_checks.check_memory_for_cache, small)[0]
    assert (level, "would not fit" in seen) == ("ok", True)


@pytest.mark.parametrize(
    ("driver_cuda", "torch_cuda", "level"),
    [
        ("12.4", "12.1", "ok"),
        ("12.2", "12.8", "ok"),
        ("12.4", "13.0", "warning"),
        ("", "12.1", "ok"),
        ("12.4", "", "ok"),
    ],
)
def test_the_driver_against_torchs_cuda(make_host, driver_cuda, torch_cuda, level):
    host = make_host(1, driver_version="550.54", driver_cuda_version=driver_cuda)
    host = replace(host, torch=replace(host.torch, cuda_version=torch_cuda))
    assert found(machine_checks.check_driver, Context(host))[0][0] == level
    assert found(machine_checks.check_driver, Context(make_host(0))) == []


def test_shared_memory_against_what_this_run_needs(context, make_host):
    assert found(machine_checks.check_shared_memory, context) == [
        ("ok", "/dev/shm has 64.0 GB free; this run needs none")
    ]
    docker = make_host(2, shm_free_bytes=64 << 20, shm_total_bytes=64 << 20)
    for gpus, level, words in (
        ("0", "ok", "needs none"),
        ("cpu", "ok", "needs none"),
        ("0,1", "warning", "74 MB for 2 GPUs"),
    ):
        plan = make_plan(LaunchRequest(gpus=gpus, global_batch_size=256), docker)
        ((seen_level, seen),) = found(machine_checks.check_shared_memory, replace(context, host=docker, plan=plan))
        assert (seen_level, words in seen) == (level, True)
    plan = make_plan(LaunchRequest(gpus="0,1"), make_host(2))
    assert "NCCL may need 74 MB" in found(machine_checks.check_shared_memory, replace(context, plan=plan))[0][1]


def test_a_busy_port_names_its_holder(context):
    with socket.create_server(("", 0)) as server:
        plan = replace(context.plan, port=server.getsockname()[1])
        level, seen = found(machine_checks.check_port, replace(context, plan=plan))[0]
        assert level == "failure"
        assert f"PID {os.getpid()}" in seen
    assert found(machine_checks.check_port, context) == []


def test_host_names(context, monkeypatch):
    several = replace(
        context, plan=replace(context.plan, nnodes=2), host=replace(context.host, addresses={"eth0": ("10.0.0.7",)})
    )

    def resolves_to(address):
        monkeypatch.setattr(machine_checks.socket, "getaddrinfo", lambda *_: [(2, 1, 6, "", (address, 0))])

    resolves_to("127.0.1.1")
    assert found(machine_checks.check_host_name, several) == [
        ("warning", "server resolves to 127.0.1.1; 10.0.0.7 is used instead")
    ]
    resolves_to("10.0.0.7")
    assert found(machine_checks.check_host_name, several)[0][0] == "ok"
    assert found(machine_checks.check_host_name, context) == []


def test_every_failure_is_told_at_once_and_typing_differs_from_machines():
    typed = Finding("data", "failure", "no data", "fix it")
    machine = Finding("port", "failure", "busy port", "")
    with pytest.raises(LaunchError) as caught:
        refuse_failures([typed, Finding("weights", "failure", "no weights"), Finding("x", "warning", "w")])
    assert caught.value.what == "no data\nno weights"
    assert caught.value.next_command == "fix it"
    assert caught.value.exit_code == ExitCode.USAGE
    with pytest.raises(LaunchError) as caught:
        refuse_failures([typed, machine])
    assert caught.value.exit_code == ExitCode.ENVIRONMENT

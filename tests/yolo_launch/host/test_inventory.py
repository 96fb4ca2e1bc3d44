"""This machine, and machines in files."""

from __future__ import annotations

import json
import os
import resource
from dataclasses import asdict

import pytest

from yolo_launch.errors import LaunchError
from yolo_launch.host import inventory
from yolo_launch.host.inventory import host_from_dict, inspect_host, read_host_file, relevant_environment
from yolo_launch.host.nvml import NvmlReport
from yolo_launch.planning.masks import visible_devices
from yolo_launch.spec import TorchFacts

PROBE_OF_TWO_BEHIND_A_MASK = """
import json, os
count = 1 if {"CUDA_VISIBLE_DEVICES", "HIP_VISIBLE_DEVICES"} & set(os.environ) else 2
print("DEVICES " + json.dumps([dict(kind="cuda", index=i, name="MI300X") for i in range(count)]))
"""


def test_this_machine_is_described_as_this_process_may_use_it():
    host = inspect_host({"CUDA_VISIBLE_DEVICES": "1"})
    assert 1 <= host.cpu_cores <= len(os.sched_getaffinity(0))
    assert 0 < host.memory_available_bytes <= host.memory_total_bytes
    assert host.open_file_limit == resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    assert host.visible_devices == "1"
    assert any("127.0.0.1" in found for found in host.addresses.values())
    assert host.torch.torch_version


def test_affinity_counts(monkeypatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: {3})
    assert inspect_host({}).cpu_cores == 1


def test_only_variables_of_a_launch_are_kept():
    environ = {
        "RANK": "1",
        "MASTER_PORT": "1",
        "PET_NNODES": "2",
        "TORCHELASTIC_RUN_ID": "x",
        "NCCL_DEBUG": "INFO",
        "OMP_NUM_THREADS": "4",
        "AWS_SECRET_ACCESS_KEY": "secret",
        "HOME": "/root",
        "RANKING": "x",
    }
    assert set(relevant_environment(environ)) == set(environ) - {"AWS_SECRET_ACCESS_KEY", "HOME", "RANKING"}


def test_a_host_survives_json(make_host, make_gpu, busy_process):
    gpu = make_gpu(0, processes=(busy_process,), links={"GPU-x": "NVLink"})
    host = make_host((gpu,), addresses={"eth0": ("10.0.0.1", "fe80::1")}, visible_devices="0")
    assert host_from_dict(json.loads(json.dumps(asdict(host)))) == host


def test_host_files_with_and_without_the_doctors_frame(make_host, tmp_path):
    host = make_host(2)
    path = tmp_path / "host.json"
    for content in ({"host": asdict(host), "findings": []}, asdict(host)):
        path.write_text(json.dumps(content))
        assert read_host_file(path) == host


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "missing"),
        ("not json", "cannot be read"),
        ("{}", "does not describe"),
        ("[]", "does not describe"),
        ('{"host": {"devices": 3}}', "does not describe"),
        ('{"host": null}', "does not describe"),
    ],
)
def test_bad_host_files_are_explained(tmp_path, content, message):
    path = tmp_path / "host.json"
    if content is not None:
        path.write_text(content)
    with pytest.raises(LaunchError, match=message) as caught:
        read_host_file(path)
    assert "doctor --json" in caught.value.next_command


def test_other_accelerators_are_asked_of_torch_in_a_child(monkeypatch):
    monkeypatch.setattr(inventory, "_may_have_other_accelerator", lambda: True)
    monkeypatch.setattr(inventory, "_PROBE", 'print("DEVICES " + \'[{"kind": "mps", "name": "Apple GPU"}]\')')
    monkeypatch.setattr(inventory, "read_gpus", NvmlReport)
    assert [device.kind for device in inspect_host({}).devices] == ["mps"]


def test_a_machine_without_nvml_is_asked_once_and_its_mask_applied_once(monkeypatch):
    monkeypatch.setattr(inventory, "_may_have_other_accelerator", lambda: True)
    monkeypatch.setattr(inventory, "_PROBE", PROBE_OF_TWO_BEHIND_A_MASK)
    monkeypatch.setattr(inventory, "read_gpus", NvmlReport)
    for name in ("CUDA_VISIBLE_DEVICES", "HIP_VISIBLE_DEVICES"):
        monkeypatch.setenv(name, "1")
    host = inspect_host({"CUDA_VISIBLE_DEVICES": "1"})
    assert [device.index for device in host.devices] == [0, 1]
    assert [device.index for device in visible_devices(host)] == [1]


def test_a_torch_for_rocm_reads_rocms_mask_and_not_nvml(monkeypatch, make_gpu):
    monkeypatch.setattr(inventory, "_may_have_other_accelerator", lambda: True)
    monkeypatch.setattr(inventory, "_PROBE", PROBE_OF_TWO_BEHIND_A_MASK)
    monkeypatch.setattr(inventory, "read_gpus", lambda: NvmlReport((make_gpu(0),), present=True))
    monkeypatch.setattr(inventory, "read_torch_facts", lambda: TorchFacts("2.9.0+rocm6.4", hip_version="6.4"))
    host = inspect_host({"CUDA_VISIBLE_DEVICES": "0", "HIP_VISIBLE_DEVICES": "1"})
    assert (host.mask_variable, host.visible_devices) == ("HIP_VISIBLE_DEVICES", "1")
    assert [device.name for device in host.devices] == ["MI300X", "MI300X"]
    assert inspect_host({"CUDA_VISIBLE_DEVICES": "0"}).visible_devices == "0"


def test_a_probe_that_fails_finds_nothing(monkeypatch):
    monkeypatch.setattr(inventory, "_PROBE", "raise SystemExit(3)")
    assert inventory._probe_with_torch() == ()

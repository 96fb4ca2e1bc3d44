"""Versions from package metadata, without importing torch."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import runpy
from pathlib import Path

import pytest
from packaging.version import Version

from yolo_launch.host.torch_versions import (
    check_torch,
    check_torchvision,
    is_cpu_build,
    is_ddp_broken,
    is_older,
    read_torch_facts,
    release_of,
    satisfies,
)
from yolo_launch.spec import TorchFacts


def test_the_installed_pair_is_read_and_fits():
    facts = read_torch_facts()
    assert facts.torch_version.startswith(importlib.metadata.version("torch"))
    assert facts.torchvision_version.startswith(importlib.metadata.version("torchvision"))
    assert satisfies(facts.torch_version, facts.torchvision_needs)
    # The file that torch itself takes these from, run on its own.
    version_file = Path(importlib.util.find_spec("torch").origin).with_name("version.py")
    told = runpy.run_path(str(version_file))
    assert facts.torch_version == told["__version__"]
    assert facts.cuda_version == (told["cuda"] or "")


@pytest.mark.parametrize(
    ("version", "release"),
    [("2.4.1+cu121", "2.4.1"), ("1.12", "1.12"), ("2.5.0a0+git12", "2.5.0"), ("", "None"), ("weird", "None")],
)
def test_releases(version, release):
    assert str(release_of(version)) == release


@pytest.mark.parametrize(
    ("version", "requirement", "fits"),
    [
        ("2.4.1+cu121", "==2.4.1", True),
        ("2.4.0", "==2.4.1", False),
        ("2.4", "==2.4.0", True),
        ("2.15.0", ">=2.14.0", True),
        ("2.13.1", ">=2.14.0", False),
        ("2.4.1", "==2.4.*", True),
        ("2.5.0", "==2.4.*", False),
        ("2.4.9", "~=2.4.1", True),
        ("2.5.0", "~=2.4.1", False),
        ("2.4.1", ">=2.2,<2.4", False),
        ("2.4.1", "!=2.4.1", False),
        ("2.4.1", "", True),
        ("2.4.1", "something new", True),
        ("", "==2.4.1", True),
        ("2.10.0", ">2.9", True),
    ],
)
def test_requirements(version, requirement, fits):
    assert satisfies(version, requirement) is fits


@pytest.mark.parametrize(
    ("version", "broken"),
    [("1.12.0", True), ("1.12", True), ("1.12.0+cu113", True), ("1.12.1", False), ("2.4.1", False)],
)
def test_only_one_release_breaks_ddp(version, broken):
    assert is_ddp_broken(TorchFacts(version)) is broken


@pytest.mark.parametrize(("version", "older"), [("1.10.2", True), ("1.11.0", False), ("2.15.0", False)])
def test_versions_compare_by_number(version, older):
    assert is_older(version, Version("1.11")) is older


def finding(version, *, builtin=True, ddp=False):
    found = check_torch(TorchFacts(version), device_count=2, builtin_trainer=builtin, is_ddp=ddp)
    assert len(found) == 1
    return found[0]


def test_old_torch_is_refused_for_the_trainer_but_runs_scripts():
    assert finding("2.1.2").level == "failure"
    assert "'yolo-launch run SCRIPT' works" in finding("2.1.2").seen
    assert finding("2.1.2", builtin=False).level == "ok"
    assert finding("1.10.0", builtin=False).level == "failure"
    assert finding("").seen == "torch is not installed"
    assert finding("2.4.0").level == "ok"


def test_the_broken_release_is_named_with_its_torchvision():
    facts = TorchFacts("1.12.0", "0.13.0")
    found = check_torch(facts, device_count=3, builtin_trainer=False, is_ddp=True)
    assert found[0].level == "failure"
    assert "torch 1.12.0 (with torchvision 0.13.0) cannot train on 3 chosen devices" in found[0].seen


@pytest.mark.parametrize(
    ("facts", "on_gpu", "level"),
    [
        (TorchFacts("2.4.1+cu121", "0.19.1+cu121", "12.1", "", "==2.4.1", "cu121"), True, "ok"),
        (TorchFacts("2.4.1+cu121", "0.18.0+cu121", "12.1", "", "==2.3.0", "cu121"), True, "failure"),
        (TorchFacts("2.4.1+cu121", "0.19.1+cpu", "12.1", "", "==2.4.1", "cpu"), True, "failure"),
        (TorchFacts("2.4.1+cu121", "0.19.1+cpu", "12.1", "", "==2.4.1", "cpu"), False, "warning"),
        (TorchFacts("2.4.1+cpu", "0.19.1+cpu", "", "", "==2.4.1", "cpu"), False, "ok"),
        (TorchFacts("2.4.1", ""), False, "failure"),
    ],
)
def test_torchvision_must_match(facts, on_gpu, level):
    assert [f.level for f in check_torchvision(facts, builtin_trainer=True, on_gpu=on_gpu)] == [level]


def test_builds():
    assert is_cpu_build(TorchFacts("2.4.1+cpu"))
    assert not is_cpu_build(TorchFacts("2.4.1", cuda_version="12.1"))
    assert not is_cpu_build(TorchFacts("2.4.1", hip_version="6.0"))
    assert not is_cpu_build(TorchFacts())

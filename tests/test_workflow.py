"""What machines run: pairs that exist; the workflow, .ci/run and the hooks run the Makefile and no more."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

PROJECT_DIR = Path(__file__).resolve().parents[1]
WORKFLOW = PROJECT_DIR / ".github" / "workflows" / "ci.yml"
PROJECT = (PROJECT_DIR / "pyproject.toml").read_text(encoding="utf-8")
MAKEFILE = (PROJECT_DIR / "Makefile").read_text(encoding="utf-8")
TARGETS = set(re.findall(r"^([a-z][\w-]*):", MAKEFILE, flags=re.MULTILINE))
CONSTRAINED = "--constraint constraints.txt"
CONSTRAINTS_SINCE = (3, 11)
"""The oldest Python that the versions of constraints.txt exist for."""
NEWEST_TORCH_ON_3_10 = (2, 14)
TORCHVISION_OF = {(2, 4): (0, 19), (2, 14): (0, 29), (2, 15): (0, 29)}
"""torch to the torchvision that was made for it, for the versions in use here."""

JOBS = yaml.safe_load(WORKFLOW.read_text(encoding="utf-8"))["jobs"]
PAIRS = JOBS["test"]["strategy"]["matrix"]["include"]


def version(text):
    return tuple(int(part) for part in text.split(".")[:2])


def lower_bound(package):
    (bound,) = re.findall(rf'"{package}>=([\d.]+)"', PROJECT)
    return version(bound)


def pinned(text, package):
    """The version that pip is told in pins or in a file of constraints."""
    (found,) = re.findall(rf"(?<![\w-]){package}==(\d+\.\d+)", text)
    return version(found)


def pins_of(pair):
    return (PROJECT_DIR / "constraints.txt").read_text() if pair["pins"] == CONSTRAINED else pair["pins"]


@pytest.mark.parametrize("pair", PAIRS, ids=lambda pair: pair["python"])
def test_a_pair_exists_and_is_supported(pair):
    python = version(pair["python"])
    torch, torchvision = pinned(pins_of(pair), "torch"), pinned(pins_of(pair), "torchvision")
    (oldest,) = re.findall(r'^requires-python = ">=([\d.]+)"$', PROJECT, flags=re.MULTILINE)
    assert python >= version(oldest)
    assert torch >= lower_bound("torch")
    assert torchvision >= lower_bound("torchvision")
    assert TORCHVISION_OF[torch] == torchvision
    assert pair["pins"] != CONSTRAINED or python >= CONSTRAINTS_SINCE
    assert python != (3, 10) or torch == NEWEST_TORCH_ON_3_10


def test_every_python_of_the_project_is_tested_and_the_oldest_torch_too():
    pythons = re.findall(r'"Programming Language :: Python :: (3\.\d+)"', PROJECT)
    assert [pair["python"] for pair in PAIRS] == pythons
    assert lower_bound("torch") in {pinned(pins_of(pair), "torch") for pair in PAIRS}


def test_steps_run_targets_of_the_makefile():
    steps = [step for job in JOBS.values() for step in job["steps"]]
    commands = [step["run"] for step in steps if "run" in step]
    assert {command.split()[0] for command in commands} == {"make"}
    called = {command.split()[1] for command in commands}
    assert called == {"setup", "check", "test", "coverage", "docs"}
    assert called <= TARGETS
    assert {step["uses"].split("@")[0] for step in steps if "uses" in step} == {
        "actions/checkout",
        "actions/setup-python",
    }
    assert JOBS["test"]["steps"][2]["run"] == 'make setup PINS="${{ matrix.pins }}"'


def test_the_makefile_has_the_targets_that_people_are_told():
    assert {"setup", "store", "check", "test", "test-slow", "test-image", "coverage", "docs", "bench"} <= TARGETS
    (phony,) = re.findall(r"^\.PHONY: (.*)$", MAKEFILE, flags=re.MULTILINE)
    assert set(phony.split()) == TARGETS


def test_ci_runs_targets_of_the_makefile():
    script = (PROJECT_DIR / ".ci" / "run").read_text(encoding="utf-8")
    calls = re.findall(r"^make (.*)$", script, flags=re.MULTILINE)
    called = [word for call in calls for word in call.split() if "=" not in word]
    assert called == ["setup", "store", "check", "test", "test-slow"]
    subprocess.run(["bash", "-n", str(PROJECT_DIR / ".ci" / "run")], check=True)


def test_setup_passes_the_pins_on_and_tests_run_in_its_environment(tmp_path):
    pins = "'torch==2.4.*' 'torchvision==0.19.*'"
    command = ["make", "-n", "setup", "test", f"PYTHON={sys.executable}", f"VENV={tmp_path}/venv", f"PINS={pins}"]
    shown = subprocess.run(command, cwd=PROJECT_DIR, capture_output=True, text=True, check=True).stdout
    assert f"{tmp_path}/venv/bin/pip install --quiet {pins} '.[test,dev,export,coco,s3]'" in shown
    assert "pip install --quiet --no-deps --force-reinstall --editable ." in shown
    assert f"\n{tmp_path}/venv/bin/pytest " in shown


def test_each_package_that_the_project_names_is_pinned_once():
    """Two pins of one package cannot be installed, and one that is missing lets CI drift."""
    lines = [line for line in (PROJECT_DIR / "constraints.txt").read_text().splitlines() if not line.startswith("#")]
    pinned_names = [line.partition("==")[0].lower() for line in lines]
    assert len(pinned_names) == len(set(pinned_names))
    named = {(name or stub).lower() for name, stub in re.findall(r'"([\w-]+)>=|"(types-[\w-]+)"', PROJECT)}
    assert {"torch", "types-psutil", "faster-coco-eval", "pytest-cov"} <= named
    assert named - {"tensorboard", "gcsfs", "setuptools"} <= set(pinned_names)  # CI installs neither of the first two


def test_coverage_is_of_the_rooms_whose_tests_it_runs():
    (table,) = re.findall(r"^\[tool\.coverage\.run\]\n(.*?)^\[", PROJECT, flags=re.MULTILINE | re.DOTALL)
    rooms = re.findall(r'^    "([\w.]+)",$', table, flags=re.MULTILINE)
    shown = subprocess.run(["make", "-n", "coverage"], cwd=PROJECT_DIR, capture_output=True, text=True, check=True)
    folders = re.findall(r" (tests/\S+)", shown.stdout)
    assert folders == [f"tests/{room.replace('.', '/')}" for room in rooms]
    assert all((PROJECT_DIR / folder).is_dir() for folder in folders)


def test_hooks_fetch_nothing():
    hooks = yaml.safe_load((PROJECT_DIR / ".pre-commit-config.yaml").read_text(encoding="utf-8"))
    assert [repository["repo"] for repository in hooks["repos"]] == ["local"]
    (local,) = hooks["repos"]
    assert {hook["language"] for hook in local["hooks"]} == {"system"}
    programs = {hook["entry"].split()[0] for hook in local["hooks"]}
    assert [name for name in programs if not re.search(rf'^    "{name}>=', PROJECT, flags=re.MULTILINE)] == []


@pytest.mark.parametrize("name", ["bug.yml", "idea.yml"])
def test_issue_forms_are_whole(name):
    form = yaml.safe_load((PROJECT_DIR / ".github" / "ISSUE_TEMPLATE" / name).read_text(encoding="utf-8"))
    assert form["name"]
    assert form["description"]
    ids = [part["id"] for part in form["body"]]
    assert len(set(ids)) == len(ids) >= 3
    assert all(part["type"] == "textarea" and part["attributes"]["label"] for part in form["body"])

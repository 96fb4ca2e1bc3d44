"""``python -m yolo_launch`` is the program."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from yolo_launch.__main__ import share_code

PROJECT_DIR = Path(__file__).resolve().parents[2]


def run_module(*arguments):
    command = [sys.executable, "-m", "yolo_launch", *arguments]
    return subprocess.run(command, cwd=PROJECT_DIR, capture_output=True, text=True, timeout=60, check=False)


def test_the_module_shows_the_help_of_the_program():
    ended = run_module("train", "--help")
    assert ended.returncode == 0
    assert "Usage: yolo-launch train" in ended.stdout
    assert "--epochs" in ended.stdout


def test_a_mistake_has_its_exit_code_and_the_program_in_the_next_command():
    ended = run_module("train", "--gpus", "cpu", "--nproc", "2", "--batch", "15", "--dry-run")
    assert ended.returncode == 2
    assert "yolo-launch train --dry-run --gpus cpu --nproc 1 --batch 15" in ended.stderr


@pytest.mark.parametrize("inherited", ["", "/elsewhere"])
def test_workers_get_the_code_of_a_checkout(inherited, monkeypatch):
    monkeypatch.setenv("PYTHONPATH", inherited)
    monkeypatch.setattr(sys, "path", [str(PROJECT_DIR), *sys.path])
    share_code()
    assert os.environ["PYTHONPATH"].split(os.pathsep) == [str(PROJECT_DIR), *([inherited] if inherited else [])]


@pytest.mark.parametrize("first", ["", "/some/folder"])
def test_an_installed_program_changes_no_path(first, monkeypatch):
    monkeypatch.setenv("PYTHONPATH", "/elsewhere")
    monkeypatch.setattr(sys, "path", [first, *sys.path])
    share_code()
    assert os.environ["PYTHONPATH"] == "/elsewhere"

"""The first hour with a card, rehearsed on the CPU at toy size, so that it works on the day there is a card."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

PROJECT_DIR = Path(__file__).resolve().parents[1]


def run(out, *words, limit_s=400):
    command = [sys.executable, str(PROJECT_DIR / "benchmarks" / "gpu.py"), "--out", str(out), *words]
    environment = {**os.environ, "PYTHONPATH": str(PROJECT_DIR)}
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=limit_s)


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a card")
def test_without_a_card_nothing_is_measured(tmp_path):
    ended = run(tmp_path / "out")
    assert ended.returncode == 3
    assert "no CUDA device" in ended.stderr
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
def test_every_part_is_rehearsed_and_green(tmp_path):
    parts = "machine,dead_uuid,waits,gradients,accuracy,step,loader,throughput,resume,finetune,export,batch_auto"
    ended = run(tmp_path, "--rehearse", "--parts", parts)
    results = json.loads((tmp_path / "results.json").read_text())
    assert ended.returncode == 0, ended.stdout
    assert list(results["parts"]) == parts.split(",")
    for found in results["parts"].values():
        assert found["checks"]
        assert found["figures"]
    assert "not run: one card" in (tmp_path / "results.md").read_text()


@pytest.mark.slow
def test_a_wrong_value_turns_its_part_red_and_what_was_green_is_kept(tmp_path):
    assert run(tmp_path / "first", "--rehearse", "--parts", "gradients").returncode == 0
    earlier = str(tmp_path / "first" / "results.json")
    planted = run(
        tmp_path / "second", "--rehearse", "--parts", "gradients,machine", "--plant", "machine", "--continue", earlier
    )
    assert planted.returncode == 1
    assert "machine: RED" in planted.stdout
    assert "gradients: " not in planted.stdout, "it was green before"


def test_a_part_without_time_is_told(tmp_path):
    ended = run(tmp_path, "--rehearse", "--parts", "gradients", "--minutes", "0.01")
    assert "gradients: no time left" in ended.stdout

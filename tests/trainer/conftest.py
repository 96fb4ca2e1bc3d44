"""Small real data and real ranks for the trainer's tests."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
import yaml

PROJECT_DIR = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="session")
def small_bccd(copy_bccd: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A data-set YAML with the first 22 training and 10 validation images of bccd."""
    return copy_bccd(tmp_path_factory.mktemp("small_bccd"), 22, 10)


@pytest.fixture
def run_config(small_bccd: Path, tmp_path: Path) -> Callable[..., Path]:
    """Writes a configuration for a tiny, fast run; keywords replace options."""

    def write(**options: object) -> Path:
        values = {
            "data": str(small_bccd),
            "cfg": "yolov5n",
            "imgsz": 64,
            "epochs": 2,
            "batch_size": 8,
            "workers": 0,
            "plots": False,
            **options,
        }
        path = tmp_path / "config.yaml"
        path.write_text(yaml.safe_dump(values))
        return path

    return write


def start_ranks(arguments: Sequence[str], world_size: int, **extra: str) -> list[subprocess.Popen[str]]:
    """One process a rank of ``python ARGUMENTS``, with the environment that a launcher gives."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    processes = []
    for rank in range(world_size):
        environ = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(PROJECT_DIR), **extra}
        if world_size > 1:
            environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(world_size)}
            environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "GLOO_SOCKET_IFNAME": "lo"}
        processes.append(
            subprocess.Popen(
                [sys.executable, *arguments], env=environ, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
            )
        )
    return processes


@pytest.fixture
def run_ranks() -> Callable[..., list[str]]:
    """Runs a script in every rank to its end; returns what each printed, and fails when one fails."""

    def run(arguments: Sequence[str], world_size: int, expected: int = 0, **extra: str) -> list[str]:
        processes = start_ranks(arguments, world_size, **extra)
        outputs = [process.communicate(timeout=240)[0] for process in processes]
        for process, output in zip(processes, outputs, strict=True):
            assert process.returncode == expected, output
        return outputs

    return run

"""Machines that are not here, and the program in a process of its own."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from yolo_launch.spec import Device, GpuProcess, Host, TorchFacts

PROJECT_DIR = Path(__file__).resolve().parents[2]
GB = 1 << 30
CUDA_TORCH = TorchFacts("2.4.1+cu121", "0.19.1+cu121", "12.1", "", "==2.4.1", "cu121")


@pytest.fixture(autouse=True)
def driver_that_starts(monkeypatch: pytest.MonkeyPatch) -> None:
    """The GPUs of machines that are not here start; this machine's driver is not asked."""
    monkeypatch.setattr("yolo_launch.host.cuda_driver.find_problem", lambda environment, devices: "")


@pytest.fixture(scope="session")
def make_gpu() -> Callable[..., Device]:
    """A GPU nobody uses, unless told otherwise."""

    def make(index: int, name: str = "RTX 3090", total_gb: float = 24, free_gb: float = 23.5, **more) -> Device:
        return Device(
            kind="cuda",
            index=index,
            uuid=more.pop("uuid", f"GPU-{index}b12cd34-0000"),
            name=name,
            memory_total_bytes=int(total_gb * GB),
            memory_free_bytes=int(free_gb * GB),
            compute_capability=more.pop("compute_capability", (8, 6)),
            **more,
        )

    return make


@pytest.fixture(scope="session")
def make_host(make_gpu) -> Callable[..., Host]:
    """A machine with so many equal GPUs, or with the devices given."""

    def make(gpus: int | tuple[Device, ...] = 0, **more) -> Host:
        devices = tuple(make_gpu(index) for index in range(gpus)) if isinstance(gpus, int) else gpus
        facts = {
            "name": "server",
            "platform": "Linux x86_64",
            "devices": devices,
            "cpu_cores": 32,
            "memory_total_bytes": 128 * GB,
            "memory_available_bytes": 100 * GB,
            "shm_total_bytes": 64 * GB,
            "shm_free_bytes": 64 * GB,
            "open_file_limit": 65536,
            "torch": CUDA_TORCH,
            "python_version": "3.11.7",
        }
        return Host(**{**facts, **more})

    return make


@pytest.fixture(scope="session")
def busy_process() -> GpuProcess:
    """Somebody else's training."""
    return GpuProcess(4711, "ada", "python train.py --data birds.yaml", 9 * GB)


@pytest.fixture
def yolo_launch(tmp_path) -> Callable[..., subprocess.CompletedProcess[str]]:
    """Run the program in a fresh interpreter and folder, as a user without a terminal would."""

    def run(*arguments: str, timeout_s: float = 120, **environment: str) -> subprocess.CompletedProcess[str]:
        clean = {name: value for name, value in os.environ.items() if name != "CUDA_VISIBLE_DEVICES"}
        return subprocess.run(
            [sys.executable, "-c", "from yolo_launch.cli.main import main; main()", *arguments],
            cwd=tmp_path,
            env={**clean, "PYTHONPATH": str(PROJECT_DIR), "XDG_CACHE_HOME": str(tmp_path / "cache"), **environment},
            capture_output=True,
            text=True,
            timeout=timeout_s,
            check=False,
        )

    return run

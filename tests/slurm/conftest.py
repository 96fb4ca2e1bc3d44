"""One Slurm for all tests of this folder; each test leaves its queue and its nodes empty."""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest

from tests.slurm.cluster import COMMANDS, Cluster, wait_until

CPU = ("--gpus", "cpu", "--nproc", "1")
EPOCHS = 4


class Job:
    """A folder with a data set, and what a user types there."""

    def __init__(self, cluster: Cluster, folder: Path, training: tuple[str, ...]) -> None:
        self.cluster = cluster
        self.folder = folder
        self.training = training
        """Options of a short training."""

    def call(self, *command: str, timeout_s: float = 120.0) -> tuple[int, str]:
        """The exit code of a command on the controller, and what it said."""
        return self.cluster.call(*command, cwd=self.folder, timeout_s=timeout_s)

    def at_work(self) -> list[str]:
        return [f"{process.pid} {process.name()} on {name}" for name, process in self.cluster.at_work()]


@pytest.fixture(scope="session")
def slurm_packages() -> None:
    """Skips where Slurm or namespaces cannot be had."""
    if sys.platform != "linux" or os.geteuid() != 0:
        pytest.skip("needs root on Linux for namespaces")
    missing = [command for command in (*COMMANDS, "ip", "unshare", "nsenter") if shutil.which(command) is None]
    if missing:
        pytest.skip(f"needs {', '.join(missing)} (apt-get install slurmctld slurmd slurm-client munge iproute2)")
    spaces = ("--net", "--mount", "--uts", "--pid", "--fork", "--mount-proc")
    probe = subprocess.run(["unshare", *spaces, "true"], capture_output=True, text=True, timeout=20, check=False)
    if probe.returncode:
        pytest.skip(f"namespaces cannot be made here: {probe.stderr.strip()}")


@pytest.fixture(scope="session")
def shared_cluster(slurm_packages: None) -> Iterator[Cluster]:
    """A running Slurm; the namespaces of its machines end with it."""
    cluster = Cluster()
    yield cluster
    cluster.close()


@pytest.fixture
def cluster(shared_cluster: Cluster) -> Iterator[Cluster]:
    """The running Slurm; fails a test that leaves a job or a process there, and takes it away from the next one."""
    yield shared_cluster
    with contextlib.suppress(AssertionError):  # srun may end a moment before Slurm has cleared up behind it
        wait_until(lambda: not shared_cluster.queue() and not list(shared_cluster.at_work()), 15, str)
    queue, left = shared_cluster.queue(), list(shared_cluster.at_work())
    for line in queue:
        shared_cluster.slurm("scancel", "--signal=KILL", "--full", line.split()[0], check=False)
        shared_cluster.slurm("scancel", line.split()[0], check=False)
    for _, process in left:
        with contextlib.suppress(psutil.NoSuchProcess):
            process.kill()
    assert not queue
    assert not left
    shared_cluster.wait_for_nodes()


@pytest.fixture(scope="session")
def slurm_data(copy_bccd: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with data.yaml, 16 training and 4 validation images of bccd."""
    return copy_bccd(tmp_path_factory.mktemp("slurm_data"), 16, 4).parent


@pytest.fixture
def job(cluster: Cluster, tmp_path: Path, slurm_data: Path, tiny_model: Path) -> Job:
    """A folder that all machines see, with a data set in it."""
    shutil.copytree(slurm_data, tmp_path / "data")
    shape = ("--cfg", str(tiny_model), "--imgsz", "64", "--batch", "4", "--workers", "0", "--epochs", str(EPOCHS))
    return Job(cluster, tmp_path, ("--data", "data/data.yaml", *shape, "--noplots", *CPU))


def results(run_dir: Path) -> list[list[str]]:
    """The numbers of a run: names first, then a row an epoch."""
    rows = [line.split(",") for line in (run_dir / "results.csv").read_text().splitlines()]
    return [[value.strip() for value in row] for row in rows]


def submitted(said: str) -> str:
    """The number of the job in sbatch's answer."""
    found = re.search(r"Submitted batch job ([0-9]+)", said)
    assert found, said
    return found[1]

"""One Slurm for all tests of this folder; each test leaves its queue and its nodes empty."""

from __future__ import annotations

import contextlib
import json
import os
import shlex
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import psutil
import pytest

from tests.slurm.cluster import COMMANDS, Cluster, wait_until

PROJECT_DIR = Path(__file__).resolve().parents[2]
CPU = ("--gpus", "cpu", "--nproc", "1")
EPOCHS = 4


class Folder:
    """A folder with a data set that all machines see, and what a user types there."""

    def __init__(self, cluster: Cluster, path: Path, data: Path, model: Path) -> None:
        self.cluster = cluster
        self.path = path
        shutil.copytree(data, path / "data")
        shape = ("--cfg", str(model), "--imgsz", "64", "--batch", "4", "--workers", "0", "--epochs", str(EPOCHS))
        self.training = ("--data", "data/data.yaml", *shape, "--noplots", *CPU)
        """Options of a short training."""

    def call(self, *command: str, timeout_s: float = 240.0) -> tuple[int, str]:
        """The exit code of a command on the controller, and what it said."""
        return self.cluster.call(*command, cwd=self.path, timeout_s=timeout_s)

    def submit(self, *options: str, training: tuple[str, ...] = (), srun: str = "") -> BatchJob:
        """Hands in the batch file of docs/clusters.md, with a smaller training and nodes without GPUs."""
        script = (PROJECT_DIR / "examples/slurm/train.sh").read_text()
        for old, new in (
            ("--nodes=4\n", "--nodes=2\n"),
            ("#SBATCH --gpus-per-node=4\n", ""),
            ("--cpus-per-task=32\n", "--cpus-per-task=1\n"),
            ("srun --kill", f"srun {srun} --kill"),
            ("--data coco.yaml --batch 256", shlex.join((*self.training, *training))),
        ):
            assert script.count(old) == 1, old
            script = script.replace(old, new)
        (self.path / "train.sh").write_text(script)
        return BatchJob(self, self.cluster.slurm("sbatch", "--parsable", *options, "train.sh", cwd=self.path))


class BatchJob:
    """The batch file of the docs, handed in."""

    def __init__(self, folder: Folder, number: str) -> None:
        self.cluster = folder.cluster
        self.number = number
        self.run_dir = folder.path / f"runs/train/slurm-{number}"
        self._output = folder.path / f"slurm-{number}.out"

    @property
    def output(self) -> str:
        return self._output.read_text() if self._output.exists() else ""

    def _story(self) -> str:
        return f"{self.cluster.queue()}\n{self.output}\n{self.cluster.logs()}"

    def wait_for(self, text: str, timeout_s: float = 60.0) -> float:
        return wait_until(lambda: text in self.output, timeout_s, lambda: f"{text!r}: {self._story()}")

    def step(self) -> int:
        """How far rank 0 has come, by its heartbeat."""
        with contextlib.suppress(OSError, ValueError, KeyError):
            beat = json.loads((self.run_dir / "logs/rank0.heartbeat.json").read_text())
            return int(beat["step"]) if beat["phase"] in ("train", "val", "save", "done") else 0
        return 0

    def wait_for_step(self, step: int) -> float:
        return wait_until(lambda: self.step() >= step, 180, lambda: f"step {step}: {self._story()}")

    def freeze_in_training(self) -> psutil.Process:
        """Stops rank 0's worker after its first step, so that the training lasts until something comes."""
        self.wait_for_step(1)
        worker = self.processes("n1", RANK="0")[0]
        worker.suspend()
        return worker

    def thaw_at(self, worker: psutil.Process, said: str) -> None:
        """Lets a frozen worker go on once a launcher has said something."""
        self.wait_for(said, 90)
        with contextlib.suppress(psutil.NoSuchProcess):  # here Slurm's own signal to the step has let it go on already
            worker.resume()

    def processes(self, machine: str, **environment: str) -> list[psutil.Process]:
        """The leaders of sessions on a machine with these variables: workers, or with none a launcher's."""
        found = []
        for name, process in self.cluster.at_work():
            with contextlib.suppress(psutil.Error, OSError):
                is_leader = os.getsid(process.pid) == process.pid
                if name == machine and is_leader and environment.items() <= process.environ().items():
                    found.append(process)
        return found

    def launcher(self, machine: str) -> psutil.Process:
        """The ``yolo-launch`` that srun started on a machine."""
        at_work = [process for name, process in self.cluster.at_work() if name == machine]
        return next(
            p
            for p in at_work
            if p.parent() is not None and p.parent().name() == "slurmstepd" and "yolo-launch" in " ".join(p.cmdline())
        )

    def wait_for_state(self, *states: str, timeout_s: float = 180.0) -> float:
        """Waits until the job is PENDING, RUNNING, COMPLETED, ...; fails at once if it has ended in another way."""
        ends = {"COMPLETED", "FAILED", "CANCELLED", "TIMEOUT", "NODE_FAIL"} - set(states)

        def is_reached() -> bool:
            state = self.fact("JobState")
            assert state not in ends, f"{state} instead of {states}: {self._story()}"
            return state in states

        return wait_until(is_reached, timeout_s, lambda: f"{states}: {self._story()}")

    def fact(self, name: str) -> str:
        """One of the values that scontrol shows of the job."""
        words = self.cluster.slurm("scontrol", "show", "job", self.number).split()
        return next(word.partition("=")[2] for word in words if word.startswith(f"{name}="))

    def change(self, *changes: str) -> None:
        self.cluster.slurm("scontrol", "update", f"JobId={self.number}", *changes)

    def wait_for_end(self) -> None:
        """Waits until nothing of it runs."""
        wait_until(
            lambda: not list(self.cluster.at_work()), 30, lambda: f"{list(self.cluster.at_work())} {self._story()}"
        )


@dataclass(frozen=True)
class Uninterrupted:
    """A training that nothing has disturbed."""

    code: int
    said: str
    run_dir: Path


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
def folder(cluster: Cluster, tmp_path: Path, slurm_data: Path, tiny_model: Path) -> Folder:
    """A folder that all machines see, with a data set in it."""
    return Folder(cluster, tmp_path, slurm_data, tiny_model)


@pytest.fixture(scope="session")
def uninterrupted(
    shared_cluster: Cluster, slurm_data: Path, tiny_model: Path, tmp_path_factory: pytest.TempPathFactory
) -> Uninterrupted:
    """What ``srun yolo-launch node`` makes of the short training."""
    folder = Folder(shared_cluster, tmp_path_factory.mktemp("uninterrupted"), slurm_data, tiny_model)
    code, said = folder.call("srun", "-N2", "yolo-launch", "node", *folder.training)
    return Uninterrupted(code, said, folder.path / "runs/train/exp")


def results(run_dir: Path) -> list[list[str]]:
    """The numbers of a run: names first, then a row an epoch."""
    rows = [line.split(",") for line in (run_dir / "results.csv").read_text().splitlines()]
    return [[value.strip() for value in row] for row in rows]

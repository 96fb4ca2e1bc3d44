"""Machines in small: network namespaces with a link to a hub, each with its own host name, folder and data."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest

PROJECT_DIR = Path(__file__).resolve().parents[2]
ENTRY = "import sys; from yolo_launch.cli.main import main; main()"
MARK = "YOLO_LAUNCH_TEST_MARK"
TIMES_FILE = os.environ.get("YOLO_MACHINE_TIMES", "")
"""Where the times of the faults are collected, for the table of benchmarks/README.md."""
TRAINING = ("--cfg", "yolov5n", "--imgsz", "64", "--batch", "4", "--workers", "0", "--noplots")
CPU = ("--gpus", "cpu", "--nproc")


def run(*command: str, check: bool = True) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command, capture_output=True, text=True, check=check)


class NodeContext:
    """One namespace with a launcher in it."""

    def __init__(self, net: Network, rank: int, folder: Path) -> None:
        self.net = net
        self.rank = rank
        self.name = f"gpu-{'abcdefgh'[rank]}"
        self.namespace = f"{net.prefix}{rank}"
        self.address = f"10.77.0.{rank + 1}"
        self.folder = folder
        self.process: subprocess.Popen[str] | None = None
        self._starts = 0

    def command(self, *arguments: str) -> list[str]:
        """A command on this machine, under its name."""
        inside = ["unshare", "-u", "sh", "-c", f'hostname {self.name}; exec "$@"', "sh"]
        return ["ip", "netns", "exec", self.namespace, *inside, *arguments]

    def start(self, *arguments: str, **environment: str) -> NodeContext:
        """``yolo-launch ARGUMENTS`` in this machine's folder."""
        self._starts += 1
        env = {**os.environ, "PYTHONPATH": str(PROJECT_DIR), MARK: self.mark, "NO_COLOR": "1", **environment}
        self.process = subprocess.Popen(
            self.command(sys.executable, "-c", ENTRY, *arguments),
            cwd=self.folder,
            env=env,
            stdin=subprocess.DEVNULL,
            stdout=self.output_path.open("w"),
            stderr=subprocess.STDOUT,
            text=True,
        )
        return self

    def node(
        self, *arguments: str, workers: int = 1, nodes: str = "2", epochs: int = 3, **environment: str
    ) -> NodeContext:
        """Its ``yolo-launch node`` with small options."""
        place = ("node", "--rank", str(self.rank), "--master", self.net.machines[0].address, *CPU, str(workers))
        data = ("--data", "data/data.yaml")  # each machine its own copy
        if self.rank == 0:
            place = (*place, "--nodes", nodes, "--epochs", str(epochs), *TRAINING)
        return self.start(*place, *(data if "--data" not in arguments else ()), *arguments, **environment)

    @property
    def mark(self) -> str:
        return f"{self.net.prefix}-{self.rank}"

    @property
    def output_path(self) -> Path:
        return self.folder / f"output{self._starts}.txt"

    @property
    def output(self) -> str:
        return self.output_path.read_text()

    @property
    def run_dir(self) -> Path:
        return self.folder / "runs" / "train" / "exp"

    def wait(self, timeout_s: float = 120.0) -> int:
        """The launcher's exit code."""
        assert self.process is not None
        try:
            return self.process.wait(timeout_s)
        except subprocess.TimeoutExpired:
            raise AssertionError(f"{self.name} did not end within {timeout_s} s: {self.net.outputs()}") from None

    def wait_for(self, text: str, timeout_s: float = 90.0) -> float:
        """When the output has ``text``."""
        wait_until(lambda: text in self.output, timeout_s, lambda: f"{text!r} in {self.name}: {self.net.outputs()}")
        return time.monotonic()

    def wait_for_step(self, step: int, timeout_s: float = 90.0) -> None:
        """When this machine's first worker has come so far."""
        wait_until(lambda: self.step() >= step, timeout_s, lambda: f"step {step}: {self.net.outputs()}")

    def step(self) -> int:
        """The furthest step in this machine's heartbeats."""
        steps = [0]
        for path in self.folder.glob("runs/train/*/logs/rank*.heartbeat.json"):
            with contextlib.suppress(OSError, ValueError, KeyError):
                beat = json.loads(path.read_text())
                if beat["phase"] in ("train", "val", "save", "done"):  # a scan counts files
                    steps.append(int(beat["step"]))
        return max(steps)

    def signal(self, number: int) -> float:
        assert self.process is not None
        self.process.send_signal(number)
        return time.monotonic()

    def processes(self) -> list[psutil.Process]:
        """Everything that this machine's launcher started and that still runs, itself included."""
        found = []
        for process in psutil.process_iter():
            with contextlib.suppress(psutil.Error):
                alive = process.status() != psutil.STATUS_ZOMBIE
                if alive and process.environ().get(MARK) == self.mark:
                    found.append(process)
        return found

    def worker(self, rank: int) -> psutil.Process:
        """The worker of a global rank."""
        return next(p for p in self.processes() if os.getsid(p.pid) == p.pid and p.environ().get("RANK") == str(rank))

    def link(self, state: str) -> float:
        """Cut the cable, or plug it in."""
        run("ip", "-n", self.namespace, "link", "set", "eth0", state)
        return time.monotonic()

    def kill(self) -> float:
        """kill -9 of the launcher."""
        assert self.process is not None
        self.process.kill()
        self.process.wait(10)
        return time.monotonic()


class Network:
    """A hub namespace with a bridge, and machines linked to it."""

    def __init__(self, folder: Path, count: int, data: Path) -> None:
        self.prefix = f"yl{os.getpid() % 100000}"
        self.hub = f"{self.prefix}h"
        self.machines: list[NodeContext] = []
        self._folder = folder
        run("ip", "netns", "add", self.hub)
        run("ip", "-n", self.hub, "link", "add", "br0", "type", "bridge")
        run("ip", "-n", self.hub, "link", "set", "br0", "up")
        for rank in range(count):
            machine = NodeContext(self, rank, folder / f"machine{rank}")
            self.machines.append(machine)
            machine.folder.mkdir()
            shutil.copytree(data, machine.folder / "data")
            self._plug_in(machine)

    def _plug_in(self, machine: NodeContext) -> None:
        space, outer = machine.namespace, f"v{machine.rank}"
        run("ip", "netns", "add", space)
        # Without a name server that answers at once, torch's store waits seconds for one at each connection.
        settings = Path("/etc/netns") / space
        settings.mkdir(parents=True, exist_ok=True)
        (settings / "resolv.conf").write_text("nameserver 127.0.0.1\n")
        names = [f"10.77.0.{rank + 1} gpu-{'abcdefgh'[rank]}\n" for rank in range(8)]
        (settings / "hosts").write_text("".join(["127.0.0.1 localhost\n", *names]))
        run("ip", "link", "add", outer, "netns", self.hub, "type", "veth", "peer", "name", "eth0", "netns", space)
        run("ip", "-n", self.hub, "link", "set", outer, "master", "br0", "up")
        run("ip", "-n", space, "addr", "add", f"{machine.address}/24", "dev", "eth0")
        run("ip", "-n", space, "link", "set", "eth0", "up")
        run("ip", "-n", space, "link", "set", "lo", "up")

    def outputs(self) -> str:
        return "\n".join(f"--- {m.name}\n{m.output}" for m in self.machines if m.process is not None)

    def close(self) -> None:
        for machine in self.machines:
            for process in machine.processes():
                with contextlib.suppress(psutil.Error):
                    process.kill()
            if machine.process is not None:
                machine.process.wait(10)
            run("ip", "netns", "del", machine.namespace, check=False)
            shutil.rmtree(Path("/etc/netns") / machine.namespace, ignore_errors=True)
        run("ip", "netns", "del", self.hub, check=False)


def wait_until(condition: Callable[[], bool], timeout_s: float, what: Callable[[], str]) -> None:
    end = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < end, what()
        time.sleep(0.05)


@pytest.fixture(scope="session")
def machine_data(copy_bccd: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with data.yaml, 24 training and 8 validation images of bccd."""
    return copy_bccd(tmp_path_factory.mktemp("machine_data"), 24, 8).parent


@pytest.fixture(scope="session")
def namespaces() -> None:
    """Skips where network namespaces cannot be made."""
    if sys.platform != "linux" or os.geteuid() != 0:
        pytest.skip("needs root on Linux for network namespaces")
    if shutil.which("ip") is None:
        pytest.skip("needs iproute2 (apt-get install iproute2)")
    probe = run("ip", "netns", "add", f"ylprobe{os.getpid()}", check=False)
    if probe.returncode:
        pytest.skip(f"network namespaces cannot be made here: {probe.stderr.strip()}")
    run("ip", "netns", "del", f"ylprobe{os.getpid()}")


@pytest.fixture
def network(namespaces: None, tmp_path: Path, machine_data: Path) -> Iterator[Callable[[int], list[NodeContext]]]:
    """Makes so many machines; all that they started is ended with the test."""
    made: list[Network] = []

    def make(count: int) -> list[NodeContext]:
        made.append(Network(tmp_path, count, machine_data))
        return made[0].machines

    yield make
    for one in made:
        one.close()


@pytest.fixture
def record(request: pytest.FixtureRequest) -> Callable[[str, float], None]:
    """Keeps a time for the table of figures, where one is asked for."""

    def keep(what: str, seconds: float) -> None:
        print(f"TIME {what}: {seconds:.1f} s")
        if TIMES_FILE:
            with Path(TIMES_FILE).open("a") as file:
                file.write(json.dumps({"test": request.node.name, "what": what, "seconds": seconds}) + "\n")

    return keep


def results(run_dir: Path) -> list[list[str]]:
    """The numbers of a run: names first, then a row an epoch."""
    rows = [line.split(",") for line in (run_dir / "results.csv").read_text().splitlines()]
    return [[value.strip() for value in row] for row in rows]

"""A Slurm of three machines on one host: a controller and two nodes, each in namespaces that end with this process."""

from __future__ import annotations

import contextlib
import os
import secrets
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil

ADDRESSES = {"ctl": "10.77.0.1", "n1": "10.77.0.11", "n2": "10.77.0.12"}
NODES = ("n1", "n2")
COMMANDS = ("slurmctld", "slurmd", "srun", "munged")
CGROUP_CONF = {True: "CgroupPlugin=cgroup/v2\nIgnoreSystemd=yes\n", False: "CgroupPlugin=cgroup/v1\n"}
"""By whether the host has cgroup v2. slurmd 22.05 wants one of them even where nothing is limited by cgroups."""
SLURM_CONF = """\
ClusterName=ci
SlurmctldHost=ctl({ctl})
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
AuthInfo=socket={folder}/munge.socket
CredType=cred/munge
SlurmctldPort=16817
SlurmdPort=16818
StateSaveLocation={folder}/ctld
SlurmdSpoolDir={folder}/%n
SlurmctldPidFile={folder}/ctld.pid
SlurmdPidFile={folder}/%n.pid
SlurmctldLogFile={folder}/ctld.log
SlurmdLogFile={folder}/%n.log
SlurmdParameters=config_overrides
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
SelectType=select/linear
SchedulerType=sched/backfill
SchedulerParameters=bf_interval=1,sched_interval=1
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
ReturnToService=2
SlurmctldTimeout=30
SlurmdTimeout=30
KillWait=30
InactiveLimit=0
MinJobAge=300
MpiDefault=none
SwitchType=switch/none
NodeName=n1 NodeAddr={n1} CPUs=2 Sockets=1 CoresPerSocket=2 ThreadsPerCore=1 RealMemory=1000 State=UNKNOWN
NodeName=n2 NodeAddr={n2} CPUs=2 Sockets=1 CoresPerSocket=2 ThreadsPerCore=1 RealMemory=1000 State=UNKNOWN
PartitionName=main Nodes=n1,n2 Default=YES MaxTime=INFINITE PriorityTier=1 GraceTime=30 State=UP
PartitionName=urgent Nodes=n1,n2 MaxTime=INFINITE PriorityTier=10 PreemptMode=OFF State=UP
"""


def wait_until(condition: Callable[[], bool], timeout_s: float, what: Callable[[], str]) -> float:
    """Returns the seconds that it took; fails with ``what()`` after ``timeout_s``."""
    start = time.monotonic()
    while not condition():
        assert time.monotonic() < start + timeout_s, f"not within {timeout_s} s: {what()}"
        time.sleep(0.05)
    return time.monotonic() - start


class Machine:
    """Namespaces of network, mounts, host name and processes, which the kernel ends with their first process."""

    def __init__(self, name: str, folder: Path) -> None:
        self.name = name
        # The first process reads from a pipe of ours, so that it ends with us, however we end; it leaves no zombies.
        binds = 'mount --bind "$2/hosts" /etc/hosts && mount --bind "$2/resolv.conf" /etc/resolv.conf'
        script = f'hostname "$1" && {binds} && echo ready && exec env --ignore-signal=CHLD cat'
        spaces = ("--net", "--mount", "--uts", "--pid", "--fork", "--kill-child", "--mount-proc")
        self._holder = subprocess.Popen(
            ["unshare", *spaces, "sh", "-c", script, "sh", name, str(folder)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        assert self._holder.stdout is not None
        assert self._holder.stdout.readline() == "ready\n", f"namespaces cannot be made: exit {self._holder.wait(10)}"
        (first,) = psutil.Process(self._holder.pid).children()
        self.pid = first.pid
        """The first process inside, as it is called outside."""
        self._space = os.readlink(f"/proc/{self.pid}/ns/pid")

    def network(self, *command: str) -> None:
        """``ip COMMAND`` in this machine's network."""
        subprocess.run(["nsenter", f"--net=/proc/{self.pid}/ns/net", "ip", *command], check=True)

    def command(self, *arguments: str) -> list[str]:
        """A command on this machine."""
        return ["nsenter", f"--target={self.pid}", "--net", "--mount", "--uts", "--pid", *arguments]

    def processes(self) -> list[psutil.Process]:
        """Everything that runs on this machine but its first process."""
        found = []
        for process in psutil.process_iter():
            with contextlib.suppress(psutil.Error, OSError):
                is_here = os.readlink(f"/proc/{process.pid}/ns/pid") == self._space
                if is_here and process.pid != self.pid and process.status() != psutil.STATUS_ZOMBIE:
                    found.append(process)
        return found

    def close(self) -> None:
        """Ends the first process, and the kernel all others with it."""
        assert self._holder.stdin is not None
        assert self._holder.stdout is not None
        self._holder.stdin.close()
        try:
            self._holder.wait(10)
        finally:
            self._holder.kill()
            self._holder.wait(10)
            self._holder.stdout.close()


class Cluster:
    """munged, slurmctld and two slurmd; what jobs write lies in one folder that all machines see."""

    def __init__(self) -> None:
        self.folder = Path(tempfile.mkdtemp(prefix="yls"))  # short: the path of a socket has room for 107 characters
        self.machines: dict[str, Machine] = {}
        self._daemons: dict[str, subprocess.Popen[bytes]] = {}
        path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
        self.environment = {**os.environ, "SLURM_CONF": str(self.folder / "slurm.conf"), "PATH": path}
        # Two machines share the cores of this one.
        self.environment |= {"NO_COLOR": "1", "OMP_NUM_THREADS": "1"}
        with contextlib.ExitStack() as undo:
            undo.callback(self.close)
            self._write_files()
            self._plug_in()
            munged = ("munged", "--foreground", "--force", *(f"--{key}={self.folder / name}" for key, name in _MUNGE))
            self._start("munged", "ctl", *munged)
            wait_until((self.folder / "munge.socket").exists, 20, self.logs)
            self._start("slurmctld", "ctl", "slurmctld", "-D", "-c")
            for node in NODES:
                self.start_slurmd(node)
            self.wait_for_nodes()
            undo.pop_all()

    def _write_files(self) -> None:
        for name in ("ctld", *NODES):
            (self.folder / name).mkdir()
        names = [f"{address} {name}\n" for name, address in ADDRESSES.items()]
        (self.folder / "hosts").write_text("".join(["127.0.0.1 localhost\n", *names]))
        # Without a name server that answers at once, torch's store waits seconds for one at each connection.
        (self.folder / "resolv.conf").write_text("nameserver 127.0.0.1\n")
        (self.folder / "munge.key").write_bytes(secrets.token_bytes(1024))
        (self.folder / "munge.key").chmod(0o600)
        (self.folder / "slurm.conf").write_text(SLURM_CONF.format(folder=self.folder, **ADDRESSES))
        (self.folder / "cgroup.conf").write_text(CGROUP_CONF[Path("/sys/fs/cgroup/cgroup.controllers").exists()])

    def _plug_in(self) -> None:
        """Makes the machines: a bridge on the controller, and a link to it from each node."""
        for name in ADDRESSES:
            self.machines[name] = Machine(name, self.folder)
        controller = self.machines["ctl"]
        controller.network("link", "add", "eth0", "type", "bridge")
        for name in NODES:
            peer = ("peer", "name", "eth0", "netns", str(self.machines[name].pid))
            controller.network("link", "add", f"to-{name}", "type", "veth", *peer)
            controller.network("link", "set", f"to-{name}", "master", "eth0", "up")
        for name, machine in self.machines.items():
            machine.network("addr", "add", f"{ADDRESSES[name]}/24", "dev", "eth0")
            machine.network("link", "set", "eth0", "up")
            machine.network("link", "set", "lo", "up")

    def _start(self, what: str, machine: str, *command: str) -> None:
        with (self.folder / f"{what}.out").open("ab") as output:
            self._daemons[what] = subprocess.Popen(
                self.machines[machine].command(*command),
                env=self.environment,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
            )

    def start_slurmd(self, node: str) -> None:
        self._start(f"slurmd-{node}", node, "slurmd", "-D", "-N", node)

    def lose(self, node: str) -> None:
        """Kills everything on a node, and says to Slurm what it would find out itself after SlurmdTimeout."""
        for process in self.machines[node].processes():
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()
        self._daemons[f"slurmd-{node}"].wait(10)
        self.slurm("scontrol", "update", f"NodeName={node}", "State=DOWN", "Reason=lost")

    def bring_back(self, node: str) -> None:
        """Starts a lost node again."""
        self.start_slurmd(node)
        self.slurm("scontrol", "update", f"NodeName={node}", "State=RESUME")
        self.wait_for_nodes()

    def wait_for_nodes(self) -> None:
        """Waits until both nodes can be given to jobs."""

        def are_idle() -> bool:
            states = self.slurm("sinfo", "-h", "-N", "-p", "main", "-o", "%t", check=False).split()
            return states == ["idle"] * len(NODES)

        wait_until(are_idle, 60, self.logs)

    def logs(self) -> str:
        """The ends of what the daemons wrote."""
        files = [path for path in sorted(self.folder.iterdir()) if path.suffix in (".log", ".out")]
        return "\n".join(f"--- {path.name}\n{path.read_text(errors='replace')[-3000:]}" for path in files)

    def start(self, *command: str, cwd: Path, output: Path, **environment: str) -> subprocess.Popen[bytes]:
        """Starts a command on the controller, as a user does there."""
        with output.open("wb") as file:
            return subprocess.Popen(
                self.machines["ctl"].command("env", f"--chdir={cwd}", *command),
                env={**self.environment, **environment},
                stdin=subprocess.DEVNULL,
                stdout=file,
                stderr=subprocess.STDOUT,
            )

    def call(self, *command: str, cwd: Path, timeout_s: float = 60.0) -> tuple[int, str]:
        """The exit code of a command on the controller, and what it said."""
        output = cwd / "call.txt"
        process = self.start(*command, cwd=cwd, output=output)
        try:
            return process.wait(timeout_s), output.read_text()
        except subprocess.TimeoutExpired:
            raise AssertionError(f"{command} did not end: {output.read_text()}\n{self.logs()}") from None

    def slurm(self, *command: str, check: bool = True, cwd: Path | None = None) -> str:
        """What one of Slurm's own commands says."""
        done = subprocess.run(
            self.machines["ctl"].command("env", f"--chdir={cwd or self.folder}", *command),
            env=self.environment,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        assert done.returncode == 0 or not check, f"{command}: {done.stdout}{done.stderr}\n{self.logs()}"
        return done.stdout.strip()

    def queue(self) -> list[str]:
        """The jobs that wait, run or end just now, one line each."""
        return self.slurm("squeue", "-h", "-o", "%i %T %r").splitlines()

    def at_work(self) -> Iterator[tuple[str, psutil.Process]]:
        """What runs beside Slurm's daemons, with the machine's name: a job's processes, and Slurm's keepers of them."""
        for name, machine in self.machines.items():
            for process in machine.processes():
                with contextlib.suppress(psutil.NoSuchProcess):
                    if process.name() not in ("munged", "slurmctld", "slurmd", "slurmscriptd"):
                        yield name, process

    def close(self) -> None:
        """Ends everything and removes the folder."""
        for machine in self.machines.values():
            machine.close()
        for process in self._daemons.values():
            process.wait(10)
        shutil.rmtree(self.folder)


_MUNGE = (
    ("key-file", "munge.key"),
    ("socket", "munge.socket"),
    ("pid-file", "munged.pid"),
    ("log-file", "munged.log"),
    ("seed-file", "munge.seed"),
)

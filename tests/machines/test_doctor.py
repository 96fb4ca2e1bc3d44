"""The cluster check of several machines: over loopback, and between network namespaces with firewalls of their own."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
import uuid
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest

PROGRAM = (sys.executable, "-c", "from yolo_launch.cli.main import main; main()")
PROJECT_DIR = Path(__file__).resolve().parents[2]
LIMIT_S = 120.0
DROP_HIGH_PORTS = "tcp dport != 1234 drop"
REJECT_HIGH_PORTS = "tcp dport != 1234 reject with tcp reset"


@dataclass
class Machine:
    """Starts launchers in one place: a network namespace, or this one."""

    name: str
    folder: Path
    address: str = "127.0.0.1"
    prefix: tuple[str, ...] = ()
    started: list[subprocess.Popen[str]] = field(default_factory=list)

    def start(self, *arguments: str) -> subprocess.Popen[str]:
        self.folder.mkdir(exist_ok=True)
        process = subprocess.Popen(
            [*self.prefix, *PROGRAM, *arguments],
            cwd=self.folder,
            env={**os.environ, "PYTHONPATH": str(PROJECT_DIR), "YOLO_LAUNCH_TOKEN": ""},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )
        self.started.append(process)
        return process

    def close(self) -> None:
        for process in self.started:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.communicate()


def ends(*processes: subprocess.Popen[str]) -> list[tuple[int, str, str]]:
    """Exit code, stdout and stderr of each."""
    deadline = time.monotonic() + LIMIT_S
    found = []
    for process in processes:
        out, err = process.communicate(timeout=max(1.0, deadline - time.monotonic()))
        found.append((process.returncode, out, err))
    return found


@pytest.fixture
def here(tmp_path: Path) -> Iterator[tuple[Machine, Machine]]:
    """Two launchers beside each other."""
    machines = Machine("here", tmp_path / "a"), Machine("here", tmp_path / "b")
    yield machines
    for machine in machines:
        machine.close()


@pytest.fixture
def checked_machines(tmp_path: Path) -> Iterator[list[Machine]]:
    """Three network namespaces, gpu-a to gpu-c, on one switch in a fourth; the firewall of each is its own."""
    if os.geteuid() != 0:
        pytest.skip("needs root for network namespaces")
    for program in ("ip", "unshare"):
        if shutil.which(program) is None:
            pytest.skip(f"needs {program} for network namespaces")
    mark = f"yl{uuid.uuid4().hex[:6]}"
    letters, machines = "abc", []
    try:
        run("ip", "netns", "add", f"{mark}h")
        run("ip", "-n", f"{mark}h", "link", "add", "name", "switch", "type", "bridge")
        run("ip", "-n", f"{mark}h", "link", "set", "switch", "up")
        for place, letter in enumerate(letters, start=1):
            space, name, port = mark + letter, f"gpu-{letter}", f"port{letter}"
            run("ip", "netns", "add", space)
            resolver = Path("/etc/netns") / space
            resolver.mkdir(parents=True)
            (resolver / "resolv.conf").write_text("nameserver 127.0.0.1\n")
            run("ip", "-n", f"{mark}h", "link", "add", port, "type", "veth", "peer", "name", "eth0", "netns", space)
            run("ip", "-n", f"{mark}h", "link", "set", port, "master", "switch", "up")
            run("ip", "-n", space, "addr", "add", f"10.93.7.{place}/24", "dev", "eth0")
            for link in ("eth0", "lo"):
                run("ip", "-n", space, "link", "set", link, "up")
            renamed = ("unshare", "-u", "sh", "-c", f'hostname {name}; exec "$@"', "sh")
            prefix = ("ip", "netns", "exec", space, *renamed)
            machines.append(Machine(name, tmp_path / name, f"10.93.7.{place}", prefix))
        yield machines
    finally:
        for machine in machines:
            machine.close()
        for letter in (*letters, "h"):
            subprocess.run(["ip", "netns", "delete", mark + letter], check=False, capture_output=True)
            shutil.rmtree(f"/etc/netns/{mark}{letter}", ignore_errors=True)
        with contextlib.suppress(OSError):
            Path("/etc/netns").rmdir()


def run(*command: str) -> None:
    subprocess.run(command, check=True, capture_output=True)


def block(machine: Machine, rule: str) -> None:
    """Let the firewall of a machine treat what comes in."""
    if shutil.which("nft") is None:
        pytest.skip("needs nft (nftables) to block ports")
    lines = ["add table inet test", "add chain inet test in { type filter hook input priority 0; }"]
    rules = "\n".join([*lines, f"add rule inet test in ct state new {rule}"])
    subprocess.run([*machine.prefix[:4], "nft", "-f", "-"], input=rules, text=True, check=True)


def check_up(machine: Machine, rank: int, master: str, port: int, *more: str, nodes: int = 2) -> subprocess.Popen[str]:
    where = ("--master", master, "--port", str(port), "--rank", str(rank), *(("--nodes", str(nodes)) * (rank == 0)))
    return machine.start("doctor", *where, "--gpus", "cpu", "--join-timeout", "60", *more)


def check_all(machines: list[Machine], *more: str) -> list[tuple[int, str, str]]:
    """A cluster check of all of them, the first one being the master: how each ended."""
    master, nodes = machines[0].address, len(machines)
    return ends(*[check_up(one, rank, master, 1234, *more, nodes=nodes) for rank, one in enumerate(machines)])


def test_two_launchers_on_one_machine_are_healthy(here, free_lobby_port):
    a, b = here
    processes = check_up(a, 0, "127.0.0.1", free_lobby_port), check_up(b, 1, "127.0.0.1", free_lobby_port, "--json")
    (code_a, out_a, _), (code_b, out_b, _) = ends(*processes)
    assert (code_a, code_b) == (0, 0), out_a
    answer = json.loads(out_b)
    assert set(answer) == {"host", "findings"}
    both = [found["seen"] for found in answer["findings"] if found["check"] == "machines"]
    assert len(both) == 5
    assert all(f"ok machines: {seen}" in out_a for seen in both)
    assert "ok all-reduce: 2 workers on 2 machines over gloo: 29 MB summed in " in out_a
    assert answer["findings"][-1]["check"] == "all-reduce"
    assert answer["findings"][-1]["level"] == "ok"


def test_a_machine_that_stays_away_is_named(here, free_lobby_port):
    process = check_up(here[0], 0, "127.0.0.1", free_lobby_port, "--join-timeout", "2")
    ((code, out, _),) = ends(process)
    assert code == 5
    assert "FAILURE machines: machine 1 did not join within 2 s" in out


def test_a_master_that_stays_away_is_a_finding(here, free_lobby_port):
    process = check_up(here[0], 1, "127.0.0.1", free_lobby_port, "--join-timeout", "1", "--json")
    ((code, out, _),) = ends(process)
    assert code == 5
    last = json.loads(out)["findings"][-1]
    assert last["level"] == "failure"
    assert f"nothing listens on 127.0.0.1:{free_lobby_port}" in last["seen"]
    assert last["advice"].startswith("start the cluster check on the master too (--rank 0)")


def test_one_machine_is_no_check_up_of_several(here):
    ((code, out, _),) = ends(here[0].start("doctor", "--master", "127.0.0.1", "--rank", "0", "--nodes", "1"))
    assert code == 2
    assert "FAILURE machines: One machine alone is no cluster check." in out


@pytest.fixture
def free_lobby_port() -> int:
    from yolo_launch.host.ports import free_port

    return free_port()


@pytest.mark.netns
def test_three_machines_are_healthy(checked_machines):
    a, b, c = checked_machines
    results = check_all(checked_machines)
    assert [code for code, _, _ in results] == [0, 0, 0], results[0]
    for _, out, _ in results:
        for rank, machine in enumerate((a, b, c)):
            assert f"ok machines: node {rank} {machine.name} is {machine.address} on eth0, 1 worker (CPU)" in out
            assert f"{machine.name} resolves to no address" in out
        for rank, machine in ((1, b), (2, c)):
            assert f"ok machines: node {rank} {machine.name} ({machine.address}) -> master {a.address}:" in out
            assert f"ok machines: master gpu-a ({a.address}) -> node {rank} {machine.name} {machine.address}:" in out
        assert "ok machines: the machines other than the master reach one another (2 ways)" in out
        assert "ok all-reduce: 3 workers on 3 machines over gloo: 29 MB summed in " in out


@pytest.mark.netns
def test_high_ports_of_the_master_that_are_blocked_are_named(checked_machines):
    a, b, _ = checked_machines
    block(a, DROP_HIGH_PORTS)
    began_at = time.monotonic()
    results = check_all([a, b])
    assert time.monotonic() - began_at < 45
    assert [code for code, _, _ in results] == [3, 3]
    for _, out, _ in results:
        assert "FAILURE machines: master port 1234 OK, but gpu-b -> gpu-a:" in out
        assert " blocked (timed out)\n  -> open TCP 1024-65535 between the machines" in out
        assert f"ok machines: master gpu-a ({a.address}) -> node 1 gpu-b {b.address}:" in out
        assert "warning all-reduce: not tried, because of the failures above" in out


@pytest.mark.netns
def test_high_ports_of_another_machine_that_are_rejected_are_named(checked_machines):
    a, b, _ = checked_machines
    block(b, REJECT_HIGH_PORTS)
    results = check_all([a, b])
    assert [code for code, _, _ in results] == [3, 3]
    for _, out, _ in results:
        assert f"ok machines: node 1 gpu-b ({b.address}) -> master {a.address}:" in out
        assert "FAILURE machines: master port 1234 OK, but gpu-a -> gpu-b:" in out
        assert " blocked (refused)\n" in out


@pytest.mark.netns
def test_two_machines_that_only_the_master_reaches_are_named(checked_machines):
    _, b, c = checked_machines
    block(c, f"ip saddr {b.address} {DROP_HIGH_PORTS}")
    began_at = time.monotonic()
    results = check_all(checked_machines)
    assert time.monotonic() - began_at < 60, results[0]
    assert [code for code, _, _ in results] == [3, 3, 3]
    for _, out, _ in results:
        assert "FAILURE machines: master port 1234 OK, but gpu-b -> gpu-c:" in out
        assert "gpu-c -> gpu-b:" not in out
        assert "warning all-reduce: not tried, because of the failures above" in out


@pytest.mark.netns
def test_a_machine_that_wants_to_train_is_refused_by_name_on_both_sides(checked_machines):
    a, b, _ = checked_machines
    trains = b.start("node", "--rank", "1", "--master", a.address, "--gpus", "cpu")
    master = check_up(a, 0, a.address, 1234, "--join-timeout", "12")
    ((code, _, err),) = ends(trains)
    assert code == 2
    text = "gpu-b and gpu-a were not started for the same thing."
    assert text in err
    assert "gpu-b is to train (yolo-launch node), gpu-a to make a cluster check (yolo-launch doctor)" in err
    ((code, out, err),) = ends(master)
    assert code == 5
    assert f"refused 1 gpu-b ({b.address}, 1x CPU): {text}" in err
    assert "FAILURE machines: machine 1 did not join within 12 s" in out


@pytest.mark.netns
def test_a_check_up_is_refused_by_a_master_that_trains(checked_machines):
    a, b, _ = checked_machines
    a.start("node", "--rank", "0", "--master", a.address, "--nodes", "2", "--gpus", "cpu", "--project", "runs")
    ((code, out, _),) = ends(check_up(b, 1, a.address, 1234))
    assert code == 2
    assert "FAILURE machines: gpu-b and gpu-a were not started for the same thing.\n" in out

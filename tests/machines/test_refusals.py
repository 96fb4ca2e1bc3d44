"""What cannot work is refused at once, on both sides, naming both; unauthenticated connections do not matter."""

from __future__ import annotations

import contextlib
import os
import pickle
import re
import signal
import subprocess
import sys
import time

import pytest

pytestmark = [pytest.mark.netns, pytest.mark.timeout(300)]


def refused(machine, code, *texts, within_s=20.0):
    """The machine ended at once with this exit code, and said all of this."""
    began_at = time.monotonic()
    assert machine.wait(60) == code, machine.net.outputs()
    assert time.monotonic() - began_at < within_s
    for text in texts:
        assert text in machine.output, f"{text!r} not in {machine.output}"


@pytest.fixture
def waiting(network):
    """A master that waits for a second and a third machine, and two more machines."""
    machines = network(3)
    machines[0].node(nodes="3")
    machines[0].wait_for("waiting for 1, 2")
    return machines


def test_each_refusal_by_name(waiting):
    a, b, c = waiting
    b.node()
    a.wait_for("waiting for 2")
    c.start("node", "--rank", "1", "--master", a.address, "--gpus", "cpu", "--nproc", "1")
    taken = "Rank 1 is taken twice: by 1 gpu-b (10.77.0.2, 1x CPU) and by 1 gpu-c (10.77.0.3, 1x CPU)"
    refused(c, 2, taken, "Expected: each rank from 0 on, once")
    assert taken in a.output

    c.start("node", "--rank", "0", "--nodes", "3", "--master", a.address, "--gpus", "cpu", "--nproc", "1")
    refused(c, 2, "Rank 0 is taken twice: by 0 gpu-a (10.77.0.1, 1x CPU) and by 0 gpu-c (10.77.0.3, 1x CPU)")
    assert "refused 0 gpu-c" in a.output
    assert not (c.folder / "runs").exists()

    c.start("node", "--rank", "7", "--master", a.address, "--gpus", "cpu", "--nproc", "1")
    refused(c, 2, "Rank 7 of gpu-c is out of range: the job on gpu-a has 3 machines")
    assert "refused 7 gpu-c" in a.output

    c.node("--nodes", "2")
    refused(c, 2, "gpu-c and gpu-a were told different numbers of machines", "--nodes 2 on gpu-c, --nodes 3 on gpu-a")

    c.node("--batch", "8", "--epochs", "3")
    refused(c, 2, "other options than the job", "--batch 8 here, 4 in the job")
    assert "machine 2 gpu-c (10.77.0.3, 1x CPU) cannot take part" in a.output

    (c.folder / "data" / "images" / "train" / "extra.jpg").write_bytes(
        next((c.folder / "data" / "images" / "train").iterdir()).read_bytes()
    )
    c.node("--data", "data/data.yaml")
    refused(c, 2, "The data set of gpu-c is not that of gpu-a", "fingerprint")
    assert "The data set of gpu-c is not that of gpu-a" in a.output
    (c.folder / "data" / "images" / "train" / "extra.jpg").unlink()

    c.node("--data", "elsewhere/data.yaml")
    refused(c, 2, "elsewhere/data.yaml")
    assert "1/3 machines" not in a.output.splitlines()[-1]

    # The batch of 4 does not divide over 3 workers: known once all are there, and said on every machine.
    c.node("--data", "data/data.yaml")
    for machine in waiting:
        refused(machine, 2, "--batch 4 cannot be split evenly over the 3 workers of all machines (1 + 1 + 1)")
        assert "Use --batch 3 or 6" in machine.output


def test_other_versions_are_refused(waiting):
    a, b, _ = waiting
    code = (
        "import sys, dataclasses, yolo_launch.host.inventory as i; real = i.read_torch_facts;"
        "i.read_torch_facts = lambda: dataclasses.replace(real(), torch_version='2.14.9');"
        "from yolo_launch.cli.main import main; main()"
    )
    b.start("node")  # gives the output file its name
    b.process.kill()
    command = b.command(sys.executable, "-c", code, "node", "--rank", "1", "--master", a.address, "--gpus", "cpu")
    done = subprocess.run(command, capture_output=True, text=True, cwd=b.folder, timeout=60, check=False)
    assert done.returncode == 3, done.stderr
    assert "gpu-b and gpu-a have different versions of torch" in done.stderr
    assert "2.14.9 on gpu-b" in done.stderr
    assert "gpu-b and gpu-a have different versions of torch" in a.output


def test_a_name_that_cannot_be_resolved(network):
    (b,) = network(1)
    b.start("node", "--rank", "1", "--master", "no-such-machine", "--gpus", "cpu")
    refused(b, 2, "The machine no-such-machine cannot be found")


def test_a_dry_run_is_the_masters_affair(waiting):
    a, b, _ = waiting
    b.node("--dry-run")
    refused(b, 2, "--dry-run shows the job's plan, which only the master knows")
    assert "gpu-b" not in a.output


def test_nobody_comes(network, record):
    a, b = network(2)
    a.node("--join-timeout", "4")
    began_at = time.monotonic()
    refused(a, 5, "not all machines are there", "machine 1 did not join within 4 s")
    record("nobody comes within --join-timeout 4", time.monotonic() - began_at)
    b.node("--join-timeout", "3")
    refused(b, 5, "The master did not answer within 3 s", "nothing listens on 10.77.0.1:1234 yet")


def test_a_busy_port_names_its_holder(network):
    (a,) = network(1)
    holder = subprocess.Popen(
        a.command(sys.executable, "-c", "import socket,time; s=socket.create_server(('',1234)); time.sleep(60)")
    )
    try:
        time.sleep(1.0)
        a.node()
        refused(a, 3, "The rendezvous cannot listen on 10.77.0.1:1234", f"PID {holder.pid}")
    finally:
        holder.kill()
        holder.wait()


@pytest.mark.parametrize("which", [0, 1])
def test_ctrl_c_while_waiting_works_at_once(network, which, record):
    machines = network(3)
    a, b, _ = machines
    a.node(nodes="3")
    b.node()
    b.wait_for("waiting for 2")
    since = machines[which].signal(signal.SIGINT)
    assert machines[which].wait(10) == 130, a.net.outputs()
    record(f"Ctrl-C on machine {which} while waiting", time.monotonic() - since)
    assert time.monotonic() - since < 2
    if which == 0:
        assert b.wait(10) == 6
        assert "the master has left" in b.output
    else:
        a.wait_for("machine 1 gpu-b (10.77.0.2, 1x CPU) is gone: it left (Ctrl-C)")
        a.wait_for("waiting for 1, 2")


def test_a_token_has_to_be_proved(network):
    a, b = network(2)
    (a.folder / "token").write_text("correct horse\n")
    a.node("--token-file", "token", epochs=1)
    a.wait_for("1/2 machines: 0 gpu-a (10.77.0.1, 1x CPU) - waiting for 1, 9m5")
    assert "whoever reaches port" not in a.output
    b.node()
    refused(b, 5, "does not take this machine's token", "Expected: a token")
    b.node("--token", "battery staple")
    refused(b, 5, "does not take this machine's token")
    assert "an unauthenticated connection to the rendezvous port was refused" in a.output
    b.node(YOLO_LAUNCH_TOKEN="correct horse")
    assert (a.wait(), b.wait()) == (0, 0), a.net.outputs()


STRANGER = """
import os, socket, sys, time
address, ports = sys.argv[1], [int(port) for port in sys.argv[2].split(",")]
held = []
end = time.monotonic() + float(sys.argv[3])
for port in ports:
    for what in (b"GET / HTTP/1.1\\r\\nHost: x\\r\\n\\r\\n", os.urandom(4096), b""):
        for _ in range(330 if port == ports[0] else 5):
            try:
                one = socket.create_connection((address, port), 1)
                one.sendall(what)
                held.append(one)
            except OSError:
                pass
print(len(held), flush=True)
while time.monotonic() < end:
    time.sleep(0.1)
"""


def test_strangers_do_not_disturb_a_job(network, tmp_path):
    a, b, c = network(3)
    a.node(epochs=3)
    a.wait_for("waiting for 1")
    unauthenticated = subprocess.Popen(c.command(sys.executable, "-c", STRANGER, a.address, "1234", "30"), text=True,
                                stdout=subprocess.PIPE)  # fmt: skip
    try:
        assert int(unauthenticated.stdout.readline()) > 900
        b.node()
        a.wait_for("2/2 machines", timeout_s=30)
        assert (a.wait(), b.wait()) == (0, 0), a.net.outputs()
        assert "an unauthenticated connection to the rendezvous port was refused: 10.77.0.3" in a.output
        assert "is lost" not in a.output
    finally:
        unauthenticated.kill()
        unauthenticated.wait()


class Bomb:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return (os.mkdir, (self.path,))


def test_a_pickle_planted_by_a_stranger_is_never_executed(network, tmp_path):
    """In every store that a job opens, under every key that is in it."""
    a, b = network(2)
    a.node(epochs=500)
    b.node()
    a.wait_for_step(1)
    bomb = tmp_path / "executed"
    listening = set()
    for process in a.processes() + b.processes():
        for connection in process.net_connections(kind="tcp"):
            if connection.status == "LISTEN":
                listening.add(connection.laddr.port)
    found = subprocess.run(a.command("ss", "-Htln"), capture_output=True, text=True, check=True).stdout
    listening |= {int(port) for port in re.findall(r":(\d+)\s", found)}
    assert 1234 in listening
    code = (
        "import sys, datetime, torch.distributed as dist\n"
        "planted = 0\n"
        "for port in map(int, sys.argv[2].split(',')):\n"
        "    try:\n"
        "        store = dist.TCPStore(sys.argv[1], port, None, False, datetime.timedelta(seconds=2))\n"
        "        keys = store.list_keys() if hasattr(store, 'list_keys') else []\n"
        "    except Exception as error:\n"
        "        continue\n"
        "    for key in [*keys, 'rdzv/state', 'torch.rendezvous', 'yolo-launch']:\n"
        "        store.set(key, bytes.fromhex(sys.argv[3])); planted += 1\n"
        "print(planted)\n"
    )
    hexed = pickle.dumps(Bomb(str(bomb))).hex()
    planted = 0
    for port in sorted(listening - {1234}):
        command = b.command(sys.executable, "-c", code, a.address, str(port), hexed)
        with contextlib.suppress(subprocess.TimeoutExpired):  # gloo's ports take a connection and say nothing
            done = subprocess.run(command, capture_output=True, text=True, timeout=12, check=False)
            planted += int(done.stdout.split()[-1]) if done.returncode == 0 else 0
    assert planted > 3, "the workers' store was found"
    # Whatever that does to the job, and however often it starts again: nothing of it is unpickled.
    with contextlib.suppress(StopIteration):
        b.worker(1).kill()
        a.wait_for("resumed at epoch")
    a.signal(signal.SIGTERM)
    assert {a.wait(), b.wait()} <= {1, 75}, a.net.outputs()
    assert not bomb.exists(), "an unauthenticated connection's pickle was executed"
    pickle.loads(bytes.fromhex(hexed))
    assert bomb.exists(), "the bomb itself works"

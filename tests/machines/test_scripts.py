"""A script of the user's on several machines: one that dies and comes back, and what plain torchrun makes of it."""

from __future__ import annotations

import json
import os
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from tests.machines.conftest import CPU, wait_until

pytestmark = [pytest.mark.netns, pytest.mark.timeout(400)]
SCRIPT = """
import json, os, sys, time
import torch
import torch.distributed as dist

rank, logs = int(os.environ["RANK"]), os.environ.get("YOLO_LOGS_DIR", ".")
dist.init_process_group("gloo")
steps = int(sys.argv[sys.argv.index("--steps") + 1])
first = json.load(open(f"saved{rank}.json"))["step"] if os.path.exists(f"saved{rank}.json") else 0
total = torch.zeros(1)
for step in range(first, steps):
    total = torch.tensor([float(rank + step)])
    dist.all_reduce(total)
    with open(f"saved{rank}.json", "w") as file:
        json.dump({"step": step, "total": total.item()}, file)
    beat = f"{logs}/rank{rank}.heartbeat.json"
    with open(beat + ".new", "w") as file:
        json.dump({"phase": "train", "epoch": 0, "step": step + 1, "time": time.time()}, file)
    os.replace(beat + ".new", beat)
    time.sleep(0.1)
dist.barrier()
dist.destroy_process_group()
"""


def machines_with_script(network, count=2):
    machines = network(count)
    for machine in machines:
        (machine.folder / "train.py").write_text(SCRIPT)
    return machines


def start(machine, *words, steps=60, options=()):
    place = ("run", "--rank", str(machine.rank), "--master", machine.net.machines[0].address, *CPU, "1", *options)
    own = ("--steps", str(steps)) if machine.rank == 0 else ()
    return machine.start(*place, *words, "train.py", *own)


def saved(machine):
    path = machine.folder / f"saved{machine.rank}.json"
    return json.loads(path.read_text()) if path.exists() else {"step": -1}


def test_a_machine_that_dies_and_comes_back_goes_on_with_the_script(network):
    a, b = machines_with_script(network)
    start(a, options=("--nodes", "2", "--max-restarts", "2", "--rejoin-timeout", "100"))
    start(b)
    wait_until(lambda: saved(b)["step"] >= 5, 90, a.net.outputs)
    b.kill()
    a.wait_for("machine 1 gpu-b (10.77.0.2, 1x CPU) is lost")
    wait_until(lambda: not b.processes(), 5, lambda: f"left on gpu-b: {b.processes()}")
    a.wait_for("restart 1 of 2 when it is back (within 100 s), the script starts again")
    start(b)
    assert (a.wait(), b.wait()) == (0, 0), a.net.outputs()
    assert [saved(machine) for machine in (a, b)] == [{"step": 59, "total": 119.0}] * 2
    assert not a.processes() + b.processes()


def test_the_printed_lines_of_torchrun_do_the_same(network):
    a, b = machines_with_script(network)
    shown = start(a, "--dry-run", steps=8, options=("--nodes", "2"))
    assert shown.wait() == 0
    lines = [line.strip() for line in a.output.splitlines() if "--node_rank=" in line]
    assert len(lines) == 2
    programs = Path(sys.executable).parent
    started = [
        subprocess.Popen(
            machine.command("sh", "-c", line),
            cwd=machine.folder,
            env={**os.environ, "GLOO_SOCKET_IFNAME": "eth0", "PATH": f"{programs}{os.pathsep}{os.environ['PATH']}"},
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
        )
        for machine, line in zip((a, b), lines, strict=True)
    ]
    for process, line in zip(started, lines, strict=True):
        _, complaint = process.communicate(timeout=120)
        assert process.returncode == 0, f"{shlex.split(line)}: {complaint}"
    assert [saved(machine) for machine in (a, b)] == [{"step": 7, "total": 15.0}] * 2

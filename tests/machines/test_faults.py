"""Machines and workers that die, freeze or lose their cable: who notices, how soon, and what comes of the job."""

from __future__ import annotations

import shutil
import signal
import time

import pytest

from tests.machines.conftest import results, wait_until

pytestmark = [pytest.mark.netns, pytest.mark.timeout(400)]
NOTICED_S = 12.0
"""Bound for noticing; the figures themselves are far lower, on a machine that is not busy."""


def start_two(network, epochs=4, **options):
    a, b = network(2)
    a.node(*options.pop("master", ()), epochs=epochs, **options)
    b.node()
    a.wait_for_step(2)
    return a, b


def test_a_worker_that_is_killed_on_another_machine(network, record):
    a, b = start_two(network)
    since = time.monotonic()
    b.worker(1).kill()
    record("worker killed, all machines know why", a.wait_for("rank 1 on machine 1 gpu-b") - since)
    assert "killed by SIGKILL" in a.output
    for machine in (a, b):
        machine.wait_for("restart 1 of 3, going on from the newest good checkpoint")
    record("worker killed, training again", a.wait_for("resumed at epoch") - since)
    assert (a.wait(), b.wait()) == (0, 0), a.net.outputs()
    assert len(results(a.run_dir)) == 5


def test_a_machine_that_dies_and_comes_back(network, record):
    a, b = start_two(network, master=("--rejoin-timeout", "100"))
    since = b.kill()
    record("machine killed, the master knows", a.wait_for("machine 1 gpu-b (10.77.0.2, 1x CPU) is lost") - since)
    wait_until(lambda: not b.processes(), 5, lambda: f"left on gpu-b: {b.processes()}")
    a.wait_for("restart 1 of 3 when it is back (within 100 s), going on from the newest good checkpoint")
    a.wait_for("waiting for 1")
    back = time.monotonic()
    b.node()
    record("machine back, training again", a.wait_for("resumed at epoch") - back)
    assert (a.wait(), b.wait()) == (0, 0), a.net.outputs()
    assert len(results(a.run_dir)) == 5


def test_a_cable_that_is_cut_and_plugged_in_again(network, record):
    a, b = start_two(network)
    since = b.link("down")
    seen = a.wait_for("machine 1 gpu-b (10.77.0.2, 1x CPU) is lost: no word from it for 8 s") - since
    record("cable cut, the master knows", seen)
    assert seen < NOTICED_S
    code = b.wait(30)
    record("cable cut, the other machine has ended", time.monotonic() - since)
    assert code == 6, b.output
    assert "the master is lost" in b.output
    assert "Next:     yolo-launch node --rank 1 --master 10.77.0.1" in b.output
    b.link("up")
    b.node()
    assert (a.wait(), b.wait()) == (0, 0), a.net.outputs()
    assert len(results(a.run_dir)) == 5


def test_a_short_cut_of_the_cable_costs_nothing(network):
    a, b = start_two(network)
    b.link("down")
    time.sleep(2.0)
    b.link("up")
    assert (a.wait(), b.wait()) == (0, 0), a.net.outputs()
    assert "is lost" not in a.output


def test_a_launcher_that_is_frozen_for_a_while(network, record):
    a, b = start_two(network, epochs=16)  # its workers train on meanwhile
    since = b.signal(signal.SIGSTOP)
    seen = a.wait_for("machine 1 gpu-b (10.77.0.2, 1x CPU) is lost: no word from it for 8 s") - since
    record("launcher frozen, the master knows", seen)
    assert seen < NOTICED_S
    thawed = b.signal(signal.SIGCONT)
    record("launcher thawed, training again", a.wait_for("resumed at epoch") - thawed)
    assert "the master answers again" in b.output
    a.signal(signal.SIGTERM)
    assert (a.wait(), b.wait()) == (75, 75), a.net.outputs()


def test_the_master_dies_and_the_run_is_resumed(network, record):
    a, b = start_two(network)
    since = a.kill()
    assert b.wait(15) == 6, b.output
    seconds = time.monotonic() - since
    record("master killed, the other machine has ended", seconds)
    assert seconds < 10
    assert "the master is lost" in b.output
    assert "the master closed the connection" in b.output
    assert not a.processes() + b.processes()
    step = a.step()
    a.start(
        *("node", "--rank", "0", "--master", a.address, "--nodes", "2", "--gpus", "cpu", "--nproc", "1"),
        *("--resume", "runs/train/exp"),
    )
    b.node()
    assert (a.wait(), b.wait()) == (0, 0), a.net.outputs()
    assert step > 0
    assert "resumed at epoch" in a.output
    assert len(results(a.run_dir)) == 5


def test_a_master_that_falls_silent(network, record):
    a, b = start_two(network)
    since = a.signal(signal.SIGSTOP)
    assert b.wait(20) == 6, b.output
    seconds = time.monotonic() - since
    record("master frozen, the other machine has ended", seconds)
    assert seconds < 10
    assert "no word from the master for 7 s" in b.output


def test_sigterm_on_one_machine_saves_the_job_of_all(network, record):
    a, b = start_two(network, epochs=30)
    since = b.signal(signal.SIGTERM)
    assert (a.wait(30), b.wait(30)) == (75, 75), a.net.outputs()
    record("SIGTERM on one machine, all have saved and ended", time.monotonic() - since)
    assert "stopped by SIGTERM with the state saved" in a.output
    assert "SIGTERM on machine 1 gpu-b (10.77.0.2, 1x CPU) stops the job" in a.output
    assert (a.run_dir / "weights" / "last.pt").is_file()


def test_an_own_error_is_told_on_every_machine(network):
    a, b = network(2)
    a.node(epochs=2)
    b.node()
    b.wait_for("rank 1 -> CPU")
    # Its images vanish after the machines have agreed on them.
    shutil.rmtree(b.folder / "data" / "images")
    assert (a.wait(), b.wait()) == (2, 2), a.net.outputs()
    for machine in (a, b):
        assert "rank 1 on gpu-b:" in machine.output
        assert f"'train' images of {b.folder}/data/data.yaml were not found" in machine.output, machine.output


def test_a_worker_that_is_frozen_on_another_machine_is_named_everywhere(network, record):
    a, b = network(2)
    a.node("--stall-timeout", "6", epochs=30)
    b.node()
    a.wait_for_step(2)
    since = time.monotonic()
    b.worker(1).suspend()
    assert (a.wait(60), b.wait(60)) == (4, 4), a.net.outputs()
    record("worker frozen, --stall-timeout 6, all have ended with its name", time.monotonic() - since)
    for machine in (a, b):
        assert "stalled: rank 1 holds the job up" in machine.output
        assert "the process is stopped (SIGSTOP or a debugger)" in machine.output
        assert "rank 1 of 2 on gpu-b, epoch" in machine.output
        assert "rank 0 has been in" in machine.output
    assert not a.processes() + b.processes()


def test_a_job_that_may_shrink_goes_on_with_the_rest_and_takes_the_machine_back(network, record):
    a, b = network(2)
    a.node(nodes="1:2", epochs=12)
    b.node()
    a.wait_for("2/1:2 machines")
    a.wait_for_step(2)
    since = b.kill()
    a.wait_for("restart 1 of 3 with the 1 machine left")
    record("machine killed, training again without it", a.wait_for("resumed at epoch") - since)
    back = time.monotonic()
    b.node()
    a.wait_for("machine 1 gpu-b (10.77.0.2, 1x CPU) comes in: the others save and go on with it")
    wait_until(lambda: a.output.count("resumed at epoch") == 2, 60, a.net.outputs)
    record("machine joins a running job, training again with it", time.monotonic() - back)
    assert (a.wait(), b.wait()) == (0, 0), a.net.outputs()
    assert len(results(a.run_dir)) == 13


def test_restarts_are_counted_once_for_the_job(network):
    a, b = network(2)
    a.node("--max-restarts", "1", epochs=12)
    b.node()
    a.wait_for_step(2)
    b.worker(1).kill()
    a.wait_for("restart 1 of 1")
    a.wait_for("resumed at epoch")
    b.wait_for_step(2)
    wait_until(lambda: "RANK" in str(a.worker(0).environ()), 10, lambda: "no worker")
    a.worker(0).kill()
    assert (a.wait(), b.wait()) == (1, 1), a.net.outputs()
    for machine in (a, b):
        assert "rank 0 failed first" in machine.output
        assert "all 1 restarts are used up" in machine.output
        assert "of gpu-a" in machine.output

"""Guards of workers and loader processes, with real processes."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

PROJECT_DIR = Path(__file__).resolve().parents[3]
GUARDED = "from trainer.runtime.process_guard import guard_worker, loader_init\nimport os, signal, sys, time\n"

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="prctl is Linux's")


def start(code, **environment):
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("YOLO_", "TORCHELASTIC_"))}
    return subprocess.Popen(
        [sys.executable, "-u", "-c", GUARDED + code],
        env={**kept, "PYTHONPATH": str(PROJECT_DIR), **environment},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def wait_until_gone(pid, timeout_s=5.0):
    end = time.monotonic() + timeout_s
    while psutil.pid_exists(pid) and psutil.Process(pid).status() != psutil.STATUS_ZOMBIE:
        assert time.monotonic() < end, f"{pid} is still there"
        time.sleep(0.01)


def test_a_worker_whose_launcher_is_gone_does_not_start():
    worker = start("guard_worker()\nprint('started')", YOLO_PARENT_PID="1")
    assert worker.communicate(timeout=20)[0] == ""
    assert worker.returncode == 1


def test_a_worker_leads_a_session_and_hides_the_variable_from_its_children():
    code = "guard_worker()\nprint(os.getsid(0) == os.getpid(), os.environ.get('YOLO_PARENT_PID'))"
    worker = start(code, YOLO_PARENT_PID=str(os.getpid()))
    assert worker.communicate(timeout=20)[0] == "True None\n"


def launcher_of(variable):
    """Code that starts a guarded process, prints its id and waits."""
    return f"""
import subprocess
child = subprocess.Popen([sys.executable, '-c', 'from trainer.runtime.process_guard import guard_worker; '
    'guard_worker(); import time; print("up", flush=True); time.sleep(60)'], stdout=subprocess.PIPE,
    env=dict(os.environ, **{{{variable}: str(os.getpid())}}))
child.stdout.readline()
print(child.pid, flush=True)
time.sleep(60)
"""


@pytest.mark.parametrize("variable", ["'YOLO_PARENT_PID'", "'TORCHELASTIC_RUN_ID'"])
def test_a_worker_dies_with_its_launcher(variable):
    launcher = start(launcher_of(variable))
    pid = int(launcher.stdout.readline())
    launcher.kill()
    launcher.wait()
    wait_until_gone(pid)


def test_a_worker_started_by_hand_outlives_its_shell():
    shell = start(launcher_of("'UNRELATED'"))
    pid = int(shell.stdout.readline())
    shell.kill()
    shell.wait()
    time.sleep(0.3)
    assert psutil.pid_exists(pid)
    os.kill(pid, signal.SIGKILL)


LOADER = """
guard_worker()
pid = os.fork()
if pid == 0:
    loader_init(0)
    print('ready', flush=True)
    while True:
        time.sleep(3600)
print(pid, flush=True)
"""


def loader_of(worker):
    lines = {worker.stdout.readline().strip(), worker.stdout.readline().strip()}
    return int((lines - {"ready"}).pop())


def test_a_loader_ignores_signals_but_not_its_workers_sigterm():
    worker = start(
        LOADER + "sys.stdin = open(0)\ntime.sleep(1.0)\nos.kill(pid, signal.SIGTERM)\nprint(os.waitpid(pid, 0))"
    )
    loader = loader_of(worker)
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1, signal.SIGHUP):
        os.kill(loader, number)
    time.sleep(0.2)
    assert psutil.Process(loader).status() != psutil.STATUS_ZOMBIE
    assert worker.communicate(timeout=20)[0] == f"({loader}, 0)\n"


def test_a_stuck_loader_dies_with_its_killed_worker():
    worker = start(LOADER + "time.sleep(60)")
    loader = loader_of(worker)
    worker.kill()
    worker.wait()
    wait_until_gone(loader)


def test_sigusr2_writes_the_stacks_of_this_rank(tmp_path):
    code = "guard_worker()\ndef dreaming():\n    print('up', flush=True)\n    time.sleep(60)\ndreaming()"
    worker = start(code, YOLO_LOGS_DIR=str(tmp_path), RANK="3")
    worker.stdout.readline()
    worker.send_signal(signal.SIGUSR2)
    end = time.monotonic() + 5
    while "dreaming" not in (tmp_path / "rank3.stacks").read_text():
        assert time.monotonic() < end
        time.sleep(0.02)
    assert worker.poll() is None
    worker.kill()
    worker.wait()


def test_the_guard_needs_no_torch():
    worker = start("guard_worker()\nprint('torch' in sys.modules)")
    assert worker.communicate(timeout=20)[0] == "False\n"

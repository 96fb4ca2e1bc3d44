"""Output that nobody takes: the job goes on, is told to stop and stops, and ends with its own exit code."""

from __future__ import annotations

import contextlib
import fcntl
import os
import pty
import signal
import struct
import subprocess
import sys
import termios
import time

import pytest

from tests.processes.conftest import PROGRAM, PROJECT_DIR, wait_until

SCRIPT = """
import json, os, signal, sys, time
step = 0
def save(number, frame):
    open("saved", "w").write(str(step))
    sys.exit(75)
signal.signal(signal.SIGTERM, save)
steps = int(sys.argv[1])
while step < steps:
    step += 1
    print("x" * 2000, step)
    print("y" * 2000, step, file=sys.stderr)
    beat = os.environ["YOLO_LOGS_DIR"] + "/rank0.heartbeat.json"
    open(beat + ".tmp", "w").write(json.dumps({"phase": "train", "epoch": 0, "step": step}))
    os.replace(beat + ".tmp", beat)
    open("step", "w").write(str(step))
    time.sleep(0.01)
print("the last line")
"""
COMMAND = [sys.executable, *(["-P"] if sys.version_info >= (3, 11) else []), "-c", PROGRAM, "run", "--gpus", "cpu"]


@pytest.fixture
def start(tmp_path):
    """Starts the script under ``run`` with given streams; it is ended with the test."""
    started = []
    (tmp_path / "script.py").write_text(SCRIPT)

    def run(steps, *options, shell="", **streams):
        command = [*COMMAND, *options, "script.py", "--", str(steps)]
        environment = {**os.environ, "PYTHONPATH": str(PROJECT_DIR)}
        if shell:
            command = ["bash", "-c", f'"$@" {shell}', "bash", *command]
        process = subprocess.Popen(command, cwd=tmp_path, env=environment, start_new_session=True, **streams)
        started.append(process)
        return process

    yield run
    for process in started:
        if process.poll() is None:
            process.kill()
            process.wait()


def step_of(tmp_path):
    with contextlib.suppress(OSError, ValueError):
        return int((tmp_path / "step").read_text())
    return 0


def read_what_is_there(terminal):
    os.set_blocking(terminal, False)
    with contextlib.suppress(BlockingIOError):
        while os.read(terminal, 65536):
            pass


@pytest.mark.parametrize("held_by", ["reader", "flow"])
def test_a_held_terminal_stops_no_step_and_sigterm_still_saves(start, tmp_path, held_by):
    ours, theirs = pty.openpty()
    process = start(100_000, "--stall-timeout", "3", stdin=theirs, stdout=theirs, stderr=theirs)
    # Nobody reads: the terminal's buffer is full after the first lines, and stays so for longer than a stall lasts.
    wait_until(lambda: step_of(tmp_path) > 20, 60, "it starts")
    if held_by == "flow":
        termios.tcflow(theirs, termios.TCOOFF)  # what Ctrl-S does
        read_what_is_there(ours)
    held_at, began_at = step_of(tmp_path), time.monotonic()
    wait_until(lambda: time.monotonic() - began_at > 5, 10, "")
    assert step_of(tmp_path) > held_at + 100
    process.send_signal(signal.SIGTERM)
    wait_until((tmp_path / "saved").exists, 20, "SIGTERM saves")
    if held_by == "flow":
        termios.tcflow(theirs, termios.TCOON)
    # Released, the terminal gets the end, and the launcher ends.
    end = time.monotonic() + 20
    while process.poll() is None and time.monotonic() < end:
        read_what_is_there(ours)
        time.sleep(0.002)
    assert process.poll() == 75
    os.close(ours)
    os.close(theirs)


def test_a_pipe_that_nobody_reads_stops_no_step(start, tmp_path):
    process = start(300, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    wait_until(lambda: step_of(tmp_path) == 300, 60, "all steps")
    output, _ = process.communicate(timeout=30)
    assert process.returncode == 0
    assert output.count(b"\n") > 2
    log = (tmp_path / "runs/run/exp/logs/rank0.log").read_text()
    assert log.count("x" * 2000) == log.count("y" * 2000) == 300, "the log has what the terminal did not take"


@pytest.mark.parametrize(
    "shell",
    [
        ">&- 2>&-",
        "<&- >&- 2>&-",
        ">/dev/full 2>/dev/full",
        "2>/dev/null | head -n 1 >/dev/null; exit ${PIPESTATUS[0]}",
    ],
)
def test_output_that_cannot_be_written_changes_no_exit_code(start, tmp_path, shell):
    process = start(30, shell=shell)
    assert process.wait(60) == 0
    assert step_of(tmp_path) == 30
    assert "the last line" in (tmp_path / "runs/run/exp/logs/rank0.log").read_text()


def test_a_terminal_that_goes_away_changes_no_exit_code(start, tmp_path):
    ours, theirs = pty.openpty()
    process = start(200, stdin=theirs, stdout=theirs, stderr=theirs)
    os.close(theirs)
    wait_until(lambda: step_of(tmp_path) > 5, 60, "it starts")
    os.close(ours)
    assert process.wait(60) == 0
    assert step_of(tmp_path) == 200


def test_a_terminal_stays_a_terminal_of_its_size_for_the_script(tmp_path):
    (tmp_path / "script.py").write_text("import os, sys\nprint(sys.stdout.isatty(), os.get_terminal_size(1))\n")
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 33, 77, 0, 0))
    environment = {**os.environ, "PYTHONPATH": str(PROJECT_DIR), "TERM": "xterm"}
    command = [*COMMAND, "script.py"]
    process = subprocess.Popen(command, cwd=tmp_path, env=environment, stdout=theirs, stderr=theirs, stdin=theirs)
    assert process.wait(60) == 0
    shown = os.read(ours, 65536).decode()
    assert "True os.terminal_size(columns=77, lines=33)" in shown
    os.close(ours)
    os.close(theirs)


def test_a_terminal_without_the_signs_of_a_path_gets_them_escaped(tmp_path):
    folder = tmp_path / "données"
    folder.mkdir()
    (folder / "script.py").write_text("print('done here')\n")
    environment = {**os.environ, "PYTHONPATH": str(PROJECT_DIR), "PYTHONIOENCODING": "ascii"}
    command = [*COMMAND, "--project", str(folder / "runs"), str(folder / "script.py")]
    ended = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=60)
    assert ended.returncode == 0, ended.stderr
    assert r"donn\xe9es/runs" in ended.stdout
    assert "Traceback" not in ended.stderr

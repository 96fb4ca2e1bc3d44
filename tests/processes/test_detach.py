"""A command that outlives its terminal: real terminals that are closed, real signals, and what is said afterwards."""

from __future__ import annotations

import json
import os
import pty
import signal
import socket
import subprocess
import sys
import time

import psutil
import pytest

from yolo_launch.errors import ExitCode

PROGRAM = (sys.executable, "-c", "from yolo_launch.cli.main import main; main()")
TRAIN = ("train", "--cfg", "yolov5n", "--imgsz", "32", "--batch", "8", "--gpus", "cpu", "--noplots", "--epochs")
SCRIPT = """
import os, signal, sys, time
print("the script has begun", flush=True)
open("begun", "w").close()
while not os.path.exists("go"):
    time.sleep(0.05)
print("its last line", flush=True)
sys.exit(7 if "--fail" in sys.argv else 0)
"""


class Shell:
    """A folder to type commands in, with or without a terminal; what still runs at its end is ended."""

    def __init__(self, folder):
        self.folder = folder
        self.environ = {**os.environ, "PYTHONPATH": os.getcwd()}
        self.environ.pop("SLURM_STEP_ID", None)
        self.terminals, self.started = [], []

    def start(self, *words):
        process = subprocess.Popen(
            [*PROGRAM, *map(str, words)],
            cwd=self.folder,
            env=self.environ,
            text=True,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            start_new_session=True,
        )
        self.started.append(process)
        return process

    def run(self, *words, timeout_s=120):
        process = self.start(*words)
        output, errors = process.communicate(timeout=timeout_s)
        return process.returncode, output, errors

    def in_terminal(self, *words):
        """Starts a command as the first process of a new terminal, whose end hangs up on it."""
        pid, terminal = pty.fork()
        if pid == 0:
            os.chdir(self.folder)
            os.execve(PROGRAM[0], [*PROGRAM, *map(str, words)], self.environ)
        self.terminals.append((pid, terminal))
        return pid, terminal

    def started_run(self, *words):
        code, output, errors = self.run("run", "--detach", "--json", "--gpus", "cpu", *words)
        assert code == ExitCode.DONE, errors
        return json.loads(output)

    def close(self):
        for process in self.started:
            if process.poll() is None:
                process.kill()
                process.wait()
        for pid, terminal in self.terminals:
            os.close(terminal)
            for process in (*psutil.Process(pid).children(), psutil.Process(pid)):
                process.kill()
            os.waitpid(pid, 0)
        for holder in self.folder.glob("runs/*/*/.held_by"):
            wait_until(lambda holder=holder: not psutil.pid_exists(int(holder.read_text().split()[1])))


@pytest.fixture
def shell(tmp_path):
    (tmp_path / "script.py").write_text(SCRIPT)
    shell = Shell(tmp_path)
    yield shell
    (tmp_path / "go").touch()
    shell.close()


def wait_until(condition, timeout_s=120.0):
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def read_all(terminal):
    said = b""
    while True:
        try:
            piece = os.read(terminal, 65536)
        except OSError:
            return said.decode()
        if not piece:
            return said.decode()
        said += piece


def test_a_training_outlives_its_terminal_and_is_attached_to(shell, bccd_yaml):
    pid, terminal = shell.in_terminal(*TRAIN, "2", "--data", bccd_yaml, "--detach")
    said = read_all(terminal)  # until the last process that had the terminal has left it
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == ExitCode.DONE
    os.close(terminal)
    shell.terminals.clear()
    assert "yolo-launch attach runs/train/exp" in said
    launcher = int(said.partition("as PID ")[2].split()[0])
    assert psutil.Process(launcher).terminal() is None
    code, output, errors = shell.run("attach", "exp", "--lines", "1000")
    assert code == ExitCode.DONE, errors
    assert "   2/2 " in output
    assert "yolo-launch predict --weights" in output  # the launcher's last words
    assert "is done after 2 of 2 epochs" in errors
    assert not psutil.pid_exists(launcher)


def test_a_terminal_that_is_closed_before_the_run_is_there_ends_nothing(shell, bccd_yaml):
    pid, terminal = shell.in_terminal(*TRAIN, "1", "--data", bccd_yaml, "--detach")
    # As early as the child exists: it still loads what it needs.
    wait_until(lambda: psutil.Process(pid).children())
    os.close(terminal)
    shell.terminals.clear()
    os.waitpid(pid, 0)
    summary = shell.folder / "runs" / "train" / "exp" / "summary.json"
    wait_until(summary.is_file)


def test_what_is_refused_is_said_at_once_with_its_code(shell):
    code, output, errors = shell.run("train", "--data", "nowhere.yaml", "--gpus", "cpu", "--detach")
    assert code == ExitCode.USAGE
    assert "nowhere.yaml" in errors
    assert "attach" not in output
    assert not (shell.folder / "runs").exists()


def test_ctrl_c_before_the_run_is_there_ends_the_command_and_its_other_process(shell):
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        place = ("--rank", "1", "--master", "127.0.0.1", "--port", listener.getsockname()[1])
        pid, terminal = shell.in_terminal("run", *place, "--gpus", "cpu", "--detach", "script.py")
        said = b""
        while b"nothing listens" not in said:  # for a master that never comes
            said += os.read(terminal, 65536)
        (child,) = psutil.Process(pid).children()
        os.write(terminal, b"\x03")
        rest = read_all(terminal)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 128 + signal.SIGINT
    os.close(terminal)
    shell.terminals.clear()
    assert "stopped by Ctrl-C" in rest
    assert not child.is_running()


@pytest.mark.parametrize(("options", "code", "state"), [((), 0, "done"), (("--fail",), 1, "ended")])
def test_a_scripts_end_is_told_with_its_launchers_code(shell, options, code, state):
    started = shell.started_run("script.py", *options)
    wait_until((shell.folder / "begun").exists)
    follower = shell.start("attach", started["run_dir"], "--json")
    time.sleep(1)
    assert follower.poll() is None
    (shell.folder / "go").touch()
    output, errors = follower.communicate(timeout=60)
    assert follower.returncode == code, errors
    told = json.loads(output)
    assert (told["state"], told["exit_code"]) == (state, code)
    assert "its last line" in errors
    assert ("rank 0" in errors or "the worker failed" in errors) == bool(code)
    # Later, the same is told from the folder alone.
    assert shell.run("attach", started["run_dir"])[0] == code


def test_leaving_a_run_with_ctrl_c_leaves_it_running_until_it_is_stopped(shell):
    started = shell.started_run("script.py")
    wait_until((shell.folder / "begun").exists)
    pid, terminal = shell.in_terminal("attach", started["run_dir"])
    said = b""
    while b"the script has begun" not in said:
        said += os.read(terminal, 65536)
    os.write(terminal, b"\x03")
    rest = read_all(terminal)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == ExitCode.DONE
    os.close(terminal)
    shell.terminals.clear()
    assert "goes on" in rest
    assert psutil.pid_exists(started["pid"])
    code, _, errors = shell.run("stop", started["run_dir"])
    assert code == ExitCode.DONE, errors
    wait_until(lambda: not psutil.pid_exists(started["pid"]))


def test_a_run_that_keeps_its_terminal_is_followed_too(shell):
    launcher = shell.start("run", "--gpus", "cpu", "script.py")
    wait_until((shell.folder / "begun").exists)
    follower = shell.start("attach", "runs/run/exp")
    (shell.folder / "go").touch()
    output, errors = follower.communicate(timeout=60)
    launcher.communicate(timeout=60)
    assert (launcher.returncode, follower.returncode) == (0, 0), errors
    assert "its last line" in output


def test_two_machines_detach_once_they_can_go_on_alone(shell, tmp_path):
    other = Shell(tmp_path / "other")
    other.folder.mkdir()
    (other.folder / "script.py").write_text(SCRIPT)
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        place = ("--master", "127.0.0.1", "--port", listener.getsockname()[1])
    try:
        master = shell.started_run("--rank", "0", "--nodes", "2", *place, "script.py")
        member = other.started_run("--rank", "1", *place, "script.py")
        for each in (shell, other):
            wait_until((each.folder / "begun").exists)
        followers = [each.start("attach", run["run_dir"]) for each, run in ((shell, master), (other, member))]
        for each in (shell, other):
            (each.folder / "go").touch()
        for follower in followers:
            output, errors = follower.communicate(timeout=60)
            assert follower.returncode == 0, output + errors
    finally:
        (other.folder / "go").touch()
        other.close()

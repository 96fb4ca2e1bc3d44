"""How jobs end, on two and three real workers under ``run``: the report names the one cause, from outside."""

from __future__ import annotations

import contextlib
import os
import re
import socket
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.processes.conftest import PROGRAM, PROJECT_DIR

COMMAND = [sys.executable, *(["-P"] if sys.version_info >= (3, 11) else []), "-c", PROGRAM, "run", "--gpus", "cpu"]
PLAIN = """
import ctypes, os, signal, socket, subprocess, sys, threading, time
rank, world = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
def others_wait():
    time.sleep(60)
"""
GROUP = (
    PLAIN
    + """
import torch.distributed as dist
dist.init_process_group("gloo")
def others_wait():
    dist.barrier()
"""
)
AFTER = "\nelse:\n    others_wait()\n"


@dataclass(frozen=True)
class Ending:
    """What one rank does while the others wait, and what the report says of it."""

    what: str
    """Lines that rank ``rank`` runs."""
    seen: str
    """A pattern of the cause."""
    hint: str = ""
    rank: int = 1
    workers: int = 2
    code: int = 1
    start: str = PLAIN
    options: tuple[str, ...] = ()
    rest: str = AFTER
    """What the other ranks do."""

    @property
    def script(self) -> str:
        lines = "".join(f"    {line}\n" for line in self.what.strip().split("\n"))
        return f"{self.start}\nif rank == {self.rank}:\n{lines}{self.rest}"


def raises(error: str, seen: str = "", hint: str = "", **more) -> Ending:
    return Ending(f"raise {error}", seen or re.escape(error.partition("(")[0]), hint, **more)


TERMINATE = r'os.write(2, b"terminate called after throwing an instance of \'std::runtime_error\'\n  what():  boom\n")'
REFUSED = 'OSError("Connection refused: redis://cache:6379")'
NETWORK = {
    "refused-words": raises(REFUSED, start=GROUP),
    "refused-words-rank-0": raises(REFUSED, start=GROUP, rank=0),
    "refused-words-of-three": raises(REFUSED, start=GROUP, rank=2, workers=3),
    "refused": Ending('socket.create_connection(("127.0.0.1", 1))', "ConnectionRefusedError", start=GROUP),
    "broken-pipe": Ending("r, w = os.pipe(); os.close(r); os.write(w, b'x')", "BrokenPipeError", start=GROUP),
    "a-librarys-runtime-error": raises('RuntimeError("gloo: Connection closed by peer [10.0.0.1]")', start=GROUP),
    "caused-by-another": Ending(
        "try:\n    os.kill(0x7FFFFFFF, 0)\nexcept OSError as error:\n    raise ValueError('no cache') from error",
        "ValueError: no cache",
        start=GROUP,
    ),
    "download": Ending(
        "import urllib.request; urllib.request.urlopen('http://127.0.0.1:1/w.pt')",
        "URLError",
        "put the file in place first",
        start=GROUP,
    ),
}
EXCEPTIONS = {
    "value": raises('ValueError("labels are out of range")', "ValueError: labels are out of range", rank=0),
    "own-class": Ending("class Broken(Exception): pass\nraise Broken('x')", "Broken: x", workers=3, rank=2),
    "import": Ending("import no_such_package", "No module named 'no_such_package'", "missing from the environment"),
    "file": Ending("open('cats.yaml')", "FileNotFoundError", "looked for from the folder", rank=0),
    "memory": raises('MemoryError("no more")', "MemoryError", "out of memory"),
    "recursion": Ending("def f(): return f()\nf()", "RecursionError"),
    "syntax": Ending("exec('x ===')", "SyntaxError"),
    "exit-with-words": Ending("sys.exit('the data set is empty')", "the data set is empty"),
    "gpu-memory": raises(
        'RuntimeError("CUDA out of memory. Tried to allocate 2 GiB")', "CUDA out of memory", "is full"
    ),
}
CODES = {
    f"code-{code}": Ending(f"{how}({code})", f"exit code {code}", hint, rank=rank, workers=workers, code=1)
    for code, how, rank, workers, hint in (
        (1, "sys.exit", 1, 2, ""),
        (3, "sys.exit", 0, 2, ""),
        (7, "os._exit", 2, 3, ""),
        (42, "os._exit", 1, 2, ""),
        (130, "sys.exit", 1, 2, ""),
        (137, "os._exit", 1, 2, "out of memory"),
        (143, "os._exit", 0, 2, ""),
        (255, "sys.exit", 1, 2, ""),
    )
}
SIGNALS = {
    f"signal-{name}": Ending(f"os.kill(os.getpid(), signal.{name})", seen, hint, rank=rank)
    for name, seen, hint, rank in (
        ("SIGKILL", "killed by SIGKILL", "out of memory", 0),
        ("SIGTERM", "ended by a SIGTERM", "send it to the launcher", 1),
        ("SIGBUS", "SIGBUS", "/dev/shm", 1),
        ("SIGILL", "SIGILL", "newer CPU", 1),
        ("SIGFPE", "SIGFPE", "", 0),
        ("SIGUSR1", "ended by SIGUSR1", "", 1),
    )
}
CRASHES = {
    "segfault": Ending("ctypes.string_at(0)", "segmentation fault", "Python line"),
    "abort": Ending("os.abort()", "SIGABRT", start=GROUP),
    "terminate-rank-0": Ending(f"{TERMINATE}\nos.abort()", r"what\(\):  boom", rank=0),
    "terminate-rank-1": Ending(f"{TERMINATE}\nos.abort()", r"what\(\):  boom", start=GROUP),
}
EARLY = "ended with exit code 0 while other ranks still waited"
ENDS = {
    "early-rank-1": Ending("pass", EARLY, "depends on the rank", start=GROUP),
    "early-rank-0": Ending("pass", EARLY, "depends on the rank", start=GROUP, rank=0),
    "early-of-three": Ending("os._exit(0)", EARLY, start=GROUP, rank=2, workers=3),
    "thread-at-exit": Ending(
        "threading.Thread(target=time.sleep, args=(50,)).start()",
        "rank 1 came to its last line",
        start=GROUP,
        code=4,
        options=("--stall-timeout", "3"),
    ),
    "handler-at-exit": Ending(
        "import atexit; atexit.register(time.sleep, 50)",
        "rank 1 came to its last line",
        code=4,
        options=("--stall-timeout", "3"),
    ),
    "two-at-once": Ending(
        "raise ValueError('first')",
        "ValueError: first",
        rest="\nelse:\n    time.sleep(0.4)\n    raise KeyError('second')\n",
    ),
}
ENDINGS = NETWORK | EXCEPTIONS | CODES | SIGNALS | CRASHES | ENDS
QUICK = ("refused-words", "exit-with-words", "code-137", "signal-SIGTERM", "terminate-rank-0", "early-rank-1")


def run(folder: Path, ending: Ending, limit_s: float = 90) -> subprocess.CompletedProcess[str]:
    (folder / "script.py").write_text(ending.script)
    command = [*COMMAND, "--nproc", str(ending.workers), *ending.options, "script.py"]
    environment = {**os.environ, "PYTHONPATH": str(PROJECT_DIR)}
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=limit_s)


def check(ended: subprocess.CompletedProcess[str], ending: Ending) -> None:
    report = ended.stderr
    assert ended.returncode == ending.code, report
    title = r"rank {} failed first" if ending.code == 1 else r"rank {} "
    assert re.search(title.format(ending.rank), report), report
    named = {int(rank) for rank in re.findall(r"rank (\d+) failed first", report)}
    assert named <= {ending.rank}, report
    assert re.search(ending.seen, report), report
    assert ending.hint in " ".join(report.split()), report


@pytest.mark.parametrize(
    "name", [name if name in QUICK else pytest.param(name, marks=pytest.mark.slow) for name in ENDINGS]
)
def test_the_report_names_the_cause(tmp_path, name):
    check(run(tmp_path, ENDINGS[name]), ENDINGS[name])


def memory_group() -> Path | None:
    """This process's own group of version 1, if a group inside it can be made."""
    with contextlib.suppress(OSError):
        for line in Path("/proc/self/cgroup").read_text().splitlines():
            if ":memory:" in line:
                path = Path("/sys/fs/cgroup/memory") / line.split(":", 2)[2].lstrip("/")
                return path if os.access(path, os.W_OK) else None
    return None


@pytest.mark.slow
def test_a_kill_for_memory_in_a_nested_group_is_recognized(tmp_path):
    parent = memory_group()
    if parent is None:
        pytest.skip("needs a control group of version 1 for memory that can be written")
    group = parent / f"yolo-launch-test-{os.getpid()}"
    group.mkdir()
    try:
        (group / "memory.limit_in_bytes").write_text(str(96 << 20))
        ending = Ending(
            f"open({str(group / 'cgroup.procs')!r}, 'w').write(str(os.getpid()))\n"
            "x = [bytearray(1 << 20) for _ in range(400)]",
            "killed by SIGKILL",
            "the host ran out of memory and the kernel killed the worker",
        )
        check(run(tmp_path, ending), ending)
    finally:
        group.rmdir()


@pytest.mark.slow
def test_a_full_disk_leaves_a_report_and_no_traceback_of_the_launcher(tmp_path):
    """The run's folder is on a disk of 1 MB, which the logs fill."""
    if os.geteuid() != 0:
        pytest.skip("needs root for a small disk")
    ending = Ending(
        "for i in range(20000): print('z' * 200)\nraise ValueError('after all the lines')",
        "ended with exit code 1",
        rest="\nelse:\n    for i in range(20000): print('z' * 200)\n    others_wait()\n",
    )
    (tmp_path / "runs").mkdir()
    (tmp_path / "script.py").write_text(ending.script)
    inner = " ".join(f"'{part}'" for part in [*COMMAND, "--nproc", "2", "script.py"])
    script = f"mount -t tmpfs -o size=1m none runs && exec {inner}"
    environment = {**os.environ, "PYTHONPATH": str(PROJECT_DIR)}
    ended = subprocess.run(
        ["unshare", "--mount", "bash", "-c", script],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        timeout=90,
    )
    assert ended.returncode == 1, ended.stderr[-3000:]
    assert re.search(ending.seen, ended.stderr)
    assert re.search(r"rank \d failed first", ended.stderr)
    assert "the disk is full: free some space" in ended.stderr
    assert not re.search(r'File ".*yolo_launch/(?!workers/script_entrypoint)', ended.stderr), ended.stderr[-3000:]


def test_a_port_that_is_taken_is_refused_with_its_holder(tmp_path):
    with socket.socket() as holder:
        holder.bind(("127.0.0.1", 0))
        holder.listen()
        port = str(holder.getsockname()[1])
        ending = Ending("pass", "", options=("--port", port), code=3)
        ended = run(tmp_path, ending)
    assert ended.returncode == 3
    assert re.search(rf"port {port} is busy", ended.stderr)

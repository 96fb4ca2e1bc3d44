"""Ties the life of a process to the one that started it, and keeps loader processes out of signals. Free of torch.

The kernel sends PR_SET_PDEATHSIG when the parent *thread* ends: a launcher starts its workers, and a worker its loader
processes, from the main thread.
"""

from __future__ import annotations

import contextlib
import faulthandler
import os
import signal
import sys
import threading
import time
from pathlib import Path

from trainer.protocol import LOGS_VARIABLE, PARENT_VARIABLE, RUN_ID_VARIABLE, LogFiles, rank_in

_PR_SET_PDEATHSIG = 1
_worker_pid: int | None = None
_kept_open: list[object] = []


def guard_worker(logs_dir: Path | None = None) -> None:
    """Makes this process die with the launcher that started it, and write Python stacks on SIGUSR2 and on a crash.

    Call it in the main thread before slow imports. ``logs_dir`` is used if the launcher names no folder; without
    either the stacks go to stderr. A process that a user started by hand outlives its shell, as nohup wants.
    """
    global _worker_pid
    _worker_pid = os.getpid()
    parent = os.environ.pop(PARENT_VARIABLE, "")
    if parent.isdigit():
        if hasattr(os, "setsid") and os.getsid(0) != os.getpid():
            os.setsid()  # before torch 2.2 the agent leaves its workers in the terminal's session
        die_with_parent(int(parent))
    elif RUN_ID_VARIABLE in os.environ:
        die_with_parent(os.getppid())
    folder = os.environ.get(LOGS_VARIABLE, "") or (str(logs_dir) if logs_dir else "")
    with contextlib.suppress(OSError, ValueError, AttributeError):  # stderr may be closed or no real file
        faulthandler.enable()
    if hasattr(signal, "SIGUSR2"):
        _register_stacks(folder)


def loader_init(worker_id: int = 0) -> None:
    """Initializes a loader process: it leaves stopping to the worker, and dies with it even in the middle of an item.

    Signals to a whole process group would otherwise end the loaders first, and the batch that a graceful save still
    needs with them. A SIGTERM from the worker itself still ends the loader: without it a worker that fails while a
    loader is stuck would wait for that loader for ever.
    """
    for name in ("SIGINT", "SIGHUP", "SIGUSR1"):
        if hasattr(signal, name):
            signal.signal(getattr(signal, name), signal.SIG_IGN)
    # A forked loader inherits the worker's id; one that was spawned starts with fresh modules and knows none.
    parent = _worker_pid if _worker_pid is not None else os.getppid()
    if hasattr(signal, "sigwaitinfo"):
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
        threading.Thread(target=_obey_parent, args=(parent,), daemon=True).start()
    die_with_parent(parent)


def die_with_parent(parent_pid: int) -> None:
    """Has this process killed when the parent dies; exits at once if the parent is not ``parent_pid``: it is dead."""
    if sys.platform == "linux":
        import ctypes

        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    else:
        threading.Thread(target=exit_after_parent, args=(parent_pid,), daemon=True).start()
    if os.getppid() != parent_pid:
        os._exit(1)


def _obey_parent(parent_pid: int) -> None:
    while signal.sigwaitinfo({signal.SIGTERM}).si_pid != parent_pid:
        pass
    os._exit(0)


def exit_after_parent(parent_pid: int) -> None:
    """Waits for the parent's death and ends this process; for a thread of its own."""
    while os.getppid() == parent_pid:
        time.sleep(0.5)
    os._exit(1)


def _register_stacks(folder: str) -> None:
    if not folder:
        with contextlib.suppress(OSError, ValueError, AttributeError):
            faulthandler.register(signal.SIGUSR2, all_threads=True)
        return
    path = LogFiles(Path(folder)).stacks(rank_in(os.environ))
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        stream = path.open("a", encoding="utf-8")  # open for the process's whole life: the handler only has the number
    except OSError:
        return
    faulthandler.register(signal.SIGUSR2, file=stream, all_threads=True)
    _kept_open.append(stream)

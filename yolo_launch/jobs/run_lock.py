"""Holds the folder of a run for one launcher, and tells who holds it."""

from __future__ import annotations

import contextlib
import errno
import os
import socket
from collections.abc import Iterator
from pathlib import Path

from yolo_launch.errors import ExitCode, LaunchError

LOCK_FILE, HOLDER_FILE = ".lock", ".held_by"
OUTCOME_FILE = "outcome.json"
"""How the last launcher that worked on a run ended; absent while one does."""


@contextlib.contextmanager
def hold(run_dir: Path) -> Iterator[None]:
    """Holds a run folder for this launcher in the block, or until it dies: the kernel frees the lock of a dead process.

    Raises LaunchError if another one holds it.
    """
    from filelock import FileLock, Timeout  # 0.2 s, which no other command has to wait for

    lock = FileLock(run_dir / LOCK_FILE)
    try:
        lock.acquire(timeout=0)
        (run_dir / HOLDER_FILE).write_text(f"PID {os.getpid()} on {socket.gethostname()}\n", encoding="utf-8")
    except Timeout:
        raise LaunchError(
            f"{run_dir} is being trained right now.",
            seen=f"held by {holder(run_dir)}",
            expected="a run that nobody works on",
            next_command="wait for it, stop it, or start a new run without --resume and --exist-ok",
        ) from None
    except (OSError, NotImplementedError):
        if not os.access(run_dir, os.W_OK):
            raise cannot_write(run_dir, os.strerror(errno.EACCES)) from None
        # Some network file systems know no locks; the run goes on without one.
    with contextlib.suppress(OSError):
        (run_dir / OUTCOME_FILE).unlink(missing_ok=True)
    try:
        yield
    finally:
        lock.release()


def is_held(run_dir: Path) -> bool:
    """Returns True if some launcher works on a run now."""
    if not (run_dir / LOCK_FILE).exists():
        return False
    from filelock import FileLock, Timeout

    try:
        with FileLock(run_dir / LOCK_FILE).acquire(timeout=0):
            return False
    except Timeout:
        return True
    except (OSError, NotImplementedError):
        return False


def holder(run_dir: Path) -> str:
    """Returns the process and the machine that work on a run, in words."""
    with contextlib.suppress(OSError):
        return (run_dir / HOLDER_FILE).read_text(encoding="utf-8").strip()
    return "another launcher"


def cannot_write(folder: Path, reason: str) -> LaunchError:
    """Returns the error of a run directory that the file system refuses."""
    is_full = reason == os.strerror(errno.ENOSPC)
    return LaunchError(
        f"The run directory {folder} cannot be written.",
        seen=reason,
        expected="a folder that this user may write, with space for checkpoints",
        next_command="free some space, or choose another disk: --project /elsewhere" if is_full else "--project DIR",
        exit_code=ExitCode.ENVIRONMENT,
    )

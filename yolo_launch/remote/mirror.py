"""Copies a run's results to a store while it trains, in a thread of the launcher, for which no step waits.

The launcher does it and not a worker: it outlives restarts, shares no interpreter with a training step, and is on the
machine that writes the run directory. A checkpoint gets its name only when it was read back and verified, so a file
with that name may be copied; an open file stays the same one if a newer takes its name meanwhile.
"""

from __future__ import annotations

import contextlib
import json
import tempfile
import threading
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from yolo_launch.errors import ExitCode, LaunchError
from yolo_launch.remote.transfer import RemoteStore, StoreError

LOOK_S = 2.0
"""How often the run directory is looked at."""
RETRY_S, MOST_RETRY_S = 10.0, 120.0
"""After a failure: the first pause, doubled up to the longest."""
LAST_S = 300.0
"""How long a run that has ended waits for its last copies. A store without a sign of life is given up long before."""

Say = Callable[[str], None]


class Mirror:
    """The copies of one run."""

    def __init__(self, run_dir: Path, patterns: Sequence[str], store: RemoteStore, say: Say) -> None:
        self._run_dir, self._patterns, self._store, self._say = run_dir, patterns, store, say
        self._copied: dict[str, tuple[int, int]] = {}
        self._ended = threading.Event()
        self._cause = ""
        self._thread = threading.Thread(target=self._work, name="mirror", daemon=True)

    def begin(self, plan_file: str) -> None:
        """Copies what is there already, then goes on in the background.

        Raises LaunchError if the store does not take it, or holds another run than that of ``plan_file``.
        """
        try:
            with tempfile.TemporaryDirectory() as folder:
                there = self._store.list()
                self._store.get([one for one in there if one.path == plan_file], Path(folder), lambda _: None)
                same = _run_id(Path(folder) / plan_file) == _run_id(self._run_dir / plan_file)
            if there and not same:
                raise LaunchError(
                    f"--mirror {self._store.url} holds other files than this run's.",
                    seen=", ".join(one.path for one in there[:3]),
                    expected="an empty folder of the store, or the one that this run was copied to",
                    next_command=f"--mirror {self._store.url}-2",
                )
            self._copy()
        except StoreError as error:
            raise LaunchError(
                f"--mirror {self._store.url} cannot be written.",
                seen=str(error),
                expected="an address that answers, and credentials that may list, read and write it",
                next_command="the same command without --mirror, or once the store takes files",
                exit_code=ExitCode.ENVIRONMENT,
            ) from None
        self._thread.start()

    def end(self) -> None:
        """Waits for the last copies, and says so if the store lacks any."""
        self._ended.set()
        if self._thread.is_alive():
            self._thread.join(LAST_S)
        if lacking := ", ".join(self._changed()):
            self._say(f"warning mirror: {self._store.url} lacks the last {lacking}; they are in {self._run_dir}")

    def _work(self) -> None:
        pause_s = LOOK_S
        while not self._ended.wait(pause_s):
            pause_s = LOOK_S if self._try() else min(max(RETRY_S, 2 * pause_s), MOST_RETRY_S)
        self._try()

    def _try(self) -> bool:
        """Copies what has changed; returns False after a failure, which is said once."""
        try:
            self._copy()
        except (StoreError, OSError) as error:
            if str(error) != self._cause:
                self._say(f"warning mirror: {error}; training goes on, and it is tried again")
            self._cause = str(error)
            return False
        if self._cause:
            self._say(f"mirror: {self._store.url} is up to date again")
        self._cause = ""
        return True

    def _copy(self) -> None:
        changed = self._changed()
        if changed:
            self._store.put([(self._run_dir / name, name) for name in changed])
            self._copied.update(changed)

    def _changed(self) -> dict[str, tuple[int, int]]:
        """Returns (time, size) by name of the files that were not copied as they are now."""
        found = {}
        for path in (path for pattern in self._patterns for path in sorted(self._run_dir.glob(pattern))):
            with contextlib.suppress(FileNotFoundError):
                stat, name = path.stat(), path.relative_to(self._run_dir).as_posix()
                if self._copied.get(name) != (stat.st_mtime_ns, stat.st_size):
                    found[name] = (stat.st_mtime_ns, stat.st_size)
        return found


@contextlib.contextmanager
def mirrored(run_dir: Path, url: str | None, say: Say, *, patterns: Sequence[str], plan_file: str) -> Iterator[None]:
    """Copies files of a run directory to a URL while the block runs, if there is one. Raises LaunchError at once."""
    if url is None:
        yield
        return
    mirror = Mirror(run_dir, patterns, RemoteStore(url), say)
    mirror.begin(plan_file)
    try:
        yield
    finally:
        mirror.end()


def _run_id(plan: Path) -> str | None:
    with contextlib.suppress(OSError, ValueError, AttributeError):
        return str(json.loads(plan.read_text(encoding="utf-8")).get("run_id"))
    return None

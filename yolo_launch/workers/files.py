"""Handles the files of a job's workers: starts a section for each attempt, and reads the end of a log."""

from __future__ import annotations

import contextlib
import os
import time
from pathlib import Path

from trainer.protocol import LogFiles, RunFiles


class WorkerFiles(LogFiles):
    """The files of each rank in a run directory, and the agent's log beside them."""

    def __init__(self, run_dir: Path) -> None:
        super().__init__(RunFiles(run_dir).logs.folder)
        self.run_dir = run_dir

    @property
    def agent_log(self) -> Path:
        """Returns the file of the messages of torch's elastic agent."""
        return self.folder / "agent.log"

    def begin_attempt(self, attempt: int, ranks: range) -> None:
        """Removes the last attempt's files, and begins a new section in each log.

        Logs are appended to, since the output of earlier attempts explains a restart.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        for rank in ranks:
            for path in (self.error(rank), self.heartbeat(rank), self.stacks(rank), self.finished(rank)):
                path.unlink(missing_ok=True)
            # A full disk is for the workers to meet.
            with contextlib.suppress(OSError), self.log(rank).open("a", encoding="utf-8") as stream:
                stream.write(f"=== attempt {attempt}, {time.strftime('%Y-%m-%d %H:%M:%S')} ===\n")

    def open_log(self, rank: int) -> int:
        """Returns a descriptor that appends to the rank's log."""
        return os.open(self.log(rank), os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)

    def log_tail(self, rank: int, lines: int = 8, span_bytes: int = 16384) -> str:
        """Returns the last lines of this attempt in a rank's log, or an empty text."""
        try:
            with self.log(rank).open("rb") as stream:
                stream.seek(max(0, os.fstat(stream.fileno()).st_size - span_bytes))
                text = stream.read().decode("utf-8", "replace")
        except OSError:
            return ""
        this_attempt = text.rsplit("=== attempt ", 1)[-1] if "=== attempt " in text else "\n" + text
        # What the program said last, before faulthandler's dump of all threads pushed it out of sight.
        last_words, title, dump = this_attempt.partition("\nFatal Python error: ")
        printed = [line.rstrip() for line in last_words.split("\n")[1:] if line.strip()]
        frames = [line.rstrip() for line in dump.split("\n") if line.startswith("  File ")]
        crash = [title.strip() + " " + dump.partition("\n")[0], *frames[:1]] if title else []
        return "\n".join([*printed[-lines:], *crash])

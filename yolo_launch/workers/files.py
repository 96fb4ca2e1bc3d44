"""The files of a job's workers in the run directory: logs, errors, heartbeats and stacks of each rank."""

from __future__ import annotations

import os
import time
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class WorkerFiles:
    """Paths below ``run_dir/logs``."""

    run_dir: Path

    @property
    def folder(self) -> Path:
        """Where all of them are."""
        return self.run_dir / "logs"

    @property
    def agent_log(self) -> Path:
        """What torch's elastic agent has to say."""
        return self.folder / "agent.log"

    def log(self, rank: int) -> Path:
        """A rank's output; rank 0 writes to the terminal and keeps this one by itself."""
        return self.folder / f"rank{rank}.log"

    def error(self, rank: int) -> Path:
        """JSON that a failing worker leaves behind."""
        return self.folder / f"rank{rank}.error.json"

    def heartbeat(self, rank: int) -> Path:
        """JSON that a worker keeps up to date."""
        return self.folder / f"rank{rank}.heartbeat.json"

    def stacks(self, rank: int) -> Path:
        """Python stacks, written by a worker on SIGUSR2."""
        return self.folder / f"rank{rank}.stacks"

    def begin_attempt(self, attempt: int, ranks: range) -> None:
        """Remove what the last attempt said of itself, and begin a new section in each log but rank 0's.

        Logs only ever grow: what the attempts before had printed is what explains a restart.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        for rank in ranks:
            for path in (self.error(rank), self.heartbeat(rank), self.stacks(rank)):
                path.unlink(missing_ok=True)
            if rank > 0:
                with self.log(rank).open("a", encoding="utf-8") as stream:
                    stream.write(f"=== attempt {attempt}, {time.strftime('%Y-%m-%d %H:%M:%S')} ===\n")

    def open_log(self, rank: int) -> int:
        """A descriptor that appends to the rank's log."""
        return os.open(self.log(rank), os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)

    def log_tail(self, rank: int, lines: int = 8, span_bytes: int = 16384) -> str:
        """The last lines of this attempt in a rank's log, or nothing."""
        try:
            with self.log(rank).open("rb") as stream:
                stream.seek(max(0, os.fstat(stream.fileno()).st_size - span_bytes))
                text = stream.read().decode("utf-8", "replace")
        except OSError:
            return ""
        this_attempt = text.rsplit("=== attempt ", 1)[-1] if "=== attempt " in text else "\n" + text
        printed = [line.rstrip() for line in this_attempt.split("\n")[1:] if line.strip()]
        return "\n".join(printed[-lines:])

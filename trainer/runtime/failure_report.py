"""How one rank's failure is told: to the launcher in a file, to a person on stderr, and as an exit code."""

from __future__ import annotations

import json
import os
import sys
import time
import traceback
from pathlib import Path

from trainer.errors import EXIT_USAGE, RELAYED, UserError
from trainer.runtime.distributed import DistEnv
from trainer.runtime.heartbeat import Heartbeat
from trainer.runtime.reporter import Reporter

EXIT_FAILED = 1
ERROR_FILE_VARIABLE = "TORCHELASTIC_ERROR_FILE"


def report_failure(
    error: Exception, env: DistEnv, reporter: Reporter | None = None, heartbeat: Heartbeat | None = None
) -> int:
    """Describe the exception being handled; the exit code. A mistake of the user's has no traceback."""
    if reporter is not None:
        reporter.stop()
    path = os.environ.get(ERROR_FILE_VARIABLE)
    if path:
        _write(Path(path), error, env, heartbeat)
    if isinstance(error, UserError):
        if not path:
            print(error, file=sys.stderr)
        return EXIT_USAGE
    traceback.print_exc()
    return EXIT_FAILED


def _write(path: Path, error: Exception, env: DistEnv, heartbeat: Heartbeat | None) -> None:
    """In the elastic agent's format and a little more."""
    content = {
        "message": {
            "message": f"{type(error).__name__}: {error}",
            "extraInfo": {"py_callstack": traceback.format_exc(), "timestamp": str(int(time.time()))},
        },
        "user_error": error.to_dict() if isinstance(error, UserError) else None,
        "rank": env.rank,
        "relayed": bool(getattr(error, RELAYED, False)),
        "epoch": heartbeat.epoch if heartbeat else None,
        "step": heartbeat.step if heartbeat else None,
        "phase": heartbeat.phase if heartbeat else "start",
        "time": time.time(),
    }
    try:
        path.write_text(json.dumps(content), encoding="utf-8")
    except OSError as why:
        print(f"could not write {path}: {why}", file=sys.stderr)

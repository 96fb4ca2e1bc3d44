"""Reports one rank's failure: to the launcher in a file, to a person on stderr, and as an exit code."""

from __future__ import annotations

import os
import sys
import traceback
from pathlib import Path

from trainer.errors import RELAYED, DeviceError, UserError
from trainer.protocol import (
    ERROR_FILE_VARIABLE,
    EXIT_ENVIRONMENT,
    EXIT_FAILED,
    EXIT_USAGE,
    FailureRecord,
    write_failure,
)
from trainer.runtime.distributed import DistEnv
from trainer.runtime.heartbeat import HeartbeatWriter
from trainer.runtime.origin import raised_by_torch
from trainer.runtime.reporter import Reporter


def report_failure(
    error: Exception, env: DistEnv, reporter: Reporter | None = None, heartbeat: HeartbeatWriter | None = None
) -> int:
    """Describes the exception being handled; returns the exit code. A mistake of the user's has no traceback."""
    if reporter is not None:
        reporter.stop()
    path = os.environ.get(ERROR_FILE_VARIABLE)
    if path:
        try:
            write_failure(Path(path), _record_of(error, env, heartbeat))
        except OSError as why:
            print(f"could not write {path}: {why}", file=sys.stderr)
    if isinstance(error, UserError):
        if not path:
            print(error, file=sys.stderr)
        return EXIT_ENVIRONMENT if isinstance(error, DeviceError) else EXIT_USAGE
    traceback.print_exc()
    return EXIT_FAILED


def _record_of(error: Exception, env: DistEnv, heartbeat: HeartbeatWriter | None) -> FailureRecord:
    return FailureRecord(
        rank=env.rank,
        message=f"{type(error).__name__}: {error}",
        traceback=traceback.format_exc(),
        user_error=error.to_dict() if isinstance(error, UserError) else None,
        relayed=bool(getattr(error, RELAYED, False)),
        by_torch=raised_by_torch(error),
        phase=heartbeat.phase if heartbeat else "start",
        epoch=heartbeat.epoch if heartbeat else None,
        step=heartbeat.step if heartbeat else None,
    )

"""Defines the launcher's errors that a user can correct, and the exit codes that the program promises."""

from __future__ import annotations

from enum import IntEnum

from trainer.errors import UserError
from trainer.protocol import EXIT_DONE, EXIT_FAILED, EXIT_SAVED_AND_STOPPED, EXIT_USAGE


class ExitCode(IntEnum):
    """Exit codes of `yolo-launch`; 128+n is a signal n without saved state."""

    DONE = EXIT_DONE
    WORKER_FAILED = EXIT_FAILED
    USAGE = EXIT_USAGE
    ENVIRONMENT = 3
    STALLED = 4
    NOT_JOINED = 5
    MASTER_LOST = 6
    NOT_JUDGED = 7
    SAVED_AND_STOPPED = EXIT_SAVED_AND_STOPPED


class LaunchError(UserError):
    """Something that cannot work, said before anything is started."""

    def __init__(
        self,
        what: str,
        *,
        seen: str = "",
        expected: str = "",
        next_command: str = "",
        exit_code: ExitCode = ExitCode.USAGE,
    ) -> None:
        super().__init__(what, seen=seen, expected=expected, next_command=next_command)
        self.exit_code = exit_code

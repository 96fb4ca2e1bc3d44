"""Holds how long workers may take to save, to end and to show their stacks."""

from __future__ import annotations

import signal
from dataclasses import dataclass


@dataclass(frozen=True)
class Limits:
    """Holds time limits, in seconds."""

    save_s: float = 30.0
    """From SIGTERM or SIGHUP to SIGKILL: time to finish the step and write a checkpoint."""
    early_warning_s: float = 120.0
    """The same for SIGUSR1, which schedulers send well ahead of SIGTERM."""
    interrupt_s: float = 3.0
    """The same for Ctrl-C, except for workers that are writing their state; a second Ctrl-C kills at once."""
    linger_s: float = 3.0
    """How long the peers of a failed worker may go on."""
    start_allowance_s: float = 60.0
    """Least time until the first heartbeat."""
    stacks_s: float = 1.0
    """Time that stalled workers have to write their stacks."""
    sweep_s: float = 5.0
    """How long the end of an attempt waits for processes that were killed."""
    heartbeat_s: float = 0.5
    """How often heartbeats are read."""
    tick_s: float = 0.05
    pause_s: float = 1.0
    """A gap of so much between two ticks was a pause of the machine, not of the workers."""

    def grace_s(self, signum: int) -> float:
        """Returns the seconds that workers have after a first signal."""
        return {signal.SIGINT: self.interrupt_s, signal.SIGQUIT: 0.0, signal.SIGUSR1: self.early_warning_s}.get(
            signal.Signals(signum), self.save_s
        )

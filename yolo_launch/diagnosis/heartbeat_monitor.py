"""Reads the heartbeats of the ranks, and detects that none of them changes any more."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable

from trainer.protocol import Heartbeat, LogFiles, read_heartbeat

SCRIPT_OVER = "end"
"""Phase of a script's process that has not ended after its last line."""


class HangDetector:
    """Detects that no rank's heartbeat changes any more.

    One rank that moves is enough: its peers may wait for it while it validates or saves. ``required`` is False for
    foreign scripts: they are watched from their first heartbeat on, if they write any. ``elsewhere_idle_s`` returns for
    how many seconds no rank of another machine has moved.
    """

    def __init__(
        self,
        files: LogFiles,
        timeout_s: float,
        *,
        start_allowance_s: float,
        required: bool,
        elsewhere_idle_s: Callable[[], float] = lambda: math.inf,
    ) -> None:
        self._elsewhere_idle_s = elsewhere_idle_s
        self._files = files
        self._timeout_s = timeout_s if timeout_s > 0 else math.inf
        self._start_allowance_s = start_allowance_s
        self._required = required
        self._last: dict[int, Heartbeat] = {}
        self._moved_at: dict[int, float] = {}
        self._over: dict[int, Heartbeat] = {}
        """Ranks whose script has come to its last line though the process is still there."""
        self._began_at: float | None = None

    @property
    def heard(self) -> bool:
        """Returns whether any rank has written a heartbeat."""
        return bool(self._last)

    @property
    def finished_a_step(self) -> bool:
        """Returns whether some rank has finished a step."""
        return any(beat.finished_a_step for beat in self._last.values())

    def is_blind(self, now: float) -> bool:
        """Returns whether a foreign script has run for its start allowance without any heartbeat."""
        began_at = now if self._began_at is None else self._began_at
        blind = not self._required and not self.heard and self._timeout_s < math.inf
        return blind and now - began_at >= self._start_allowance_s

    def latest(self) -> dict[int, Heartbeat]:
        """Returns the last heartbeat of each rank that wrote one."""
        return dict(self._last)

    def position(self, rank: int) -> Heartbeat | None:
        """Returns a rank's last heartbeat; of one whose script is over, one that says so."""
        return self._over.get(rank, self._last.get(rank))

    def idle_s(self, rank: int, now: float) -> float:
        """Returns the seconds since the rank's heartbeat changed, or since the workers started."""
        return now - self._moved_at.get(rank, self._began_at if self._began_at is not None else now)

    def forgive(self, seconds: float) -> None:
        """Takes it that nobody could have moved for so many seconds."""
        self._moved_at = {rank: moved_at + seconds for rank, moved_at in self._moved_at.items()}
        self._began_at = None if self._began_at is None else self._began_at + seconds

    def look(self, ranks: Iterable[int], now: float) -> bool:
        """Reads the heartbeats of the living ``ranks`` at monotonic time ``now``; True if the job has stalled."""
        if self._began_at is None:
            self._began_at = now
        alive = list(ranks)
        for rank in alive:
            beat = read_heartbeat(self._files, rank)
            if beat is not None and beat != self._last.get(rank):
                self._last[rank] = beat
                self._moved_at[rank] = now
            if rank not in self._over and self._files.finished(rank).exists():
                self._over[rank] = Heartbeat(rank, SCRIPT_OVER, 0, 0, 0.0)
                self._moved_at[rank] = now
        # Peers may wait for a rank whose script is over, without a word and for ever.
        if any(self.idle_s(rank, now) >= self._timeout_s for rank in alive if rank in self._over):
            return True
        if not alive or (not self._required and not self.heard):
            return False
        # Until the first heartbeat the workers import torch, which takes a minute on a cold disk.
        limit_s = self._timeout_s if self.heard else max(self._timeout_s, self._start_allowance_s)
        return all(self.idle_s(rank, now) >= limit_s for rank in alive) and self._elsewhere_idle_s() >= limit_s

"""Finds the rank that holds up a stalled job: its phase and stack, and what the other ranks wait for."""

from __future__ import annotations

import contextlib
import signal
from dataclasses import dataclass

import psutil

from trainer.protocol import Heartbeat
from yolo_launch.diagnosis.heartbeat_monitor import SCRIPT_OVER
from yolo_launch.diagnosis.stacks import Frame, collective_in, main_stack, own_frame, waits_for_loader
from yolo_launch.spec import RankFailure
from yolo_launch.workers.files import WorkerFiles


@dataclass(frozen=True)
class StalledRank:
    """One living rank of a stalled job."""

    rank: int
    idle_s: float
    heartbeat: Heartbeat | None
    stack: tuple[Frame, ...]
    """The main thread's, innermost frame first."""
    frozen: str = ""
    """Why the process cannot answer: stopped, or in the kernel's uninterruptible sleep."""

    @property
    def phase(self) -> str:
        """Returns the phase of the last heartbeat; 'start' before the first."""
        return self.heartbeat.phase if self.heartbeat else "start"

    @property
    def collective(self) -> str:
        """Returns the collective in which the rank waits, or an empty text."""
        return collective_in(self.stack)

    @property
    def waits_for_device(self) -> bool:
        """Returns whether its GPU has not come as far as the process that gives it work."""
        beat = self.heartbeat
        return beat is not None and beat.phase == "train" and 0 <= beat.device_marks < 2 * beat.step + 2

    def describe(self) -> str:
        """Returns one line about the rank's position."""
        place = f"'{self.phase}'"
        if self.heartbeat is not None:
            place += f" (epoch {self.heartbeat.epoch + 1}, step {self.heartbeat.step})"
        if self.phase == SCRIPT_OVER:
            reason = "a thread that is no daemon, or what it does at exit, still runs"
            return f"rank {self.rank} came to its last line {self.idle_s:.0f} s ago and does not end: {reason}"
        text = f"rank {self.rank} has been in {place} for {self.idle_s:.0f} s"
        frame = own_frame(self.stack)
        if self.frozen:
            return f"{text}: the process is {self.frozen}"
        if self.collective:
            return f"{text}, waiting for the other ranks in {self.collective}" + (f" ({frame})" if frame else "")
        if waits_for_loader(self.stack):
            text += ", waiting for its loader processes"
        elif self.waits_for_device and self.heartbeat is not None:
            done, is_forward = divmod(self.heartbeat.device_marks, 2)
            reached = f"the forward pass of step {done + 1}" if is_forward else f"step {done}"
            text += f", waiting for its GPU, which has finished {reached} and nothing since"
            if self.heartbeat.collective:
                state = "has begun" if self.heartbeat.collective_marks % 2 else "has not come to"
                text += f" and {state} {self.heartbeat.collective}"
        return f"{text}, at {frame}" if frame else f"{text}; it did not say where"


def examine(files: WorkerFiles, rank: int, pid: int, idle_s: float, heartbeat: Heartbeat | None) -> StalledRank:
    """Gathers what is known of one rank after it was asked for its stacks."""
    text = ""
    with contextlib.suppress(OSError):
        text = files.stacks(rank).read_text(encoding="utf-8", errors="replace")
    frozen = ""
    with contextlib.suppress(psutil.Error):
        status = psutil.Process(pid).status()
        if status in (psutil.STATUS_STOPPED, psutil.STATUS_TRACING_STOP):
            frozen = "stopped (SIGSTOP or a debugger)"
        elif status == psutil.STATUS_DISK_SLEEP:
            frozen = "in uninterruptible sleep (a disk, network file system or driver does not answer)"
    return StalledRank(rank, idle_s, heartbeat, tuple(main_stack(text)), frozen)


def blocking_rank(ranks: list[StalledRank]) -> StalledRank:
    """Returns the rank that the others most likely wait for.

    A frozen one comes first, then one whose script is over, then one that is not itself waiting in a collective, then
    the one whose GPU is furthest behind, in its steps or in its collectives, then the one that is itself. Heartbeats
    are up to a second old, so steps decide last.
    """

    def suspicion(stalled: StalledRank) -> tuple[bool, bool, bool, tuple[int, int], tuple[int, int], float]:
        beat = stalled.heartbeat
        device_marks = (beat.device_marks, beat.collective_marks) if beat is not None else (-1, -1)
        position = (beat.epoch, beat.step) if beat is not None else (-1, -1)
        is_over = stalled.phase == SCRIPT_OVER
        return (not stalled.frozen, not is_over, bool(stalled.collective), device_marks, position, -stalled.idle_s)

    return min(ranks, key=suspicion)


def describe_stall(ranks: list[StalledRank]) -> str:
    """Returns one line for the blocking rank, then one for each other rank."""
    first = blocking_rank(ranks)
    lines = [first.describe()]
    if first.collective and not first.frozen and len(ranks) > 1:
        lines[0] = "every rank waits in a collective: they took different paths, or the network between them failed"
        lines.append(first.describe())
    lines += [other.describe() for other in ranks if other is not first]
    return "\n".join(lines)


def stall_hint(first: StalledRank) -> str:
    """Returns one sentence on what to do about the blocking rank's state; empty if nothing is known."""
    if waits_for_loader(first.stack):
        return "a loader process is stuck, often on a slow or lost file system: --workers 0 shows its stack too"
    if first.collective:
        return "yolo-launch doctor times an all-reduce over these devices"
    return ""


def stall_failure(ranks: list[StalledRank]) -> RankFailure:
    """Returns the blocking rank as a failure, with the main thread of every rank for a traceback."""
    first = blocking_rank(ranks)
    beat = first.heartbeat
    return RankFailure(
        rank=first.rank,
        local_rank=0,
        exit_code=-signal.SIGKILL,
        message=describe_stall(ranks),
        traceback=stall_traceback(ranks),
        epoch=beat.epoch if beat else None,
        step=beat.step if beat else None,
        phase=first.phase,
        hint=stall_hint(first),
    )


def stall_traceback(ranks: list[StalledRank]) -> str:
    """Returns the main thread of every rank, the blocking rank's first."""
    first = blocking_rank(ranks)
    stacks = []
    for stalled in sorted(ranks, key=lambda one: one is not first):
        shown = [f'  File "{frame.path}", line {frame.line} in {frame.function}' for frame in stalled.stack]
        title = f"Stack of rank {stalled.rank}, innermost call first:"
        stacks += [title, *(shown or ["  (none: the worker did not answer)"])]
    return "\n".join(stacks)

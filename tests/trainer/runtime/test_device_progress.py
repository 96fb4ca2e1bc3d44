"""How far a GPU has come, told while the host waits; with events that are reached when the test says so."""

from __future__ import annotations

import time
from typing import ClassVar

import pytest
import torch

from trainer.protocol import LogFiles, read_heartbeat
from trainer.runtime import device_progress
from trainer.runtime.collective_trace import CollectiveTrace
from trainer.runtime.device_progress import DeviceProgress
from trainer.runtime.heartbeat import HeartbeatWriter

CARD = torch.device("cuda", 0)


class Event:
    made: ClassVar[list[Event]] = []

    def __init__(self) -> None:
        self.reached = False
        Event.made.append(self)

    def record(self) -> None: ...
    def query(self) -> bool:
        return self.reached


@pytest.fixture
def heartbeat(tmp_path, monkeypatch):
    monkeypatch.setattr(torch.cuda, "Event", Event)
    Event.made.clear()
    writer = HeartbeatWriter(LogFiles(tmp_path), 0, interval_s=1e9)
    writer.beat("train", 0, 5)
    return writer


def marks(heartbeat: HeartbeatWriter) -> int:
    return read_heartbeat(LogFiles(heartbeat.path.parent), 0).device_marks


def test_the_heartbeat_tells_what_the_device_has_done_and_not_what_it_was_given(heartbeat):
    progress = DeviceProgress(heartbeat, CARD, interval_s=1e9)
    for step in (5, 6):
        progress.forward_done(step)
        progress.step_done(step)
    progress.look()
    assert marks(heartbeat) == -1
    for reached, expected in ((0, 11), (1, 12), (3, 12), (2, 14)):
        Event.made[reached].reached = True
        progress.look()
        assert marks(heartbeat) == expected
    written = heartbeat.path.read_text()
    progress.look()
    assert heartbeat.path.read_text() == written, "a heartbeat that stands still is how a hang is seen"
    heartbeat.beat("val")
    assert marks(heartbeat) == 14


def test_a_device_that_stands_still_tells_in_which_collective(heartbeat, monkeypatch):
    asked = []
    found = CollectiveTrace(15, "all_reduce number 8 of sizes [[64, 3]]")
    monkeypatch.setattr(device_progress, "trace_collectives", lambda backend: (asked.append(backend), found)[1])
    progress = DeviceProgress(heartbeat, CARD, interval_s=1e9)
    progress.look()
    progress.forward_done(5)
    progress.look()
    assert asked == []
    monkeypatch.setattr(device_progress, "_QUIET_S", 0.0)
    progress.look()
    beat = read_heartbeat(LogFiles(heartbeat.path.parent), 0)
    assert (beat.collective_marks, beat.collective) == found
    written = heartbeat.path.read_text()
    progress.look()
    assert asked == ["nccl", "nccl"]
    assert heartbeat.path.read_text() == written, "a heartbeat that stands still is how a hang is seen"
    Event.made[0].reached = True
    progress.look()
    beat = read_heartbeat(LogFiles(heartbeat.path.parent), 0)
    assert (beat.device_marks, beat.collective_marks, beat.collective) == (11, -1, ""), "it has gone on since"


def test_a_thread_tells_it_while_the_host_waits(heartbeat):
    progress = DeviceProgress(heartbeat, CARD, interval_s=0.01)
    progress.forward_done(5)
    Event.made[0].reached = True
    deadline = time.monotonic() + 10
    while marks(heartbeat) != 11:
        assert time.monotonic() < deadline, "the heartbeat was not written"
        time.sleep(0.01)


def test_a_cpu_has_no_progress_of_its_own(heartbeat):
    progress = DeviceProgress(heartbeat, torch.device("cpu"))
    progress.forward_done(5)
    progress.step_done(5)
    assert (Event.made, marks(heartbeat)) == ([], -1)

"""Checks the line that a waiting or watching machine keeps current, on a terminal and in a file."""

from __future__ import annotations

import io
import threading
from types import SimpleNamespace

import pytest

from trainer.protocol import Heartbeat
from yolo_launch.nodes import status_line as node_line
from yolo_launch.nodes.status_line import StatusLine, fitted

ROSTER = "1/2 machines: 0 gpu-a (192.168.1.1, 2x A100) - waiting for 1"
PLAN = SimpleNamespace(first_rank=2, ranks=range(2, 4), world_size=4, global_batch_size=64)


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True

    def shown(self) -> str:
        """Returns the text of the last line."""
        return self.getvalue().rpartition("\r\x1b[K")[2]


@pytest.fixture
def clock(monkeypatch):
    now = SimpleNamespace(s=1000.0)
    monkeypatch.setattr(node_line.time, "monotonic", lambda: now.s)
    return now


def beat(step: int, phase: str = "train", epoch: int = 2) -> Heartbeat:
    return Heartbeat(2, phase, epoch, step, 0.0)


def test_a_terminal_counts_down(clock):
    stream = Terminal()
    line = StatusLine(stream)
    line.roster(ROSTER, 600)
    assert stream.shown() == f"{ROSTER}, 10m00s left"
    clock.s += 10.5
    line.tick()
    assert stream.shown().endswith("waiting for 1, 9m49s left")
    assert "\n" not in stream.getvalue()


def test_a_full_roster_does_not_count_down(clock):
    stream = Terminal()
    StatusLine(stream).roster("2/2 machines: 0 gpu-a, 1 gpu-b", 600)
    assert stream.shown() == "2/2 machines: 0 gpu-a, 1 gpu-b"


def test_time_never_runs_below_zero(clock):
    stream = Terminal()
    line = StatusLine(stream)
    line.roster("no answer", 1, counts_down=True)
    clock.s += 5
    line.tick()
    assert stream.shown() == "no answer, 0m00s left"


def test_a_line_that_stays_goes_above_the_one_that_changes(clock):
    stream = Terminal()
    line = StatusLine(stream)
    line.roster("waiting", 1)
    line.over("machine 1 is gone")
    line.tick()
    assert stream.getvalue().endswith("\r\x1b[Kmachine 1 is gone\n\r\x1b[Kwaiting")
    line.close()
    assert stream.getvalue().endswith("\r\x1b[K")


@pytest.mark.parametrize("columns", [5, 20, 80, 200])
def test_a_long_text_fits_on_one_line_with_both_its_ends(columns):
    text = "64/64 machines: " + "x" * 150 + " - waiting for 9, 9m50s left"
    shown = fitted(text, columns)
    assert len(shown) <= max(10, columns - 1)
    assert shown.startswith(text[:3])
    assert shown.endswith("eft")
    assert fitted("short", columns) == "short"


def test_a_roster_that_is_too_long_for_a_terminal_does_not_wrap(clock):
    stream = Terminal()
    StatusLine(stream).roster("4/5 machines: " + "x" * 100 + " - waiting for 4", 60)
    assert len(stream.shown()) == 79
    assert stream.shown().endswith(" - waiting for 4, 1m00s left")


def test_a_file_gets_a_line_for_each_change_and_then_now_and_then(clock):
    stream = io.StringIO()
    line = StatusLine(stream)
    line.roster(ROSTER, 600)
    for _ in range(29):
        clock.s += 1
        line.tick()
    assert stream.getvalue() == f"{ROSTER}, 10m00s left\n"
    clock.s += 2
    line.tick()
    assert stream.getvalue().splitlines()[1:] == [f"{ROSTER}, 9m29s left"]
    line.roster("2/2 machines", 500)
    line.roster("2/2 machines", 499)
    assert stream.getvalue().splitlines()[2:] == ["2/2 machines"]


def test_progress_shows_ranks_place_and_speed(clock):
    stream = Terminal()
    line = StatusLine(stream)
    line.round(PLAN, None)
    line.tick()
    assert stream.shown() == "ranks 2-3 of 4: starting, connected"
    line.progress(beat(10))
    assert stream.shown() == "ranks 2-3 of 4: train, epoch 3, connected"
    clock.s += 4
    line.progress(beat(12))
    assert stream.shown() == "ranks 2-3 of 4: train, epoch 3, 32.0 images/s, connected"


def test_the_speed_is_that_of_the_last_seconds(clock):
    stream = Terminal()
    line = StatusLine(stream)
    line.round(PLAN, None)
    for step in range(0, 100, 2):
        line.progress(beat(step))
        clock.s += 1
    for step in range(100, 150):
        line.progress(beat(step))
        clock.s += 1
    assert "64.0 images/s" in stream.shown()


def test_a_new_epoch_shows_no_negative_speed(clock):
    stream = Terminal()
    line = StatusLine(stream)
    line.round(PLAN, None)
    line.progress(beat(90))
    clock.s += 1
    line.progress(beat(0, epoch=3))
    assert stream.shown() == "ranks 2-3 of 4: train, epoch 4, connected"


def test_progress_in_a_file_comes_once_a_minute(clock):
    stream = io.StringIO()
    line = StatusLine(stream)
    line.round(SimpleNamespace(**{**vars(PLAN), "ranks": range(2, 3)}), None)
    for step in range(125):
        line.progress(beat(step))
        clock.s += 1
    lines = stream.getvalue().splitlines()
    assert 2 <= len(lines) <= 3
    assert all(text.startswith("rank 2 of 4: train, epoch 3") for text in lines)


def test_the_master_shows_no_progress_beside_rank_0(clock):
    stream = Terminal()
    line = StatusLine(stream, shows_progress=False)
    line.round(PLAN, None)
    line.progress(beat(1))
    assert stream.getvalue() == ""


def test_a_round_that_is_over_shows_nothing_until_there_is_a_roster(clock):
    stream = Terminal()
    line = StatusLine(stream)
    line.round(PLAN, None)
    line.waiting()
    line.progress(beat(1))
    assert stream.getvalue() == ""
    line.roster("waiting", 1)
    assert stream.shown() == "waiting"


def test_a_closed_terminal_and_many_threads_are_no_trouble():
    stream = Terminal()
    line = StatusLine(stream)
    threads = [threading.Thread(target=lambda: [line.over("x" * 50) for _ in range(100)]) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert set(stream.getvalue().splitlines()) == {"x" * 50}
    stream.close()
    line.over("nobody reads this")

"""Following a run: lines as they come, and where it is; tests/processes follows real ones."""

from __future__ import annotations

import pytest

from trainer.protocol import Heartbeat
from yolo_launch.jobs import follow
from yolo_launch.jobs.overview import RunOverview

RUNNING = RunOverview("exp", "running", 2, 60, 0.41, "here", 0.0)


def beat(phase, step=41, at=0.0):
    return Heartbeat(0, phase, 2, step, at)


def test_the_last_lines_come_first_and_then_what_is_added(tmp_path):
    log = tmp_path / "log"
    tail = follow.LogTail(log, 2)
    assert tail.new_lines() == []
    log.write_text("a\nb\nc\nhal")
    assert tail.new_lines() == ["b", "c"]
    with log.open("a") as file:
        file.write("f\n" + "".join(f"{number}\n" for number in range(5)))
    assert tail.new_lines() == ["half", "0", "1", "2", "3", "4"]
    assert tail.new_lines() == []


def test_a_log_that_begins_anew_is_read_from_its_beginning(tmp_path):
    log = tmp_path / "log"
    log.write_text("one\ntwo\n")
    tail = follow.LogTail(log, 9)
    tail.new_lines()
    log.write_text("new\n")
    assert tail.new_lines() == ["new"]


def test_of_a_line_that_was_drawn_anew_the_last_state_is_shown(tmp_path):
    log = tmp_path / "log"
    log.write_bytes(b" 10%\r 50%\r100%\r\nplain\r\n\xff\n")
    assert follow.LogTail(log, 9).new_lines() == ["100%", "plain", "\ufffd"]


def test_a_huge_log_is_read_from_its_end(tmp_path):
    log = tmp_path / "log"
    log.write_bytes(b"x" * 99 + b"\n" + b"y" * (1 << 20) + b"\nlast\n")
    assert follow.LogTail(log, 1).new_lines() == ["last"]


def test_the_launchers_words_go_before_those_of_rank_0(tmp_path):
    (tmp_path / "logs").mkdir()
    assert follow.log_of(tmp_path).name == "rank0.log"
    (tmp_path / "logs" / "launcher.log").touch()
    assert follow.log_of(tmp_path).name == "launcher.log"


@pytest.mark.parametrize(
    ("heartbeat", "speed", "text"),
    [
        (None, 0.0, "starting"),
        (beat("scan"), 0.0, "scan, best mAP50-95 0.410"),
        (beat("train"), 35.24, "epoch 3/60, step 41: train, 35.2 images/s, best mAP50-95 0.410"),
        (beat("done"), 0.0, "done, best mAP50-95 0.410"),
    ],
)
def test_where_a_run_is_stands_in_one_line(heartbeat, speed, text):
    assert follow.progress_text(RUNNING, heartbeat, speed) == text


def test_speed_is_that_of_the_last_seconds(tmp_path):
    (tmp_path / "plan.json").write_text('{"global_batch_size": 16}')
    speed = follow.Speed(tmp_path)
    assert speed.add(None) == 0.0
    assert speed.add(beat("train", 10, 100.0)) == 0.0
    assert speed.add(beat("train", 20, 110.0)) == 16.0
    assert speed.add(beat("train", 20, 115.0)) == pytest.approx(16.0)
    assert speed.add(beat("train", 60, 130.0)) == pytest.approx(40 * 16 / 20)

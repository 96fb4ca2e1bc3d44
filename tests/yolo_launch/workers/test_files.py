"""Checks the files of a job's workers from attempt to attempt."""

from __future__ import annotations

from yolo_launch.workers.files import WorkerFiles


def test_logs_grow_and_what_the_last_attempt_said_of_itself_goes(tmp_path):
    files = WorkerFiles(tmp_path)
    files.begin_attempt(0, range(2))
    files.log(1).open("a").write("ValueError: box 7\n")
    for path in (files.error(1), files.heartbeat(0), files.stacks(1)):
        path.touch()
    files.begin_attempt(1, range(2))
    assert not any(path.exists() for path in (files.error(1), files.heartbeat(0), files.stacks(1)))
    text = files.log(1).read_text()
    assert (text.count("=== attempt"), text.count("ValueError: box 7")) == (2, 1)
    assert files.log(0).read_text().count("=== attempt") == 2


def test_the_tail_of_a_log_is_of_this_attempt(tmp_path):
    files = WorkerFiles(tmp_path)
    assert files.log_tail(1) == ""
    files.begin_attempt(0, range(2))
    files.log(1).open("a").write("old\n")
    files.begin_attempt(1, range(2))
    files.log(1).open("a").write("".join(f"line {number}  \n\n" for number in range(20)))
    assert files.log_tail(1, lines=2) == "line 18\nline 19"

"""Checks which of several failures came first, from files and exit codes as workers leave them."""

from __future__ import annotations

import json
import os
import signal

import pytest

from trainer.protocol import Heartbeat
from yolo_launch.diagnosis.failures import WorkerEnd, first_of, rank_failures, worker_ends
from yolo_launch.workers.files import WorkerFiles
from yolo_launch.workers.processes import Worker

LOST_PEER = "RuntimeError: [gloo/transport/tcp/pair.cc:547] Connection closed by peer [127.0.0.1]:39485"


@pytest.fixture
def files(tmp_path) -> WorkerFiles:
    found = WorkerFiles(tmp_path)
    found.begin_attempt(0, range(4))
    return found


def leave_error(files, rank, message, written_at):
    content = {"message": {"message": message, "extraInfo": {"py_callstack": "Traceback ...", "timestamp": "100"}}}
    files.error(rank).write_text(json.dumps({**content, "epoch": 2, "step": 7}))
    os.utime(files.error(rank), (written_at, written_at))


def test_times_are_finer_than_seconds(files):
    leave_error(files, 0, "ValueError: later", 100.30)
    leave_error(files, 1, "ValueError: earlier", 100.29)
    found = first_of(rank_failures([WorkerEnd(0, 1, 101.0), WorkerEnd(1, 1, 101.0)], files, {}))
    assert (found.rank, found.message, found.epoch, found.step) == (1, "ValueError: earlier", 2, 7)


def test_a_lost_peer_is_a_consequence_even_when_it_was_written_first(files):
    leave_error(files, 0, LOST_PEER, 100.0)
    ends = [WorkerEnd(0, 1, 100.1), WorkerEnd(1, -9, 100.2), WorkerEnd(2, -9, 103.0, by_us=True)]
    found = first_of(rank_failures(ends, files, {1: Heartbeat(1, "train", 3, 41, 99.0)}))
    assert (found.rank, found.exit_code, found.message) == (1, -9, "killed by SIGKILL")
    assert (found.epoch, found.step, found.phase) == (3, 41, "train")


def test_with_lost_peers_alone_the_first_is_named(files):
    leave_error(files, 0, LOST_PEER, 100.2)
    leave_error(files, 1, LOST_PEER, 100.1)
    assert first_of(rank_failures([WorkerEnd(0, 1, 0.0), WorkerEnd(1, 1, 0.0)], files, {})).rank == 1


def test_what_the_agent_ended_is_no_cause(files):
    leave_error(files, 2, "OSError: disk", 100.5)
    ends = [WorkerEnd(0, -signal.SIGTERM, 100.1), WorkerEnd(1, -signal.SIGABRT, 100.2), WorkerEnd(2, 1, 101.0)]
    assert first_of(rank_failures(ends, files, {})).rank == 2


def test_a_worker_killed_after_it_wrote_its_error_is_still_the_cause(files):
    leave_error(files, 1, "OSError: disk", 100.0)
    ends = [WorkerEnd(0, -9, 103.0, by_us=True), WorkerEnd(1, -9, 103.0, by_us=True)]
    found = first_of(rank_failures(ends, files, {}))
    assert (found.message, found.exit_code) == ("OSError: disk", 1)


def test_a_silent_crash_shows_the_end_of_this_attempts_log(files):
    with files.log(1).open("a") as log:
        log.write("old line\n=== attempt 1, now ===\nFatal Python error: Segmentation fault\n")
    found = first_of(rank_failures([WorkerEnd(0, 0, 0.0), WorkerEnd(1, -11, 5.0)], files, {}))
    assert "segmentation fault" in found.message
    assert found.traceback == "Fatal Python error: Segmentation fault"


@pytest.mark.parametrize("text", ["", '{"message": {"mess', "[1]", '{"message": 5}', '{"message": {}}'])
def test_a_damaged_error_file_is_no_reason_to_fail(files, text):
    files.error(0).write_text(text)
    assert first_of(rank_failures([WorkerEnd(0, 1, 5.0)], files, {})).exit_code == 1


def test_plain_strings_are_read_too(files):
    files.error(0).write_text(json.dumps({"message": "RuntimeError: from C++"}))
    assert first_of(rank_failures([WorkerEnd(0, 1, 5.0)], files, {})).message == "RuntimeError: from C++"


def test_a_failure_that_was_only_passed_on_is_not_the_first(files):
    for rank, relayed, at in ((0, True, 100.0), (1, False, 100.2)):
        content = {"message": "DataError: no images", "user_error": {"what": "no images"}, "relayed": relayed}
        files.error(rank).write_text(json.dumps(content))
        os.utime(files.error(rank), (at, at))
    assert first_of(rank_failures([WorkerEnd(0, 2, 100.1), WorkerEnd(1, 2, 100.3)], files, {})).rank == 1


def test_saving_and_success_are_no_failures(files):
    assert first_of(rank_failures([WorkerEnd(0, 75, 1.0), WorkerEnd(1, 0, 1.0)], files, {})) is None


def test_exit_codes_come_from_the_watcher_then_from_the_agent():
    seen = Worker(0, 10, exit_code=-9, ended_at=5.0, killed_by_us=True)
    unseen = Worker(1, 11, reaped_unseen=True)
    ends = worker_ends({0: seen, 1: unseen}, {0: 1, 1: 3}, range(3))
    assert [(end.exit_code, end.by_us) for end in ends] == [(-9, True), (3, False), (0, False)]


def test_a_new_attempt_keeps_logs_and_drops_old_errors(files):
    leave_error(files, 1, "ValueError", 1.0)
    files.log(1).write_text("what attempt 0 said\n")
    files.begin_attempt(1, range(2))
    assert not files.error(1).exists()
    assert files.log(1).read_text().startswith("what attempt 0 said\n=== attempt 1")

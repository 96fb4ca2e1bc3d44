"""Records that one side writes and the other reads, the one write-then-rename, and the loaders' share of a machine."""

from __future__ import annotations

import itertools
import json
import os
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import get_args

import pytest

from trainer.protocol import (
    STEP_PHASES,
    FailureRecord,
    Heartbeat,
    LogFiles,
    Phase,
    RunFiles,
    default_loader_workers,
    output_is_data,
    rank_in,
    read_failure,
    read_heartbeat,
    replace_text,
    replacing,
    write_failure,
    write_heartbeat,
)


@pytest.fixture
def files(tmp_path) -> LogFiles:
    return LogFiles(tmp_path)


def test_it_loads_the_standard_library_alone():
    code = (
        "import sys; import trainer.protocol\n"
        "names = {name.partition('.')[0] for name in sys.modules} - {'trainer'}\n"
        "print(sorted(name for name in names - sys.stdlib_module_names if not name.startswith('_')))"
    )
    command = [sys.executable, "-S", "-c", code]
    shown = subprocess.run(command, check=True, capture_output=True, text=True, cwd=Path(__file__).parents[2])
    assert shown.stdout.strip() == "[]"


def test_a_heartbeat_reads_back(files):
    written = Heartbeat(3, "train", 2, 117, 1e9 + 0.25, 4711)
    write_heartbeat(files.heartbeat(3), written)
    assert read_heartbeat(files, 3) == written
    assert files.heartbeat(3).name == "rank3.heartbeat.json"


@pytest.mark.parametrize("text", [None, "", "{", "[]", '{"epoch": "x"}', "7"])
def test_what_is_no_heartbeat_is_none(files, text):
    if text is not None:
        files.heartbeat(0).write_text(text)
    assert read_heartbeat(files, 0) is None


def test_the_phases_of_steps_are_phases():
    assert set(get_args(Phase)) > STEP_PHASES
    assert not Heartbeat(0, "scan", 1, 1, 0.0).finished_a_step
    assert not Heartbeat(0, "train", 0, 0, 0.0).finished_a_step
    assert Heartbeat(0, "train", 0, 1, 0.0).finished_a_step


def test_a_failure_reads_back_with_the_files_time(files):
    record = FailureRecord(
        rank=1,
        message="ConfigError: no\nSeen: 3",
        traceback="Traceback ...",
        user_error={"kind": "ConfigError", "what": "no"},
        relayed=True,
        phase="train",
        epoch=4,
        step=17,
    )
    write_failure(files.error(1), record)
    os.utime(files.error(1), (1.5, 1.5))
    read = read_failure(files, 1)
    assert read is not None
    assert read.written_at == 1.5
    assert read == FailureRecord(**{**record.__dict__, "written_at": 1.5})


def test_a_failure_is_in_the_format_of_torchs_agent(files):
    write_failure(files.error(0), FailureRecord(0, "boom", "Traceback ..."))
    message = json.loads(files.error(0).read_text())["message"]
    assert message["message"] == "boom"
    assert message["extraInfo"]["py_callstack"] == "Traceback ..."
    assert abs(int(message["extraInfo"]["timestamp"]) - time.time()) < 60


def test_a_failure_that_torchs_record_wrote_is_read(files):
    torchs = {"message": {"message": "ValueError: x", "extraInfo": {"py_callstack": "Traceback", "timestamp": "1"}}}
    files.error(2).write_text(json.dumps(torchs))
    read = read_failure(files, 2)
    assert (read.rank, read.message, read.traceback, read.user_error, read.relayed) == (
        *(2, "ValueError: x", "Traceback"),
        *(None, False),
    )
    files.error(2).write_text('{"message": "killed", "epoch": true}')
    assert (read_failure(files, 2).message, read_failure(files, 2).epoch) == ("killed", None)


@pytest.mark.parametrize("text", [None, "", '{"message": {"mess', "[1]", "{}"])
def test_half_a_failure_is_none(files, text):
    if text is not None:
        files.error(0).write_text(text)
    assert read_failure(files, 0) is None


def test_a_reader_sees_whole_texts_only(tmp_path):
    path, stop, seen = tmp_path / "state", threading.Event(), set()
    texts = ["a" * 100_000, "b" * 50_000]
    replace_text(path, texts[0])

    def read() -> None:
        while not stop.is_set():
            seen.add(path.read_text())

    reader = threading.Thread(target=read)
    reader.start()
    for text in itertools.islice(itertools.cycle(texts), 200):
        replace_text(path, text)
    stop.set()
    reader.join()
    assert seen <= set(texts)
    assert list(tmp_path.iterdir()) == [path]


def test_a_write_that_fails_leaves_the_old_file_and_nothing_beside_it(tmp_path):
    path = tmp_path / "state"
    replace_text(path, "old")

    def write_half() -> None:
        with replacing(path) as temporary:
            temporary.write_text("half")
            assert temporary.parent == path.parent
            assert temporary.name.startswith(".state.")
            raise OSError("full")

    with pytest.raises(OSError, match="full"):
        write_half()
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_two_writers_never_share_a_name(tmp_path):
    with replacing(tmp_path / "a") as one, replacing(tmp_path / "a") as two:
        assert one != two
        one.write_text("1")
        two.write_text("2")
    assert (tmp_path / "a").read_text() == "1"


def test_a_rename_onto_the_same_file_leaves_nothing_beside_it(tmp_path):
    path = tmp_path / "previous"
    path.write_text("x")
    with replacing(path) as temporary:
        os.link(path, temporary)
    assert list(tmp_path.iterdir()) == [path]


def test_a_synced_text_is_on_the_disk_before_it_has_its_name(tmp_path, monkeypatch):
    calls = []
    monkeypatch.setattr("os.fsync", lambda descriptor: calls.append("fsync"))
    rename = os.replace
    monkeypatch.setattr("os.replace", lambda *paths: (calls.append("replace"), rename(*paths)))
    replace_text(tmp_path / "config", "x", sync=True)
    assert calls == ["fsync", "replace"]


@pytest.mark.parametrize(
    ("environ", "rank"), [({}, 0), ({"RANK": "3"}, 3), ({"RANK": ""}, 0), ({"RANK": "x"}, 0), ({"RANK": "-1"}, 0)]
)
def test_the_rank_of_a_process(environ, rank):
    assert rank_in(environ) == rank


def test_stdout_is_data_when_the_launcher_says_so():
    assert output_is_data({"YOLO_TRAINER_OUTPUT": "stderr"})
    assert not output_is_data({"YOLO_TRAINER_OUTPUT": "stdout"})
    assert not output_is_data({})


def test_the_files_of_a_run(tmp_path):
    run = RunFiles(tmp_path / "exp")
    run.make_folders()
    run.make_folders()
    assert sorted(path.name for path in run.run_dir.iterdir()) == ["logs", "weights"]
    assert run.best_weights == tmp_path / "exp" / "weights" / "best.pt"
    assert run.logs.log(0) == tmp_path / "exp" / "logs" / "rank0.log"


@pytest.mark.parametrize(
    ("cores", "ranks", "on_cpu", "workers"),
    [(2, 1, True, 0), (8, 1, True, 2), (64, 1, True, 16), (8, 4, False, 1), (64, 4, False, 15), (2, 4, False, 1)],
)
def test_loader_processes_are_a_share_of_the_cores(cores, ranks, on_cpu, workers):
    assert default_loader_workers(cores, ranks, on_cpu=on_cpu) == workers

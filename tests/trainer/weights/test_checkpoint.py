"""Checkpoints that are whole or refused by name, whatever happens to the file."""

from __future__ import annotations

import io
import os
import shutil
import time
from pathlib import Path

import pytest
import torch

from trainer.errors import WeightsError
from trainer.protocol import BEST_WEIGHTS, LAST_WEIGHTS, PREVIOUS_WEIGHTS
from trainer.weights.checkpoint import (
    CheckpointWriter,
    checksum,
    copied,
    newest_good,
    read_checkpoint,
    remove_leftovers,
    set_aside,
    write_checkpoint,
)


def content(step):
    generator = torch.Generator().manual_seed(step)
    return {
        "model": {"weight": torch.rand(64, 64, generator=generator), "count": torch.tensor(step)},
        "progress": {"micro_step": step, "history": [{"epoch": 0, "loss": 0.5}], "class_map": []},
        "half": torch.ones(3, dtype=torch.bfloat16),
    }


def test_what_is_written_reads_back_exactly(tmp_path):
    path = tmp_path / "a.pt"
    write_checkpoint(path, content(3))
    read = read_checkpoint(path)
    assert torch.equal(read["model"]["weight"], content(3)["model"]["weight"])
    assert read["progress"] == content(3)["progress"]
    assert list(tmp_path.iterdir()) == [path], "nothing temporary is left"


def test_every_flipped_bit_in_tensor_header_or_checksum_is_found(tmp_path):
    path = tmp_path / "a.pt"
    write_checkpoint(path, content(1))
    whole = path.read_bytes()
    tensor_at = whole.index(content(1)["model"]["weight"].numpy().tobytes()[:64]) + 40
    stated = torch.load(path, weights_only=True)["checksum"].encode()
    directory_at = whole.rindex(b"PK\x01\x02") + 46
    for offset in (0, tensor_at, whole.index(stated) + 5, directory_at):
        damaged = bytearray(whole)
        damaged[offset] ^= 1
        path.write_bytes(damaged)
        with pytest.raises(WeightsError, match=r"a\.pt"):
            read_checkpoint(path)


@pytest.mark.parametrize(
    ("name", "data"),
    [("empty", b""), ("text", b"<!DOCTYPE html>"), ("cut", None), ("foreign", "foreign"), ("newer", 99)],
)
def test_files_that_are_no_checkpoints_are_refused_by_name(tmp_path, name, data):
    path = tmp_path / "b.pt"
    write_checkpoint(path, content(1))
    if data is None:
        path.write_bytes(path.read_bytes()[:-500])
    elif data == "foreign":
        torch.save({"weight": torch.ones(1)}, path)
    elif data == 99:
        torch.save({**torch.load(path, weights_only=True), "version": 99}, path)
    else:
        path.write_bytes(data)
    with pytest.raises(WeightsError, match=r"b\.pt"):
        read_checkpoint(path)


def test_the_one_before_is_used_when_the_last_is_damaged(tmp_path):
    writer = CheckpointWriter(tmp_path)
    for step in (1, 2):
        writer.submit(LAST_WEIGHTS, content(step), keep_previous=True)
    writer.close()
    assert newest_good(tmp_path)[0]["progress"]["micro_step"] == 2
    (tmp_path / LAST_WEIGHTS).write_bytes(b"broken")
    found, passed_over = newest_good(tmp_path)
    assert found["progress"]["micro_step"] == 1
    assert len(passed_over) == 1
    assert LAST_WEIGHTS in passed_over[0]
    (tmp_path / PREVIOUS_WEIGHTS).write_bytes(b"broken")
    found, passed_over = newest_good(tmp_path)
    assert found is None
    assert [("step 0" in line, LAST_WEIGHTS in line or PREVIOUS_WEIGHTS in line) for line in passed_over] == [
        (True, True)
    ] * 2


@pytest.fixture
def full_disk(monkeypatch):
    """A disk without room, until the returned function is called."""

    def refuse(*arguments, **options):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", refuse)
    return monkeypatch.undo


def step_of(path):
    return read_checkpoint(path)["progress"]["micro_step"]


def test_a_failed_write_keeps_the_old_file_and_training_goes_on(tmp_path, full_disk, caplog):
    writer = CheckpointWriter(tmp_path)
    writer.submit(LAST_WEIGHTS, content(2), keep_previous=True)
    writer.flush()
    assert writer.failures == 1
    assert "No space left" in caplog.text
    assert list(tmp_path.iterdir()) == [], "half a file helps nobody"
    full_disk()
    writer.submit(LAST_WEIGHTS, content(3), keep_previous=True)
    writer.close()
    assert step_of(tmp_path / LAST_WEIGHTS) == 3
    assert [path.name for path in tmp_path.iterdir()] == [LAST_WEIGHTS]


def test_a_failed_write_is_tried_again_without_being_asked(tmp_path, full_disk, caplog):
    writer = CheckpointWriter(tmp_path, retry_s=0.05)
    for name in (BEST_WEIGHTS, LAST_WEIGHTS, "epoch1.pt"):
        writer.submit(name, content(4))
    writer.flush()
    time.sleep(0.2)
    assert writer.failures > 3
    assert caplog.text.count("could not write") == 3, "one warning each, whatever the number of attempts"
    full_disk()
    deadline = time.monotonic() + 10
    while not (tmp_path / LAST_WEIGHTS).exists() and time.monotonic() < deadline:
        time.sleep(0.01)
    writer.close()
    assert (step_of(tmp_path / BEST_WEIGHTS), step_of(tmp_path / LAST_WEIGHTS)) == (4, 4)
    assert "could be written now" in caplog.text


def test_a_disk_that_fills_up_in_the_middle_of_a_file_is_called_full(tmp_path, monkeypatch):
    class FullHalfWay(io.FileIO):
        def write(self, data):
            if self.tell() > 8000:
                raise OSError(28, "No space left on device")
            return super().write(data)

    monkeypatch.setattr(Path, "open", lambda self, mode="rb": FullHalfWay(self, mode))
    with pytest.raises(OSError, match="No space left on device"):
        write_checkpoint(tmp_path / LAST_WEIGHTS, content(1))
    assert list(tmp_path.iterdir()) == []


def test_the_end_of_a_run_tries_once_more(tmp_path, full_disk):
    writer = CheckpointWriter(tmp_path)
    writer.submit(BEST_WEIGHTS, content(4))
    writer.flush()
    full_disk()
    writer.close()
    assert step_of(tmp_path / BEST_WEIGHTS) == 4


def test_a_newer_checkpoint_takes_the_place_of_one_that_could_not_be_written(tmp_path, full_disk):
    writer = CheckpointWriter(tmp_path, retry_s=0.05)
    writer.submit(LAST_WEIGHTS, content(1))
    writer.flush()
    full_disk()
    writer.submit(LAST_WEIGHTS, content(2))
    time.sleep(0.2)
    writer.close()
    assert step_of(tmp_path / LAST_WEIGHTS) == 2


@pytest.fixture
def no_hard_links(monkeypatch):
    """A file system without hard links."""

    def refuse(*arguments, **options):
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr(os, "link", refuse)


def test_the_one_before_is_kept_where_there_are_no_hard_links(tmp_path, no_hard_links):
    writer = CheckpointWriter(tmp_path)
    for step in (1, 2, 3):
        writer.submit(LAST_WEIGHTS, content(step), keep_previous=True)
    writer.close()
    assert writer.unwritten == []
    assert (step_of(tmp_path / LAST_WEIGHTS), step_of(tmp_path / PREVIOUS_WEIGHTS)) == (3, 2)
    assert sorted(path.name for path in tmp_path.iterdir()) == [PREVIOUS_WEIGHTS, LAST_WEIGHTS]


def test_a_copy_without_room_leaves_both_files_as_they_were(tmp_path, no_hard_links, monkeypatch):
    for step in (1, 2):
        write_checkpoint(tmp_path / LAST_WEIGHTS, content(step), keep_previous=tmp_path / PREVIOUS_WEIGHTS)

    def fill_up(source, target):
        Path(target).write_bytes(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(shutil, "copyfile", fill_up)
    with pytest.raises(OSError, match="No space left"):
        write_checkpoint(tmp_path / LAST_WEIGHTS, content(3), keep_previous=tmp_path / PREVIOUS_WEIGHTS)
    assert (step_of(tmp_path / LAST_WEIGHTS), step_of(tmp_path / PREVIOUS_WEIGHTS)) == (2, 1)
    assert sorted(path.name for path in tmp_path.iterdir()) == [PREVIOUS_WEIGHTS, LAST_WEIGHTS]


def test_a_slow_disk_keeps_no_step_waiting(tmp_path, monkeypatch):
    sync = os.fsync
    monkeypatch.setattr(os, "fsync", lambda descriptor: time.sleep(0.4) or sync(descriptor))
    writer, started_at = CheckpointWriter(tmp_path), time.monotonic()
    for name in (BEST_WEIGHTS, LAST_WEIGHTS):  # an epoch's end: one is being written, the other is queued
        writer.submit(name, content(1))
    waited_s = time.monotonic() - started_at
    writer.close()
    assert waited_s < 0.3 < time.monotonic() - started_at
    assert step_of(tmp_path / LAST_WEIGHTS) == 1


def test_a_refused_file_does_not_replace_the_good_one_before_it(tmp_path):
    write_checkpoint(tmp_path / PREVIOUS_WEIGHTS, content(1))
    (tmp_path / LAST_WEIGHTS).write_bytes(b"broken")
    set_aside(tmp_path)
    write_checkpoint(tmp_path / LAST_WEIGHTS, content(2), keep_previous=tmp_path / PREVIOUS_WEIGHTS)
    assert (step_of(tmp_path / PREVIOUS_WEIGHTS), step_of(tmp_path / LAST_WEIGHTS)) == (1, 2)


def test_what_killed_writers_left_is_removed(tmp_path):
    for name in (".last.pt.123.tmp", ".best.pt.7.tmp", LAST_WEIGHTS, BEST_WEIGHTS):
        (tmp_path / name).write_bytes(b"")
    remove_leftovers(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == [BEST_WEIGHTS, LAST_WEIGHTS]


def test_a_copy_does_not_change_with_the_original():
    original = content(1)
    frozen = copied(original)
    before = checksum(frozen)
    original["model"]["weight"].zero_()
    original["progress"]["history"].append({})
    assert checksum(frozen) == before
    assert checksum(original) != before


@pytest.mark.timeout(30)
def test_a_writer_that_lacks_memory_keeps_nobody_waiting(tmp_path, monkeypatch):
    def fail(*arguments):
        raise MemoryError

    monkeypatch.setattr("trainer.weights.checkpoint.write_checkpoint", fail)
    writer = CheckpointWriter(tmp_path)
    for _ in range(4):
        writer.submit(LAST_WEIGHTS, {"value": 1})
    writer.close()
    assert writer.unwritten == [LAST_WEIGHTS]
    assert writer.last_error == "MemoryError"

"""Checkpoints that are whole or refused by name, whatever happens to the file."""

from __future__ import annotations

import os

import pytest
import torch

from trainer.checkpoint import (
    LAST,
    PREVIOUS,
    CheckpointWriter,
    checksum,
    copied,
    newest_good,
    read_checkpoint,
    write_checkpoint,
)
from trainer.errors import WeightsError


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
        writer.submit(LAST, content(step), keep_previous=True)
    writer.close()
    assert newest_good(tmp_path)[0]["progress"]["micro_step"] == 2
    (tmp_path / LAST).write_bytes(b"broken")
    found, passed_over = newest_good(tmp_path)
    assert found["progress"]["micro_step"] == 1
    assert len(passed_over) == 1
    assert LAST in passed_over[0]
    (tmp_path / PREVIOUS).write_bytes(b"broken")
    assert newest_good(tmp_path)[0] is None


def test_a_failed_write_keeps_the_old_file_and_training_goes_on(tmp_path, monkeypatch, caplog):
    writer = CheckpointWriter(tmp_path)
    writer.submit(LAST, content(1), keep_previous=True)
    writer.flush()

    def full_disk(*arguments, **options):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full_disk)
    writer.submit(LAST, content(2), keep_previous=True)
    writer.flush()
    monkeypatch.undo()
    assert writer.failures == 1
    assert "No space left" in caplog.text
    assert newest_good(tmp_path)[0]["progress"]["micro_step"] == 1
    writer.submit(LAST, content(3), keep_previous=True)
    writer.close()
    assert newest_good(tmp_path)[0]["progress"]["micro_step"] == 3
    assert sorted(path.name for path in tmp_path.iterdir()) == [PREVIOUS, LAST]


def test_a_copy_does_not_change_with_the_original():
    original = content(1)
    frozen = copied(original)
    before = checksum(frozen)
    original["model"]["weight"].zero_()
    original["progress"]["history"].append({})
    assert checksum(frozen) == before
    assert checksum(original) != before

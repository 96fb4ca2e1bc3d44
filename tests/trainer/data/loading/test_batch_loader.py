"""The loader's processes: they die loudly, pass errors on, stay within their buffers, and reuse none early."""

from __future__ import annotations

import gc
import multiprocessing
import os
import shutil
import signal
import time
from pathlib import Path

import numpy as np
import pytest

from trainer.data.augment.basic import AugmentationSettings
from trainer.data.images import ImageFiles, LoadedImage
from trainer.data.loader import TrainingData, ValidationData, make_training_loader, make_validation_loader
from trainer.data.loading.batch_loader import LoaderProcessError
from trainer.data.sampler import EpochBatches, ValidationBatches

SIZE, BATCH = 64, 4


class Watched:
    """Files, with a number of loads that all processes add to, and an image that fails or waits."""

    def __init__(self, images) -> None:
        self.files = ImageFiles(images.paths, images.shapes_hw, SIZE, training=True)
        self.loads = multiprocessing.get_context("fork").Value("i", 0)
        self.fails_at = self.stops_at = -1

    def load(self, index: int) -> LoadedImage:
        with self.loads.get_lock():
            self.loads.value += 1
        if index == self.fails_at:
            raise MemoryError("no room for pixels")
        if index == self.stops_at:
            time.sleep(600)
        return self.files.load(index)


@pytest.fixture
def source(bccd):
    return Watched(bccd)


def loader_of(bccd, source, **options):
    data = TrainingData(bccd, image_size=SIZE, settings=AugmentationSettings(), seed=1, source=source)
    return make_training_loader(data, EpochBatches(1, len(bccd), BATCH, 0, 1), **{"num_workers": 2, **options})


def is_gone(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except OSError:
        return True


def test_an_image_that_cannot_be_made_is_named_with_what_was_raised(bccd, source, caplog):
    loader = loader_of(bccd, source)
    bad = int(loader.sampler.order(0)[9])
    source.fails_at = bad
    batches = loader.epoch(0, 0)
    assert len(next(batches)) == 4
    time.sleep(0.5)  # the process has met the bad image by now: it is raised with its batch all the same
    assert len(next(batches)) == 4
    with pytest.raises(LoaderProcessError, match=r"loader process 1 .*MemoryError: no room for pixels") as caught:
        next(batches)
    assert str(bccd.paths[bad]) in str(caught.value)
    assert "self.files.load" not in str(caught.value)
    assert 'raise MemoryError("no room for pixels")' in caplog.text
    assert len(next(loader.epoch(0, 3))) == 4  # the processes go on


def test_a_process_that_dies_is_named_at_once(bccd, source):
    loader = loader_of(bccd, source)
    batches = loader.epoch(0, 0)
    next(batches)
    victim = batches._workers[1]
    os.kill(victim.pid, signal.SIGKILL)
    since = time.monotonic()
    with pytest.raises(LoaderProcessError, match=rf"loader1 \(pid {victim.pid}\) is killed by signal: Killed"):
        for _ in batches:
            pass
    assert time.monotonic() - since < 10


def test_processes_work_as_far_ahead_as_there_are_buffers(bccd, source):
    loader = loader_of(bccd, source, prefetch=2)
    batches = loader.epoch(0, 0)
    for taken in range(1, 4):
        next(batches)
        deadline = time.monotonic() + 10
        while source.loads.value < BATCH * (taken + 2) and time.monotonic() < deadline:
            time.sleep(0.01)
        time.sleep(0.1)
        assert source.loads.value == BATCH * (taken + 2)


def test_a_batch_keeps_its_pixels_until_the_next_is_asked_for(bccd, source):
    slow, fast = loader_of(bccd, source, prefetch=1), loader_of(bccd, source, num_workers=0)
    for batch, expected in zip(slow.epoch(3, 0), fast.epoch(3, 0), strict=True):
        time.sleep(0.02)  # the processes fill every buffer that they may
        np.testing.assert_array_equal(batch.images_bchw, expected.images_bchw)
        np.testing.assert_array_equal(batch.targets, expected.targets)
        assert batch.indices.tolist() == expected.indices.tolist()


def test_an_epoch_begun_early_is_the_one_that_is_taken(bccd, source):
    loader = loader_of(bccd, source)
    for _ in loader.epoch(0, 0):
        pass
    made = source.loads.value
    loader.begin(1, 0)
    deadline = time.monotonic() + 10
    while source.loads.value == made and time.monotonic() < deadline:
        time.sleep(0.01)
    assert source.loads.value > made
    early = [batch.indices.tolist() for batch in loader.epoch(1, 0)]
    assert early == [batch.indices.tolist() for batch in loader_of(bccd, source, num_workers=0).epoch(1, 0)]
    assert source.loads.value == made + 2 * len(bccd)
    loader.begin(2, 0)
    assert next(loader.epoch(5, 1)).positions.tolist() == [4, 5, 6, 7]


def test_another_epoch_ends_the_one_before_it(bccd, source):
    loader = loader_of(bccd, source)
    old = loader.epoch(0, 0)
    next(old)
    new = loader.epoch(1, 2)
    with pytest.raises(RuntimeError, match="another epoch was begun"):
        next(old)
    assert next(new).positions.tolist() == [8, 9, 10, 11]


def test_a_stuck_process_ends_with_its_loader(bccd, source):
    loader = loader_of(bccd, source)
    source.stops_at = int(loader.sampler.order(0)[5])
    batches = loader.epoch(0, 0)
    next(batches)
    pids = [process.pid for process in batches._workers]
    del batches, loader
    gc.collect()
    deadline = time.monotonic() + 10
    while not all(map(is_gone, pids)):
        assert time.monotonic() < deadline, "loader processes are left"
        time.sleep(0.02)


@pytest.mark.parametrize(("num_workers", "processes"), [(1, 1), (3, 2), (4, 4), (15, 4)])
def test_no_process_waits_for_one_with_more_rows(bccd, source, num_workers, processes):
    batches = loader_of(bccd, source, num_workers=num_workers).epoch(0, 0)
    next(batches)
    assert len(batches._workers) == processes


def test_batches_take_nothing_of_shared_memory(bccd):
    before = shutil.disk_usage("/dev/shm").used
    data = TrainingData(bccd, image_size=640, settings=AugmentationSettings(), seed=0)
    learned = iter(make_training_loader(data, EpochBatches(0, len(bccd), 16, 0, 1), num_workers=2))
    batches = ValidationBatches(bccd.shapes_hw, 16, image_size=640)
    measured = iter(make_validation_loader(ValidationData(bccd, image_size=640), batches, num_workers=2))
    for loader in (learned, measured):
        assert next(loader).images_bchw.nbytes > 10 << 20
    assert shutil.disk_usage("/dev/shm").used - before < 1 << 20

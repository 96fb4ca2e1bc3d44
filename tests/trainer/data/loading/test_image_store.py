"""What is kept decoded: each image once, in a bounded room, the same pixels."""

from __future__ import annotations

import multiprocessing

import numpy as np
import pytest

from trainer.data.images import ImageFiles, LoadedImage
from trainer.data.loading.image_store import SharedStore, WindowStore, decoded_bytes, keep_decoded
from trainer.data.loading.partners import KEPT_SET_BYTES
from trainer.data.sampler import EpochBatches


class Counting:
    """Gives an image of its index's value, and counts."""

    def __init__(self, size: int = 4) -> None:
        self.loaded: list[int] = []
        self.size = size

    def load(self, index: int) -> LoadedImage:
        self.loaded.append(index)
        return LoadedImage(np.full((self.size, self.size, 3), index % 251, np.uint8), (8, 8), index % 7 != 0)


@pytest.mark.parametrize("start_step", [0, 9])
def test_a_window_decodes_an_epochs_images_once_and_keeps_only_what_may_be_shown(start_step):
    source = Counting()
    store = WindowStore(source, window=6)
    sampler = EpochBatches(1, 300, 10, 0, 1, window=6)
    for epoch in (0, 1):
        source.loaded.clear()
        for step, keys in enumerate(sampler.batches(epoch, start_step, None), start=start_step):
            store.begin_step(epoch, step)
            for key in keys:
                for index in (key.index, *key.partners):
                    assert (store.load(index).pixels == index % 251).all()
            assert len(store._kept) <= 10 * (2 * 6 - 1)
        assert len(source.loaded) == len(set(source.loaded)) <= 300
        assert start_step or len(source.loaded) == 300


def test_a_shared_store_decodes_once_for_all_processes():
    source = Counting()
    store = SharedStore(source, np.full((40, 2), 8), 4, max_bytes=1 << 20)
    context = multiprocessing.get_context("fork")

    def work(first: int) -> None:
        for index in range(first, 20):
            store.load(index)

    children = [context.Process(target=work, args=(first,)) for first in (0, 10)]
    for child in children:
        child.start()
    for child in children:
        child.join(20)
    assert [child.exitcode for child in children] == [0, 0]
    images = [store.load(index) for index in range(40)]
    assert source.loaded == list(range(20, 40))
    for index, image in enumerate(images):
        assert (image.pixels == index % 251).all()
        assert (image.original_hw, image.readable) == ((8, 8), index % 7 != 0)


def test_what_does_not_fit_is_decoded_each_time():
    source = Counting()
    store = SharedStore(source, np.full((5, 2), 8), 4, max_bytes=3 * 4 * 4 * 3 + 1)
    for _ in range(2):
        assert [int(store.load(index).pixels[0, 0, 0]) for index in range(5)] == list(range(5))
    assert source.loaded == [0, 1, 2, 3, 4, 3, 4]


def test_a_set_is_kept_whole_if_it_is_small(bccd):
    files = ImageFiles(bccd.paths, bccd.shapes_hw, 640, training=True)
    assert decoded_bytes(bccd.shapes_hw, 640) == sum(files.load(i).pixels.nbytes for i in range(len(bccd)))
    kept = keep_decoded(files, bccd.shapes_hw, 640, window=0, local_world_size=2)
    assert isinstance(kept, SharedStore)
    np.testing.assert_array_equal(kept.load(3).pixels, files.load(3).pixels)
    np.testing.assert_array_equal(kept.load(3).pixels, files.load(3).pixels)
    many = np.full((KEPT_SET_BYTES // (3 * 640 * 640) + 1, 2), 640)
    assert keep_decoded(files, many, 640, window=0, local_world_size=1) is files
    assert isinstance(keep_decoded(files, many, 640, window=4, local_world_size=1), WindowStore)


def test_a_full_machine_keeps_less(bccd, monkeypatch):
    one = decoded_bytes(bccd.shapes_hw[:1], 640)
    monkeypatch.setattr("trainer.data.loading.image_store.free_memory", lambda: 4 * 3 * one)
    source = Counting(640)
    kept = keep_decoded(source, np.full((5, 2), 640), 640, window=0, local_world_size=1)
    for index in (0, 4, 0, 4):
        kept.load(index)
    assert source.loaded == [0, 4, 4]

"""Loader processes and the /dev/shm that their batches take."""

from __future__ import annotations

import multiprocessing

import pytest
from torch.utils.data import DataLoader, Dataset

from trainer.data import loader as loaders
from trainer.protocol import batches_in_shared_memory
from yolo_launch.planning.loader_workers import choose_workers, shared_memory_need
from yolo_launch.spec import LaunchRequest

BATCH_BYTES = 16 * 3 * 640 * 640


def test_the_plan_counts_with_the_loaders_own_prefetch():
    # Two loaders work four batches ahead each; one batch more is in use and one is being handed over.
    assert shared_memory_need(2, 1, 16, 640) == 10 * BATCH_BYTES == 196_608_000
    assert shared_memory_need(2, 3, 16, 640) == 30 * BATCH_BYTES
    assert shared_memory_need(0, 3, 16, 640) == 0


def test_as_many_loaders_as_shared_memory_can_feed(make_host):
    room = shared_memory_need(3, 2, 16, 640)
    host = make_host(2, shm_total_bytes=64 << 30, shm_free_bytes=room, cpu_cores=16)
    request = LaunchRequest(global_batch_size=32)
    workers, findings = choose_workers(request, host, ranks=2, on_cpu=False, local_batch_size=16)
    assert workers == 3
    assert [finding.check for finding in findings] == ["shm"]
    host = make_host(2, shm_total_bytes=64 << 30, shm_free_bytes=room - 1, cpu_cores=16)
    assert choose_workers(request, host, ranks=2, on_cpu=False, local_batch_size=16)[0] == 2


class Counted(Dataset):
    """Counts the items that its loader processes have made."""

    def __init__(self, made) -> None:
        self.made = made

    def __len__(self) -> int:
        return 40

    def __getitem__(self, index: int) -> int:
        with self.made.get_lock():
            self.made.value += 1
        return index


@pytest.mark.parametrize("num_workers", [1, 2])
def test_a_real_loader_never_has_more_batches_out_than_the_plan_counts(num_workers):
    made = multiprocessing.get_context("fork").Value("i", 0)
    loader = DataLoader(
        Counted(made),
        batch_size=1,
        num_workers=num_workers,
        prefetch_factor=loaders.PREFETCHED_BATCHES,
        multiprocessing_context="fork",
    )
    most = 0
    for used, _ in enumerate(loader):
        # While the next batch is fetched, the one before is still referred to.
        most = max(most, made.value - used + 1)
    assert most <= batches_in_shared_memory(num_workers)

"""Batches on their way to the device: none is overwritten before it was copied, and steps wait for its arrival."""

from __future__ import annotations

import contextlib

import pytest
import torch

from trainer.data.collate import Batch
from trainer.data.device_copy import on_device
from trainer.loss import Matches


def batch_of(number: int) -> Batch:
    matches = Matches(torch.full((6, 3), number), torch.full((3, 6), float(number)), (2, 1, 0))
    images = torch.full((2, 3, 4, 4), number, dtype=torch.uint8)
    return Batch(images, torch.zeros(3, 6), torch.arange(2), torch.arange(2), matches=matches)


def test_a_cpu_gets_the_batches_themselves():
    batches = iter([batch_of(1)])
    assert on_device(batches, torch.device("cpu")) is batches


def test_a_batch_is_copied_before_the_next_is_asked_for_and_waited_for_by_the_steps(monkeypatch):
    said: list[str] = []

    class Stream:
        def __init__(self, device=None) -> None: ...
        def wait_event(self, event) -> None:
            said.append("steps wait")

    class Event:
        def record(self, stream) -> None:
            said.append("copy ends")

        def synchronize(self) -> None:
            said.append("host has waited")

    @contextlib.contextmanager
    def within(stream):
        said.append("copy begins")
        yield

    kept: list[torch.Tensor] = []
    monkeypatch.setattr(torch.cuda, "Stream", Stream)
    monkeypatch.setattr(torch.cuda, "Event", Event)
    monkeypatch.setattr(torch.cuda, "stream", within)
    monkeypatch.setattr(torch.cuda, "current_stream", Stream)
    monkeypatch.setattr(torch.Tensor, "record_stream", lambda tensor, stream: kept.append(tensor))
    monkeypatch.setattr(Batch, "to", lambda batch, device: batch)

    def loader():
        for number in range(2):
            said.append(f"asked for {number}")
            yield batch_of(number)

    for batch in on_device(loader(), torch.device("cuda")):
        said.append(f"step {int(batch.images_bchw[0, 0, 0, 0])}")
    one = ["copy begins", "copy ends", "steps wait"]
    assert said == ["asked for 0", *one, "step 0", "host has waited", "asked for 1", *one, "step 1", "host has waited"]
    assert [tuple(tensor.shape) for tensor in kept] == 2 * [(2, 3, 4, 4), (6, 3), (3, 6)]


@pytest.mark.gpu
def test_batches_arrive_whole_on_a_card_while_steps_are_running():
    room = torch.empty((2, 3, 512, 512), dtype=torch.uint8).pin_memory()

    def loader():
        for number in range(20):
            room.fill_(number)  # as a loader that reuses its only buffer
            yield Batch(room, torch.zeros(0, 6), torch.arange(2), torch.arange(2))

    sums = []
    for batch in on_device(loader(), torch.device("cuda", 0)):
        torch.cuda._sleep(10_000_000)
        sums.append(batch.images_bchw.float().mean())
    assert torch.stack(sums).tolist() == list(range(20))

"""Brings batches to the device: on a GPU the next one is copied on a stream of its own while the step runs."""

from __future__ import annotations

from collections.abc import Iterator

import torch

from trainer.data.collate import Batch


def on_device(batches: Iterator[Batch], device: torch.device) -> Iterator[Batch]:
    """Yields the batches on a device. A batch's host memory is free again when the next one is asked for."""
    return _copied_ahead(batches, device) if device.type == "cuda" else batches


def _copied_ahead(batches: Iterator[Batch], device: torch.device) -> Iterator[Batch]:
    stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
    done = torch.cuda.Event()  # type: ignore[no-untyped-call]
    for batch in batches:
        # The step before is still running: the host has only asked for it.
        with torch.cuda.stream(stream):
            copied = batch.to(device)
            done.record(stream)
        steps = torch.cuda.current_stream(device)
        steps.wait_event(done)
        for tensor in copied.device_tensors():
            tensor.record_stream(steps)  # else the memory could be given away while the step still reads it
        yield copied
        # A loader may overwrite the batch from here on. Copied during the step before, it has long arrived.
        done.synchronize()

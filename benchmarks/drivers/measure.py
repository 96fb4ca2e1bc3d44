"""What drivers of all programs measure with. It imports none of them, since each runs in its own environment."""

from __future__ import annotations

import json
import statistics
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from itertools import count
from multiprocessing import get_context

import psutil

MIB = 2**20
WARM_STEPS = 3


def answer(tasks: dict[str, Callable[[dict], dict[str, float]]]) -> None:
    """Runs the task that the command line names and prints its figures on the last line."""
    name, settings = sys.argv[1], json.loads(sys.argv[2])
    print("\n" + json.dumps(tasks[name](settings)), flush=True)


def cpu_seconds() -> float:
    """Returns the CPU time of this process, of its threads, and of its children, alive and ended."""
    own = psutil.Process()
    total = 0.0
    for process in (own, *own.children(recursive=True)):
        try:
            times = process.cpu_times()
        except psutil.NoSuchProcess:
            continue  # its parent counts it from now on
        total += times.user + times.system + times.children_user + times.children_system
    return total


def memory_of(process: psutil.Process) -> tuple[float, float]:
    """Returns MiB of a process that no other shares (USS), and with its part of the shared ones (PSS)."""
    seen = process.memory_full_info()
    return seen.uss / MIB, seen.pss / MIB


def count_decodes() -> Callable[[], int]:
    """Counts calls that decode a picture, those of forked children too; call it before a program is imported."""
    import cv2

    counter = get_context("fork").Value("q", 0)
    depth = 0

    def watched(function):
        def call(*arguments, **options):
            nonlocal depth
            if not depth:  # a reader may be built on another
                with counter.get_lock():
                    counter.value += 1
            depth += 1
            try:
                return function(*arguments, **options)
            finally:
                depth -= 1

        return call

    cv2.imread, cv2.imdecode = watched(cv2.imread), watched(cv2.imdecode)
    return lambda: counter.value


def endless(epoch: Callable[[int], Iterable]) -> Iterator:
    """Returns the batches of epoch 0, 1, 2 ..."""
    for number in count():
        yield from epoch(number)


def time_loader(
    batches: Iterator, size_of: Callable[[object], int], settings: dict, decodes: Callable[[], int]
) -> dict[str, float]:
    """Returns CPU ms and decodes a sample and images/s by the clock, of ``batches`` after ``warm`` of them."""
    for _ in range(settings["warm"]):
        next(batches)
    cpu, clock, decoded, samples = cpu_seconds(), time.perf_counter(), decodes(), 0
    for _ in range(settings["batches"]):
        samples += size_of(next(batches))
    cpu, clock, decoded = cpu_seconds() - cpu, time.perf_counter() - clock, decodes() - decoded
    found = {"cpu_ms": 1e3 * cpu / samples, "images_per_second": samples / clock}
    return {**found, "decodes": decoded / samples} if decoded else found


def time_steps(step: Callable[[], object], settings: dict) -> dict[str, float]:
    """Returns the median ms of a step, the device's work included, and of a CUDA device the memory in GiB."""
    import torch

    is_cuda = settings["device"] == "cuda"
    spent = []
    for index in range(settings["steps"] + settings.get("warm", WARM_STEPS)):
        if is_cuda and index == settings.get("warm", WARM_STEPS):
            torch.cuda.reset_peak_memory_stats()
        began_at = time.perf_counter()
        step()
        if is_cuda:
            torch.cuda.synchronize()
        spent.append(1e3 * (time.perf_counter() - began_at))
    median = statistics.median(spent[settings.get("warm", WARM_STEPS) :])
    found = {"step_ms": median, "images_per_second": 1e3 * settings["batch"] / median}
    return {**found, "memory_gib": torch.cuda.max_memory_allocated() / 2**30} if is_cuda else found


def made_up_batch(settings: dict):
    """Returns images (B, 3, S, S) of bytes and targets (7 B, 6): image, class, x, y, w, h; pinned for CUDA."""
    import torch

    torch.manual_seed(0)
    batch, size = settings["batch"], settings["imgsz"]
    targets = torch.rand(batch * 7, 6) * 0.3 + 0.3
    targets[:, 0], targets[:, 1] = torch.arange(batch).repeat_interleave(7), 0
    images = torch.randint(0, 256, (batch, 3, size, size), dtype=torch.uint8)
    return (images.pin_memory(), targets.pin_memory()) if settings["device"] == "cuda" else (images, targets)


def autocast_of(settings: dict):
    """Returns torch's autocast of the settings' ``amp``: off, bf16 or fp16."""
    import torch

    dtype = torch.float16 if settings["amp"] == "fp16" else torch.bfloat16
    return torch.autocast(settings["device"], dtype=dtype, enabled=settings["amp"] != "off")


def time_growth(
    open_data: Callable[[], object], first_batch: Callable[[object], object], prepare: Callable[[object], object]
) -> dict[str, float]:
    """Returns seconds to open the data, to do so again and to the first batch; MiB of this and of a loader process.

    ``prepare`` turns what ``open_data`` returned into the argument of ``first_batch`` and is not timed.
    """
    marks = [time.perf_counter()]
    open_data()
    marks.append(time.perf_counter())
    opened = open_data()
    marks.append(time.perf_counter())
    ready = prepare(opened)
    began_at = time.perf_counter()
    kept = first_batch(ready)  # held, so that its processes live
    start = time.perf_counter() - began_at
    uss, pss = memory_of(psutil.Process())
    found = {"first_scan_s": marks[1] - marks[0], "second_start_s": marks[2] - marks[1], "epoch_start_s": start}
    found |= {"uss": uss, "pss": pss}
    memories = [memory_of(child) for child in psutil.Process().children(recursive=True)]
    if memories:
        found |= {"loader_uss": max(one[0] for one in memories), "loader_pss": max(one[1] for one in memories)}
    del kept
    return found


def first_of(batches: Iterable) -> tuple:
    """Returns the first batch, and the iterator that has more of them."""
    iterator = iter(batches)
    return next(iterator), iterator

"""The parts of the first hour with a card that measure speed, beside the peers if there are any."""

from __future__ import annotations

import json
import math
import statistics
import time

import torch

from benchmarks.gpu_part import Part, make_run, time_steps
from benchmarks.linked_data import link_data
from benchmarks.peers import OWN


def accuracy(part: Part) -> None:
    """The official yolov5n.pt measures the same on a card as on the CPU, in float16 nearly so."""
    found = {}
    kinds = {"cpu": ("cpu", ())} | ({"cuda": ("0", ()), "half": ("0", ("--half",))} if part.device == "cuda" else {})
    size = "128" if part.rehearse else "640"
    for name, (gpus, more) in kinds.items():
        words = ("--weights", str(part.weights), "--data", str(part.coco), "--gpus", gpus, "--imgsz", size, "--noplots")
        ended = part.launch("val", *words, "--json", *more)
        summary = json.loads(ended.stdout or "{}")
        found[name] = (summary.get("map50", math.nan), summary.get("map5095", math.nan))
        part.figure(f"mAP50-95, {name}", [found[name][1]], "")
        for stage, value in summary.get("speed_ms", {}).items():
            part.figure(f"val {name}: {stage}", [value], "ms an image")
    for name, limit in (("cpu", 0.0), ("cuda", 0.001), ("half", 0.003)):
        if name in found:
            difference = abs(found[name][1] - found["cpu"][1])
            part.check(f"{name} against CPU", f"{found[name]}", difference <= limit, f"within {limit}")
    if len(part.programs) > 1:
        data = link_data(part.coco, part.folder / "val-links")
        settings = {"data": str(data), "weights": str(part.weights), "cfg": "yolov5n", "imgsz": int(size), "batch": 8}
        part.beside_peers(f"val at {size}", "validation", settings, {"inference_ms": "ms", "nms_ms": "ms"})


def step(part: Part) -> None:
    """The step alone, by model, batch and precision; the median of what follows ten steps of warming up."""
    if part.rehearse:
        _time_steps(part, "yolov5n", 2, "off")
        return
    for cfg, batch_size, amp in (
        ("yolov5s", 64, "bf16"),
        ("yolov5s", 64, "fp16"),
        ("yolov5n", 64, "bf16"),
        ("yolov5s", 16, "bf16"),
        ("yolov5m", 64, "bf16"),
        ("yolov5s", 64, "off"),
    ):
        _time_steps(part, cfg, batch_size, amp)
    _idle_share(part)


def compiled(part: Part) -> None:
    """The same step with --compile."""
    _time_steps(part, "yolov5n" if part.rehearse else "yolov5s", 2 if part.rehearse else 64, "bf16", compiles=True)


def _time_steps(part: Part, cfg, batch_size, amp, compiles=False):
    size = 64 if part.rehearse else 640
    torch.backends.cudnn.benchmark = part.device == "cuda"
    run = make_run(part, cfg=cfg, imgsz=size, batch_size=batch_size, amp=amp, compile=compiles)
    batches = _made_up(batch_size, size, part.device)
    name = f"{cfg} batch {batch_size} {amp}{' compiled' if compiles else ''}"
    began_at = time.perf_counter()
    time_steps(run, batches, 1)
    part.figure(f"{name}: first step", [time.perf_counter() - began_at], "s")
    time_steps(run, batches, 2 if part.rehearse else 10)
    if part.device == "cuda":
        torch.cuda.reset_peak_memory_stats()
    whole, host = time_steps(run, batches, 3 if part.rehearse else 15)
    part.figure(f"{name}: step", [1e3 * one for one in whole], "ms", f"host {1e3 * statistics.median(host):.1f} ms")
    part.check(f"{name}: finite", run.finite.bad_step, run.finite.bad_step is None, "None")
    if part.device == "cuda":
        part.figure(f"{name}: memory", [torch.cuda.max_memory_allocated() / 2**30], "GiB")
    if len(part.programs) > 1 and not compiles:
        settings = {"data": str(part.bccd), "cfg": cfg, "imgsz": size, "batch": batch_size, "amp": amp, "classes": 3}
        settings |= {"warm": 2 if part.rehearse else 10, "steps": 3 if part.rehearse else 15}
        part.beside_peers(f"{name}: step", "step", settings, {"step_ms": "ms", "memory_gib": "GiB"})


def _made_up(batch_size, size, device):
    from trainer.data.collate import Batch

    count = batch_size * 7
    targets = torch.rand(count, 6) * 0.3 + 0.3
    targets[:, 0], targets[:, 1] = torch.arange(count) % batch_size, 0
    images = torch.randint(0, 256, (batch_size, 3, size, size), dtype=torch.uint8)
    batch = Batch(images, targets, torch.arange(batch_size), torch.arange(batch_size))
    return [batch.pin_memory() if device == "cuda" else batch]


def _idle_share(part: Part) -> None:
    """The share of ten steps in which no kernel ran, by torch's profiler, and the number of kernels."""
    from torch.profiler import ProfilerActivity, profile

    run = make_run(part, cfg="yolov5s", imgsz=640, batch_size=64, amp="bf16")
    batches = _made_up(64, 640, "cuda")
    time_steps(run, batches, 10)
    from trainer.training.loop import train_step

    with profile(activities=[ProfilerActivity.CUDA]) as seen:
        began_at = time.perf_counter()
        for _ in range(10):
            train_step(run, batches[0], is_update=True)
        torch.cuda.synchronize()
        elapsed_s = time.perf_counter() - began_at
    kernels = [event for event in seen.events() if event.device_type.name == "CUDA"]
    busy_s, last_end = 0.0, 0.0
    for start, end in sorted((event.time_range.start, event.time_range.end) for event in kernels):
        busy_s += max(0.0, end - max(start, last_end)) / 1e6
        last_end = max(last_end, end)
    part.figure("yolov5s batch 64 bf16: idle share", [max(0.0, 1 - busy_s / elapsed_s)], "")
    part.figure("yolov5s batch 64 bf16: device operations", [len(kernels) / 10], "a step")
    part.check("the profiler saw kernels", len(kernels), len(kernels) > 100, "more than 100")


def loader(part: Part) -> None:
    """The training loader alone, by the number of its processes: CPU time of a sample, and samples a second."""
    data = link_data(part.coco, part.folder / "loader-links", train_paths=64 if part.rehearse else 6400)
    settings = {"data": str(data), "imgsz": 96 if part.rehearse else 640, "batch": 8 if part.rehearse else 64}
    settings |= {"warm": 1 if part.rehearse else 16, "batches": 4 if part.rehearse else 32}
    figures = {"cpu_ms": "ms a sample", "decodes": "decodes a sample"}
    for workers in (0,) if part.rehearse else (4, 8, 15):
        name = f"{workers} loader processes"
        results = part.beside_peers(f"{name} alone", "loader", {**settings, "workers": workers}, figures)
        own = results[OWN]
        part.figure(f"{name}: CPU", own.figures["cpu_ms"], "ms a sample")
        part.figure(f"{name}: speed", own.figures["images_per_second"], "images/s")
        # Four pictures make a mosaic, if none is kept decoded.
        decodes = own.median("decodes")
        part.check(f"{name}: decodes a sample", decodes, not decodes > 4.1, "at most 4")


def throughput(part: Part) -> None:
    """Real training on many links to real pictures: images a second, and the share of time that waits for data."""
    links = 64 if part.rehearse else 6400
    data = link_data(part.coco, part.folder / "links", train_paths=links)
    cfg = "yolov5n" if part.rehearse else "yolov5s"
    cases = [("off", 96, 8, 0)] if part.rehearse else [("bf16", 640, 64, 15), ("bf16", 640, 64, 8)]
    for amp, size, batch, workers in cases:
        words = ["--data", str(data), "--cfg", cfg, "--weights", "", "--epochs", "2"]
        words += ["--imgsz", str(size), "--batch", str(batch), "--amp", amp, "--workers", str(workers)]
        words += ["--noplots", "--noval", "--project", "runs", "--gpus", part.gpus, "--noautoanchor", "--nosave"]
        ended = part.launch("train", *words)
        runs = sorted((part.folder / "runs").glob("exp*/metrics.jsonl"), key=lambda path: path.stat().st_mtime)
        rows = [json.loads(line) for line in runs[-1].read_text().splitlines()] if runs else []
        name = f"{workers} loader processes"
        part.check(name, ended.returncode, ended.returncode == 0 and len(rows) == 2, "2 epochs")
        speeds = [row["images_per_second"] for row in rows] or [math.nan]
        note = f"{links} links; data wait {[round(row['data_wait'], 3) for row in rows]}"
        part.figure(name, speeds, "images/s", note)
        if len(part.programs) > 1:
            settings = {"data": str(data), "cfg": cfg, "imgsz": size, "batch": batch, "amp": amp}
            settings |= {"workers": workers, "epochs": 2}
            figures = {"images_per_second": "images/s"}
            part.beside_peers(f"training, {name}", "training", settings, figures, higher_is_better=True)

"""Where the time of a training step goes: medians in ms for a model on random images, and the whole beside the peers.

    python benchmarks/step.py [--cfg yolov5n] [--imgsz 320] [--batch 16] [--steps 12] [--peer-python PYTHON]

The first table is of this process. In the second every program takes the steps of its own training in a process of its
own, in turn, on one made-up batch; ultralytics has the same backbone with a newer head.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
import time
from collections import defaultdict
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.linked_data import PROJECT_DATA, link_data
from benchmarks.peers import add_options, ask_in_turn, find_programs, introduce, table_head, table_rows
from trainer.loss import DetectionLoss, LossGains, scaled_gains
from trainer.model.graph import build_model, load_definition
from trainer.optim.ema import ModelEma
from trainer.optim.optimizer import clip_gradients, make_optimizer
from trainer.training.worker import set_determinism

FIGURES = {"step_ms": "step, ms", "images_per_second": "images/s"}
STAGES = ("to float", "forward", "match", "loss", "backward", "clip", "optimizer", "ema")


def measure(cfg, image_size, batch, amp, steps):
    """Milliseconds of each stage, one list entry a step; the first two steps warm up and are left out."""
    torch.manual_seed(0)
    set_determinism(torch.device("cpu"), False)
    model = build_model(load_definition(cfg), num_classes=80).to(memory_format=torch.channels_last).train()
    optimizer = make_optimizer(model, "SGD", lr=0.01, momentum=0.937, weight_decay=5e-4)
    ema = ModelEma(model, 0.9999, 2000.0)
    published = LossGains(box=0.05, obj=1.0, cls=0.5)
    gains = scaled_gains(published, num_classes=80, image_size=image_size, num_levels=3)
    loss = DetectionLoss(model.detect.anchors, 80, gains)
    images = torch.randint(0, 256, (batch, 3, image_size, image_size), dtype=torch.uint8)
    targets = torch.rand(batch * 12, 6)
    targets[:, 0] = torch.arange(len(targets)) % batch
    targets[:, 1] = (targets[:, 1] * 80).floor()
    targets[:, 4:] = targets[:, 4:] * 0.3 + 0.02
    grids = [(image_size // int(stride), image_size // int(stride)) for stride in model.stride]
    spent = defaultdict(list)

    for _ in range(steps + 2):
        marks = [time.perf_counter()]
        floats = torch.mul(images.to(memory_format=torch.channels_last), 1 / 255)
        marks.append(time.perf_counter())
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=amp == "bf16"):
            predictions = model(floats)
        marks.append(time.perf_counter())
        matches = loss.match(targets, grids)
        counts = loss.counts(matches, batch)
        marks.append(time.perf_counter())
        terms = loss(predictions, matches, counts)
        marks.append(time.perf_counter())
        terms.total.backward()
        marks.append(time.perf_counter())
        clip_gradients(model, 10.0)
        marks.append(time.perf_counter())
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        marks.append(time.perf_counter())
        ema.update()
        marks.append(time.perf_counter())
        for stage, start, end in zip(STAGES, marks, marks[1:], strict=False):
            spent[stage].append((end - start) * 1e3)
        spent["total"].append((marks[-1] - marks[0]) * 1e3)
    return {stage: values[2:] for stage, values in spent.items()}


def print_stages(options):
    torch.set_num_threads(options.threads)
    spent = measure(options.cfg, options.imgsz, options.batch, options.amp, options.steps)
    print("| " + " | ".join([*STAGES, "total ms", "images/s"]) + " |")
    print("|" + "---|" * (len(STAGES) + 2))
    medians = [statistics.median(spent[stage]) for stage in (*STAGES, "total")]
    print("| " + " | ".join(f"{value:.1f}" for value in [*medians, options.batch / medians[-1] * 1e3]) + " |\n")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cfg", default="yolov5n")
    parser.add_argument("--imgsz", type=int, default=320)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--steps", type=int, default=12)
    parser.add_argument("--amp", choices=("off", "bf16"), default="off")
    add_options(parser)
    options = parser.parse_args()
    print_stages(options)
    programs = find_programs(options.peer_python)
    what = f"{options.cfg}, {options.imgsz} pixels, batch {options.batch}, amp {options.amp}, {options.threads} threads"
    introduce(programs, options.repeats, what)
    print("\n".join(table_head("model", FIGURES)))
    with tempfile.TemporaryDirectory() as folder:
        settings = {"data": str(link_data(PROJECT_DATA, Path(folder))), "device": "cpu", "classes": 3}
        settings |= {name: getattr(options, name) for name in ("cfg", "imgsz", "batch", "amp", "steps")}
        results = ask_in_turn(programs, "step", settings, repeats=options.repeats, threads=options.threads)
    print("\n".join(table_rows(results, list(FIGURES), by="step_ms", first=options.cfg)))


if __name__ == "__main__":
    main()

"""Drives an installed package ``yolov5`` through its command line and its public functions, in its own environment.

``PYTHON benchmarks/drivers/yolov5_peer.py TASK SETTINGS``
"""

from __future__ import annotations

import re
import statistics
import subprocess
import sys
from pathlib import Path

from measure import (
    answer,
    autocast_of,
    count_decodes,
    endless,
    first_of,
    made_up_batch,
    time_growth,
    time_loader,
    time_steps,
)

# The published hyperparameters for training from scratch.
HYPERPARAMETERS = {
    **{"lr0": 0.01, "lrf": 0.01, "momentum": 0.937, "weight_decay": 0.0005, "warmup_epochs": 3.0},
    **{"warmup_momentum": 0.8, "warmup_bias_lr": 0.1, "box": 0.05, "cls": 0.5, "cls_pw": 1.0, "obj": 1.0},
    **{"obj_pw": 1.0, "iou_t": 0.2, "anchor_t": 4.0, "fl_gamma": 0.0, "hsv_h": 0.015, "hsv_s": 0.7, "hsv_v": 0.4},
    **{"degrees": 0.0, "translate": 0.1, "scale": 0.5, "shear": 0.0, "perspective": 0.0, "flipud": 0.0},
    **{"fliplr": 0.5, "mosaic": 1.0, "mixup": 0.0, "copy_paste": 0.0, "label_smoothing": 0.0},
}
SPEED = re.compile(r"([\d.]+)ms pre-process, ([\d.]+)ms inference, ([\d.]+)ms NMS")
ALL_CLASSES = re.compile(r"^\s*all\s+\d+\s+\d+\s+\S+\s+\S+\s+(\S+)\s+(\S+)", re.MULTILINE)
EPOCH = re.compile(r"^\s*\d+/\d+\s[^\n]*?\b(\d+)/(\d+) \[[^\]]*?([\d.]+)(it/s|s/it)", re.MULTILINE)


def open_loader(settings: dict, workers: int):
    from yolov5.utils.dataloaders import create_dataloader

    images = Path(settings["data"]).parent / "images" / "train"
    more = {"hyp": HYPERPARAMETERS, "augment": True, "shuffle": True, "workers": workers}
    return create_dataloader(str(images), settings["imgsz"], settings["batch"], 32, **more)[0]


def loader(settings: dict) -> dict[str, float]:
    """The training loader alone."""
    decodes = count_decodes()
    batches = open_loader(settings, settings["workers"])
    return time_loader(endless(lambda _: batches), lambda batch: len(batch[0]), settings, decodes)


def step(settings: dict) -> dict[str, float]:
    """The step of its training, with its model, loss, optimizer and average: one made-up batch, updated each time."""
    import torch
    import yolov5
    from yolov5.models.yolo import Model
    from yolov5.utils.general import init_seeds
    from yolov5.utils.loss import ComputeLoss
    from yolov5.utils.torch_utils import ModelEMA, smart_optimizer

    init_seeds(0, deterministic=True)  # as its training is
    device = settings["device"]
    definition = Path(yolov5.__file__).parent / "models" / f"{settings['cfg']}.yaml"
    model = Model(str(definition), ch=3, nc=settings["classes"]).to(device).train()
    model.hyp = HYPERPARAMETERS
    compute_loss = ComputeLoss(model)
    optimizer = smart_optimizer(model, "SGD", 0.01, 0.937, 0.0005)
    ema = ModelEMA(model)
    scaler = torch.amp.GradScaler(device, enabled=settings["amp"] == "fp16")
    images, targets = made_up_batch(settings)

    def one_step():
        floats = images.to(device, non_blocking=True).float() / 255
        with autocast_of(settings):
            loss, _ = compute_loss(model(floats), targets.to(device))
        scaler.scale(loss).backward()
        scaler.unscale_(optimizer)
        torch.nn.utils.clip_grad_norm_(model.parameters(), max_norm=10.0)
        scaler.step(optimizer)
        scaler.update()
        optimizer.zero_grad()
        ema.update(model)

    return time_steps(one_step, settings)


def run_module(name: str, *words: str) -> str:
    ended = subprocess.run(
        [sys.executable, "-m", f"yolov5.{name}", *words], capture_output=True, text=True, check=False
    )
    if ended.returncode:
        sys.exit(f"{name}: {ended.stderr[-2000:]}")
    return ended.stdout + ended.stderr


def device_word(settings: dict) -> str:
    return "0" if settings["device"] == "cuda" else "cpu"


def training(settings: dict) -> dict[str, float]:
    """Its own training: the median images/s of the epochs after the first, by its progress bars."""
    words = ["--data", settings["data"], "--cfg", f"{settings['cfg']}.yaml", "--weights", ""]
    words += ["--imgsz", str(settings["imgsz"]), "--batch-size", str(settings["batch"])]
    words += ["--epochs", str(settings["epochs"]), "--workers", str(settings["workers"]), "--device"]
    # Its --noval ends 7.0.14 with an error.
    words += [device_word(settings), "--nosave", "--noplots", "--noautoanchor"]
    said = run_module("train", *words, "--project", settings["folder"]).replace("\r", "\n")
    ended = [found for found in EPOCH.findall(said) if found[0] == found[1]]
    speeds = [settings["batch"] * (float(rate) if unit == "it/s" else 1 / float(rate)) for _, _, rate, unit in ended]
    if not speeds:
        sys.exit(f"train: no progress bar of an epoch was seen: {said[-500:]}")
    return {"images_per_second": statistics.median(speeds[1:] or speeds)}


def validation(settings: dict) -> dict[str, float]:
    """Its own validation, by the times and scores that it prints."""
    words = ["--weights", settings["weights"], "--data", settings["data"], "--imgsz", str(settings["imgsz"])]
    words += ["--batch-size", str(settings["batch"]), "--workers", "0", "--project", settings["folder"]]
    words += ["--device", device_word(settings), *(["--half"] if settings.get("half") else [])]
    said = run_module("val", *words)
    speed, scores = SPEED.search(said), ALL_CLASSES.search(said)
    if speed is None or scores is None:
        sys.exit(f"val: it printed no times or no scores: {said[-500:]}")
    found = {"inference_ms": float(speed[2]), "nms_ms": float(speed[3])}
    return {**found, "map50": float(scores[1]), "map5095": float(scores[2])}


def growth(settings: dict) -> dict[str, float]:
    """The scan, a second one with its cache, the first batch, and memory."""
    from yolov5.utils.dataloaders import create_dataloader  # noqa: F401 (not part of the scan)

    return time_growth(lambda: open_loader(settings, 1), first_of, lambda opened: opened)


if __name__ == "__main__":
    answer({"loader": loader, "step": step, "training": training, "validation": validation, "growth": growth})

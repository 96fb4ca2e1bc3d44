"""Drives an installed package ``ultralytics`` through its documented interfaces, in its own environment.

``PYTHON benchmarks/drivers/ultralytics_peer.py TASK SETTINGS``

It has the same backbones with a newer head (``yolov5nu``), so its steps are of another loss. Weights of YOLOv5 are not
read by it: its validation is that of an untrained model, of which only the time of inference compares.
"""

from __future__ import annotations

import statistics
import time
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


def open_loader(settings: dict, workers: int):
    from ultralytics.cfg import get_cfg
    from ultralytics.data import build_dataloader, build_yolo_dataset
    from ultralytics.data.utils import check_det_dataset

    chosen = get_cfg(overrides={"imgsz": settings["imgsz"], "task": "detect", "mode": "train"})
    data = check_det_dataset(settings["data"])
    images = Path(settings["data"]).parent / "images" / "train"
    dataset = build_yolo_dataset(chosen, str(images), settings["batch"], data, mode="train", stride=32)
    is_cuda = settings.get("device") == "cuda"
    return build_dataloader(dataset, settings["batch"], workers, shuffle=True, pin_memory=is_cuda)


def loader(settings: dict) -> dict[str, float]:
    """The training loader alone."""
    decodes = count_decodes()
    batches = open_loader(settings, settings["workers"])
    return time_loader(endless(lambda _: batches), lambda batch: len(batch["img"]), settings, decodes)


def step(settings: dict) -> dict[str, float]:
    """The step of a training with its model, loss and average: one made-up batch, updated each time."""
    import torch
    from ultralytics.cfg import get_cfg
    from ultralytics.nn.tasks import DetectionModel
    from ultralytics.utils.torch_utils import ModelEMA, init_seeds

    init_seeds(0, deterministic=True)  # as its training is
    device = settings["device"]
    model = DetectionModel(f"{settings['cfg']}.yaml", nc=settings["classes"], verbose=False).to(device).train()
    model.args = get_cfg()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.937, nesterov=True)
    ema = ModelEMA(model)
    scaler = torch.amp.GradScaler(device, enabled=settings["amp"] == "fp16")
    images, targets = made_up_batch(settings)

    def one_step():
        floats, rows = images.to(device, non_blocking=True).float() / 255, targets.to(device)
        batch = {"img": floats, "batch_idx": rows[:, 0], "cls": rows[:, 1:2], "bboxes": rows[:, 2:]}
        with autocast_of(settings):
            loss, _ = model(batch)
        scaler.scale(loss.sum()).backward()
        scaler.unscale_(optimizer)
        torch.nn.utils.clip_grad_norm_(model.parameters(), max_norm=10.0)
        scaler.step(optimizer)
        scaler.update()
        optimizer.zero_grad()
        ema.update(model)

    return time_steps(one_step, settings)


def training(settings: dict) -> dict[str, float]:
    """Its own training: the median images/s of the epochs after the first, by its callbacks."""
    from ultralytics import YOLO

    model = YOLO(f"{settings['cfg']}.yaml")
    marks, speeds = [], []
    model.add_callback("on_train_epoch_start", lambda trainer: marks.append(time.perf_counter()))

    def note(trainer):
        speeds.append(len(trainer.train_loader.dataset) / (time.perf_counter() - marks[-1]))

    model.add_callback("on_train_epoch_end", note)
    chosen = {"data": settings["data"], "imgsz": settings["imgsz"], "batch": settings["batch"], "val": False}
    chosen |= {"epochs": settings["epochs"], "workers": settings["workers"], "amp": settings["amp"] != "off"}
    chosen |= {"close_mosaic": 0, "plots": False, "save": False, "verbose": False, "project": settings["folder"]}
    model.train(**chosen, pretrained=False, device=0 if settings["device"] == "cuda" else "cpu")
    return {"images_per_second": statistics.median(speeds[1:] or speeds)}


def validation(settings: dict) -> dict[str, float]:
    """The time of its inference, with an untrained model."""
    from ultralytics import YOLO

    model = YOLO(f"{settings['cfg']}.yaml")
    chosen = {"data": settings["data"], "imgsz": settings["imgsz"], "batch": settings["batch"], "workers": 0}
    chosen |= {"plots": False, "verbose": False, "half": bool(settings.get("half")), "project": settings["folder"]}
    found = model.val(**chosen, device=0 if settings["device"] == "cuda" else "cpu")
    return {"inference_ms": found.speed["inference"]}


def growth(settings: dict) -> dict[str, float]:
    """The scan, a second one with its cache, the first batch, and memory."""
    import ultralytics.data  # noqa: F401 (not part of the scan)

    return time_growth(lambda: open_loader(settings, 1), first_of, lambda opened: opened)


if __name__ == "__main__":
    answer({"loader": loader, "step": step, "training": training, "validation": validation, "growth": growth})

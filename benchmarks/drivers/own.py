"""Drives this project for the comparisons: ``python benchmarks/drivers/own.py TASK SETTINGS``."""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
from pathlib import Path

from measure import answer, count_decodes, endless, first_of, made_up_batch, time_growth, time_loader, time_steps


def make_run(settings: dict, **options):
    """Builds what a training is made of, as the worker does."""
    import torch

    from trainer.config.train import make_config
    from trainer.protocol import RunFiles
    from trainer.runtime.distributed import DistEnv
    from trainer.runtime.heartbeat import HeartbeatWriter
    from trainer.runtime.reporter import Reporter
    from trainer.training.build import build_run

    folder = Path(settings["folder"]) / "run"
    RunFiles(folder).make_folders()
    known = {"data": settings["data"], "cfg": settings.get("cfg", "yolov5n"), "imgsz": settings["imgsz"]}
    # So many epochs that the first ones have mosaics.
    known |= {"batch_size": settings["batch"], "workers": settings.get("workers", 0), "epochs": 100}
    config = make_config({"plots": False, "autoanchor": False, **known, **options})
    beat = HeartbeatWriter(RunFiles(folder).logs, 0)
    device = torch.device(settings.get("device", "cpu"))
    run = build_run(config, DistEnv(), device, folder, Reporter(enabled=False), beat)[0]
    run.model.train()
    return run


def loader(settings: dict) -> dict[str, float]:
    """The training loader alone."""
    decodes = count_decodes()
    epoch_loader = make_run(settings).epoch_loader
    batches = endless(lambda epoch: epoch_loader.epoch(epoch, 0, ()))
    return time_loader(batches, len, settings, decodes)


def step(settings: dict) -> dict[str, float]:
    """The training step alone, on one made-up batch."""
    import torch

    from trainer.data.collate import Batch
    from trainer.training.loop import train_step
    from trainer.training.worker import set_determinism

    set_determinism(torch.device(settings["device"]), False)
    run = make_run(settings, amp=settings["amp"], compile=bool(settings.get("compile")))
    images, targets = made_up_batch(settings)
    index = torch.arange(len(images))
    batch = Batch(images, targets, index, index)

    def one_step():
        train_step(run, batch, is_update=True)
        run.state.progress.micro_step += 1

    return time_steps(one_step, settings)


def run_module(*words: str, cwd: Path) -> None:
    ended = subprocess.run([sys.executable, "-m", *words], cwd=cwd, capture_output=True, text=True, check=False)
    if ended.returncode:
        sys.exit(f"{words[0]} ended with {ended.returncode}: {' '.join(ended.stderr[-2000:].split())}")


def training(settings: dict) -> dict[str, float]:
    """Real training: the median images/s of the epochs after the first."""
    from trainer.protocol import RunFiles

    folder = Path(settings["folder"])
    config = {"data": settings["data"], "cfg": settings["cfg"], "weights": "", "recipe": settings.get("recipe", "auto")}
    config |= {"imgsz": settings["imgsz"], "batch_size": settings["batch"], "epochs": settings["epochs"]}
    config |= {"workers": settings["workers"], "amp": settings["amp"], "val": False, "save": False, "plots": False}
    (folder / "config.yaml").write_text(json.dumps({**config, "autoanchor": False}))
    run_module("trainer", "config.yaml", "--run-dir", "run", cwd=folder)
    rows = [json.loads(line) for line in RunFiles(folder / "run").metrics.read_text().splitlines()]
    speeds = [row["images_per_second"] for row in rows if "images_per_second" in row]
    waits = [row["data_wait"] for row in rows if "data_wait" in row]
    return {"images_per_second": statistics.median(speeds[1:] or speeds), "data_wait": statistics.median(waits)}


def validation(settings: dict) -> dict[str, float]:
    """Validation of a weights file by stage."""
    from trainer.config.fields import write_config
    from trainer.config.inference import ValConfig

    folder = Path(settings["folder"])
    chosen = {"weights": settings["weights"], "data": settings["data"], "half": bool(settings.get("half"))}
    config = ValConfig(**chosen, imgsz=settings["imgsz"], batch=settings["batch"], workers=0, noplots=True)
    write_config(config, folder / "val.yaml")
    run_module("trainer.inference.val", "val.yaml", "--run-dir", str(folder), cwd=folder)
    found = json.loads((folder / "summary.json").read_text())
    speed = {"inference_ms": found["speed_ms"]["inference"], "nms_ms": found["speed_ms"]["nms"]}
    return {**speed, "map50": found["map50"], "map5095": found["map5095"]}


def growth(settings: dict) -> dict[str, float]:
    """The scan, a second one, the first batch, and memory."""
    from trainer.config.train import make_config
    from trainer.protocol import LogFiles
    from trainer.runtime.distributed import Collectives, DistEnv
    from trainer.runtime.heartbeat import HeartbeatWriter
    from trainer.runtime.reporter import Reporter
    from trainer.training.build import read_data

    settings = {**settings, "workers": 1}
    config = make_config({"data": settings["data"], "cfg": "yolov5n"})
    beat, quiet = HeartbeatWriter(LogFiles(Path(settings["folder"])), 0), Reporter(enabled=False)
    return time_growth(
        lambda: read_data(config, Collectives(DistEnv()), quiet, beat),
        lambda epoch_loader: first_of(epoch_loader.epoch(0, 0, ())),
        lambda _: make_run(settings).epoch_loader,
    )


if __name__ == "__main__":
    answer({"loader": loader, "step": step, "training": training, "validation": validation, "growth": growth})

"""What a run needs before its parts can be made: scanned data, frozen layers, a precision, loader processes."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from trainer.data.dataset_file import DatasetFile, load_dataset_file
from trainer.data.demo import default_cache_dir
from trainer.data.labels import LabelledImages, scan_split
from trainer.data.scan_report import ScanReport
from trainer.distributed import Peers
from trainer.errors import ConfigError, DataError
from trainer.model.graph import DetectionModel
from trainer.progress import Reporter
from trainer.telemetry import Heartbeat

# fp16 gives NaN on these cards, whatever their compute capability says.
BROKEN_FP16_CARDS = ("GTX 16", "T400", "T500", "T550", "T600", "T1000", "T1200")


@dataclass(frozen=True)
class Data:
    """A data set as this run sees it."""

    dataset: DatasetFile
    names: tuple[str, ...]
    train: LabelledImages
    val: LabelledImages


def load_data(path: str, *, single_cls: bool, peers: Peers, reporter: Reporter, heartbeat: Heartbeat) -> Data:
    """Read the data-set file and scan both splits, once per machine. Raises DataError or ConfigError."""
    if not path:
        raise ConfigError("no data set was given", seen="data: ''", expected="the path of a data-set YAML in --data")
    dataset = load_dataset_file(path)
    names = ("item",) if single_cls and len(dataset.names) > 1 else dataset.names

    def scan(split: str) -> LabelledImages:
        return scan_together(dataset, split, single_cls=single_cls, peers=peers, reporter=reporter, heartbeat=heartbeat)

    return Data(dataset, names, scan("train"), scan("val"))


def scan_together(
    dataset: DatasetFile,
    split: str,
    *,
    single_cls: bool = False,
    peers: Peers,
    reporter: Reporter,
    heartbeat: Heartbeat,
) -> LabelledImages:
    """One split of a data set, scanned once per machine; a collective call. Raises DataError."""

    def scan_as(is_writer: bool) -> LabelledImages:
        images, report = scan_split(
            dataset,
            split,
            num_classes=dataset.num_classes,
            single_cls=single_cls,
            cache_dir=default_cache_dir(),
            writer=is_writer,
            on_progress=lambda done, total: heartbeat.beat("scan", step=done),
        )
        if is_writer:
            report_scan(reporter, split, report)
        return images

    images = peers.main_first(scan_as)
    check_same_images(split, peers.gather(len(images)))
    return images


def check_same_images(split: str, counts: Sequence[int]) -> None:
    """Raises DataError where the ranks do not count the same: they would not agree on an epoch's batches."""
    if len(set(counts)) > 1:
        raise DataError(
            f"the machines have different usable '{split}' images",
            seen=f"{', '.join(str(count) for count in counts)}, rank by rank",
            expected="the same files on every machine",
        )


def report_scan(reporter: Reporter, split: str, report: ScanReport) -> None:
    """One line for a split, and up to five examples of each problem."""
    reporter.say(f"{split}: {report.images} images, {report.boxes} boxes, {report.backgrounds} backgrounds")
    for what, tally in report.problems():
        reporter.warn(f"{split}: {tally.count} {what}, for example")
        for example in tally.examples:
            reporter.say(f"    {example}")


def label_sizes(images: LabelledImages, image_size: int) -> np.ndarray:
    """Width and height of every label in pixels of an image whose long side is ``image_size``: (n, 2)."""
    rows = [
        boxes[:, 3:5] * (shape[::-1] * image_size / shape.max())
        for boxes, shape in zip(images.boxes, images.shapes_hw.astype(np.float64), strict=True)
    ]
    return np.concatenate(rows) if rows else np.zeros((0, 2))


def freeze_layers(model: DetectionModel, freeze: tuple[int, ...]) -> None:
    """Stop the gradient of the first n layers (one number) or of just those named (several). Raises ConfigError."""
    layers = range(freeze[0]) if len(freeze) == 1 else freeze
    for index in layers:
        if not 0 <= index < len(model.model):
            raise ConfigError(
                "--freeze names a layer that the model lacks", seen=str(index), expected=f"0 to {len(model.model) - 1}"
            )
        model.model[index].requires_grad_(False)
    if not any(parameter.requires_grad for parameter in model.parameters()):
        raise ConfigError(
            "--freeze leaves nothing to train",
            seen=f"all {len(model.model)} layers are frozen",
            expected=f"at most {len(model.model) - 1}, so that the head learns",
        )


def pick_autocast(amp: str, device: torch.device) -> torch.dtype | None:
    """The dtype of mixed precision, or None. Raises ConfigError where the choice cannot work."""
    if amp == "off":
        return None
    if device.type == "cpu":
        if amp == "fp16":
            raise ConfigError("--amp fp16 needs a GPU", seen="the CPU", expected="--amp bf16 or --amp off")
        return torch.bfloat16 if amp == "bf16" else None
    if amp != "auto":
        return torch.bfloat16 if amp == "bf16" else torch.float16
    if any(card in torch.cuda.get_device_name(device) for card in BROKEN_FP16_CARDS):
        return None
    return torch.bfloat16 if torch.cuda.get_device_capability(device) >= (8, 0) else torch.float16


def shared_autocast(choices: Sequence[torch.dtype | None]) -> torch.dtype | None:
    """What all ranks can do: scaled and unscaled gradients must never be averaged."""
    if None in choices:
        return None
    return torch.float16 if torch.float16 in choices else torch.bfloat16


def agree_on_autocast(amp: str, device: torch.device, peers: Peers, reporter: Reporter) -> torch.dtype | None:
    """The dtype of mixed precision of every rank, with a warning where their devices alone would choose differently."""
    choices = peers.gather(pick_autocast(amp, device))
    shared = shared_autocast(choices)
    if len(set(choices)) > 1:
        names = [str(choice or torch.float32).removeprefix("torch.") for choice in (shared, *choices)]
        reporter.warn(f"the ranks' devices differ ({', '.join(names[1:])} by rank); all of them train in {names[0]}")
    return shared


def loader_workers(wanted: int | None, local_world_size: int) -> int:
    """Loader processes of this rank: what was asked for, else a share of the cores beside the rank itself."""
    if wanted is not None:
        return wanted
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(0, min(8, cores // local_world_size - 1))

"""Checkpoints laid out as YOLOv5's v4 to v7 wrote them, and archives with any content, made without YOLOv5.

The module objects are empty classes in modules named ``models.yolo`` and ``models.common``, which exist only while a
file is written; their tensors are those of this project's model.
"""

from __future__ import annotations

import collections
import io
import pickle
import sys
import types
import zipfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from trainer.model.graph import DetectionModel, build_model

NAMES = ("red cell", "white cell", "platelet")
SMALL_DEFINITION: dict[str, Any] = {
    "nc": len(NAMES),
    "depth_multiple": 0.33,
    "width_multiple": 0.25,
    "anchors": [[10, 13, 16, 30], [60, 90, 120, 150]],
    "backbone": [
        [-1, 1, "Focus", [64, 3]],
        [-1, 1, "Conv", [64, 3, 2]],
        [-1, 3, "C3", [64]],
        [-1, 1, "Conv", [64, 3, 2]],
        [-1, 1, "SPP", [64, [3, 5]]],
    ],
    "head": [
        [-1, 1, "nn.Upsample", ["None", 2, "nearest"]],
        [[-1, 2], 1, "Concat", [1]],
        [-1, 1, "C3", [64, False]],
        [[7, 4], 1, "Detect", ["nc", "anchors"]],
    ],
}
"""Nine layers in the manner of v4 and v5; strides 4 and 8."""


def small_model(seed: int = 0) -> DetectionModel:
    """A model whose every tensor, statistics too, differs from what a constructor gives."""
    torch.manual_seed(seed)
    model = build_model(SMALL_DEFINITION)
    for key, tensor in model.state_dict().items():
        if key.endswith("running_var"):
            tensor.uniform_(0.5, 2)
        elif tensor.is_floating_point() and not key.endswith("anchors"):
            tensor.normal_(0, 0.3)
    return model


@contextmanager
def yolov5_modules() -> Iterator[dict[str, type[nn.Module]]]:
    """Classes named as YOLOv5's, importable while the context lasts, so that pickle accepts them."""
    classes: dict[str, type[nn.Module]] = {}
    modules = {name: types.ModuleType(name) for name in ("models", "models.yolo", "models.common", "utils")}
    layers = ("Conv", "Focus", "C3", "Bottleneck", "SPP", "SPPF", "Concat", "AutoShape")
    for module, names in (
        ("models.yolo", ("Model", "DetectionModel", "Detect", "SegmentationModel", "IDetect")),
        ("models.common", layers),
    ):
        for name in names:
            classes[name] = type(name, (nn.Module,), {"__module__": module})
            setattr(modules[module], name, classes[name])
    sys.modules.update(modules)
    try:
        yield classes
    finally:
        for name in modules:
            del sys.modules[name]


def as_yolov5(model: DetectionModel, classes: Mapping[str, type[nn.Module]], top: str = "Model") -> nn.Module:
    """The module tree of a model in other classes, with the attributes that YOLOv5's objects have."""

    def converted(module: nn.Module) -> nn.Module:
        if isinstance(module, (nn.Sequential, nn.ModuleList)):
            children = [converted(child) for child in module]
            return nn.ModuleList(children) if isinstance(module, nn.ModuleList) else nn.Sequential(*children)
        if type(module).__module__.startswith("torch."):
            return module
        twin = classes[type(module).__name__]()
        twin.__dict__.update({key: dict_copy(module, key) for key in ("_parameters", "_buffers")})
        for name, child in module.named_children():
            twin.add_module(name, converted(child))
        return twin

    def dict_copy(module: nn.Module, key: str) -> Any:
        return collections.OrderedDict(
            (name, tensor)
            for name, tensor in module.__dict__[key].items()
            if name not in module._non_persistent_buffers_set
        )

    twin = classes[top]()
    layers = [converted(layer) for layer in model.model]
    for index, layer in enumerate(layers):
        layer.i, layer.f, layer.type = index, -1, f"models.common.{type(layer).__name__}"
    layers[-1].stride = model.stride.clone()
    layers[-1].nc = model.num_classes
    twin.model = nn.Sequential(*layers)
    twin.yaml = {**model.definition, "ch": 3}
    twin.yaml_file = "small.yaml"
    twin.names = list(NAMES)
    twin.stride = model.stride.clone()
    twin.hyp = {"lr0": 0.01, "anchor_t": 4.0}
    twin.nc = model.num_classes
    twin.gr = 1.0
    twin.class_weights = torch.ones(model.num_classes, dtype=torch.float64)
    twin.save = [2, 4, 7]
    return twin


def layout(version: str, model: DetectionModel, average: DetectionModel, classes: Mapping[str, Any]) -> dict[str, Any]:
    """The dictionary that a version of YOLOv5 saved; ``average`` is what a reader must take."""
    weights = list(model.parameters())
    optimizer = {
        "state": {index: {"momentum_buffer": torch.rand_like(weight)} for index, weight in enumerate(weights)},
        "param_groups": [{"lr": 0.01, "nesterov": True, "params": list(range(len(weights)))}],
    }
    content: dict[str, Any] = {"epoch": 7, "best_fitness": np.array([0.25]), "optimizer": optimizer}
    if version == "v4":
        return {**content, "training_results": "0/2 ...", "model": as_yolov5(average, classes), "wandb_id": None}
    if version == "v4 pair":
        return {**content, "model": as_yolov5(model, classes), "ema": (as_yolov5(average, classes), 12)}
    if version == "v5":
        twins = [as_yolov5(each, classes).half() for each in (model, average)]
        for twin in twins:  # a buffer that later versions dropped
            twin.model[-1].register_buffer("anchor_grid", torch.ones(2, 1, 2, 1, 1, 2))
        return {**content, "model": twins[0], "ema": twins[1], "updates": 12}
    if version == "v6 stripped":
        twin = as_yolov5(average, classes).half()
        return {"epoch": -1, "best_fitness": None, "model": twin, "ema": None, "updates": None, "optimizer": None}
    assert version == "v7"
    twins = [as_yolov5(each, classes, "DetectionModel").half() for each in (model, average)]
    for twin in twins:
        twin.names = dict(enumerate(NAMES))
    return {
        **content,
        "best_fitness": np.float64(0.25),
        "model": twins[0],
        "ema": twins[1],
        "updates": 12,
        "opt": {"imgsz": 416, "weights": Path("runs") / "a.pt", "seed": 0, "freeze": [0]},
        "git": {"remote": "a remote", "branch": "main", "commit": "0" * 40},
        "date": "2023-01-02T03:04:05",
    }


VERSIONS = ("v4", "v4 pair", "v5", "v6 stripped", "v7")


def save_version(path: Path, version: str, **save_options: Any) -> tuple[DetectionModel, DetectionModel]:
    """Write a checkpoint; the last model and its average, which went in."""
    model, average = small_model(1), small_model(2)
    with yolov5_modules() as classes:
        torch.save(layout(version, model, average, classes), path, **save_options)
    return model, average


class AddressPickler(pickle.Pickler):
    """Names storages by their addresses, as torch did up to 1.8."""

    def __init__(self, file: io.BytesIO) -> None:
        super().__init__(file, protocol=2)
        self.storages: dict[str, bytes] = {}

    def persistent_id(self, value: Any) -> Any:
        if not isinstance(value, torch.storage.TypedStorage):
            return None
        key = str(94_000_000_000_000 + value._data_ptr())
        self.storages[key] = bytes(value._untyped_storage.tolist())
        return ("storage", getattr(torch, value.pickle_storage_type()), key, "cuda:0", value._size())


def write_archive(path: Path, pickled: bytes, storages: Mapping[str, bytes], prefix: str = "archive") -> None:
    """A zip file in torch's layout with any content."""
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr(f"{prefix}/data.pkl", pickled)
        for key, data in storages.items():
            archive.writestr(f"{prefix}/data/{key}", data)
        archive.writestr(f"{prefix}/version", "3\n")


def archive_parts(path: Path) -> tuple[bytes, dict[str, bytes]]:
    """Pickle and storages of a file in torch's layout."""
    with zipfile.ZipFile(path) as archive:
        names = archive.namelist()
        pickled = archive.read(next(name for name in names if name.endswith("/data.pkl")))
        return pickled, {name.rpartition("/")[2]: archive.read(name) for name in names if "/data/" in name}

"""Writes exported files, ONNX and TorchScript, and opens them to run them again."""

from __future__ import annotations

import inspect
import json
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from trainer.errors import ConfigError

INPUT_NAME = "images"
SUFFIXES = {"onnx": ".onnx", "torchscript": ".torchscript"}
TORCHSCRIPT_METADATA = "config.txt"
"""Name of the extra file in a TorchScript archive that holds the metadata as JSON."""

RunFile = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class Graph:
    """A module with all that its file contains."""

    module: nn.Module
    example: Tensor
    output_name: str
    metadata: dict[str, str]
    dynamic: bool
    """Batch and image sides may change (ONNX only; a TorchScript file takes any)."""
    opset: int


def write_onnx(graph: Graph, path: Path) -> None:
    """Writes an ONNX file with metadata.

    Raises ConfigError if the extra is missing or ONNX cannot express the graph.
    """
    onnx = require("onnx")
    axes = {0: "batch", 2: "height", 3: "width"}
    out_axes = {0: "batch", 1: "predictions"} if graph.output_name == "predictions" else {0: "detections"}
    is_suppressed = graph.output_name != "predictions"
    dynamic_axes = {INPUT_NAME: axes} if graph.dynamic else {}
    if graph.dynamic or is_suppressed:
        dynamic_axes[graph.output_name] = out_axes
    options: dict[str, Any] = {
        "input_names": [INPUT_NAME],
        "output_names": [graph.output_name],
        "dynamic_axes": dynamic_axes,
        "opset_version": graph.opset,
        "do_constant_folding": True,
    }
    if "dynamo" in inspect.signature(torch.onnx.export).parameters:
        # The recorder works alike in every torch from 2.2 on; the newer exporter needs another package.
        options["dynamo"] = False
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # about constants in the head, which are meant
        try:
            torch.onnx.export(graph.module, (graph.example,), str(path), **options)
        except (RuntimeError, ValueError, torch.onnx.errors.OnnxExporterError) as error:
            raise ConfigError(
                "torch cannot write this model as ONNX",
                seen=str(error).strip().split("\n")[0][:300],
                expected=f"a graph that opset {graph.opset} and torch {torch.__version__} can say",
                next_command="another --opset, or --half on a GPU (--gpus 0)",
            ) from error
    model = onnx.load(str(path))
    for key, value in graph.metadata.items():
        entry = model.metadata_props.add()
        entry.key, entry.value = key, value
    onnx.checker.check_model(model)
    onnx.save(model, str(path))


def open_onnx(path: Path) -> RunFile:
    """Opens an ONNX file with onnxruntime on the CPU; returns a function from images to its one output.

    Raises ConfigError without the extra.
    """
    onnxruntime = require("onnxruntime")
    settings = onnxruntime.SessionOptions()
    settings.log_severity_level = 3
    settings.intra_op_num_threads = torch.get_num_threads()
    session = onnxruntime.InferenceSession(str(path), settings, providers=["CPUExecutionProvider"])

    def run(images: Tensor) -> Tensor:
        return torch.from_numpy(session.run(None, {INPUT_NAME: images.cpu().numpy()})[0])

    return run


def write_torchscript(graph: Graph, path: Path) -> None:
    """Writes a TorchScript file whose extra file holds the metadata."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        traced = torch.jit.trace(graph.module, graph.example, check_trace=False, strict=False)
        torch.jit.save(traced, str(path), _extra_files={TORCHSCRIPT_METADATA: json.dumps(graph.metadata)})


def open_torchscript(path: Path, device: torch.device) -> RunFile:
    """Opens a TorchScript file; returns a function from images to its output."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # newer torch recommends another format
        loaded = torch.jit.load(str(path), map_location=device)

    @torch.inference_mode()
    def run(images: Tensor) -> Tensor:
        return loaded(images).cpu()

    return run


def require(name: str) -> Any:
    """Imports a package of the extra ``export``. Raises ConfigError if it is not installed."""
    import importlib

    try:
        return importlib.import_module(name)
    except ImportError:
        raise ConfigError(
            f"exporting to ONNX needs the package {name}, which is not installed",
            expected="the extra 'export'",
            next_command='pip install "yolo-launch[export]"',
        ) from None

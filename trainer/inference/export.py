"""Writes a trained model as a file for other programs (``python -m trainer.inference.export CONFIG --run-dir DIR``)."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from trainer.config.inference import ExportConfig
from trainer.protocol import RunFiles, replace_text, replacing
from trainer.runtime.session import Session, run_worker

if TYPE_CHECKING:
    from trainer.inference.detector import Detector
    from trainer.inference.export_formats import Graph, RunFile


def run(arguments: Sequence[str] | None = None) -> int:
    """Exports as the command line says; returns the exit code."""
    return run_worker("trainer.inference.export", "Export a model", ExportConfig.read, export, arguments)


def export(session: Session, config: ExportConfig) -> None:
    """Writes the file beside its place, checks it against PyTorch, and only then puts it there."""
    from trainer.errors import ConfigError
    from trainer.inference.detector import as_dtype, load_detector
    from trainer.inference.export_formats import SUFFIXES, require

    if config.format == "onnx":
        require("onnx")
        require("onnxruntime")
    import torch

    # The file is compared with this model: TF32 alone would differ by more than the comparison allows.
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    detector = load_detector(Path(config.weights), session.device)
    if config.half:
        as_dtype(detector.model, torch.float16)
    image_size = detector.image_size(config.imgsz, session.reporter)
    target = Path(config.out or Path(config.weights).with_suffix(SUFFIXES[config.format]))
    session.heartbeat.beat("save")
    try:
        graph = make_graph(detector, config, image_size)
        with replacing(target) as temporary:
            seen = write_and_check(graph, detector, config, temporary, image_size)
    except OSError as error:
        raise ConfigError("the exported file cannot be written", seen=str(error), expected="--out FILE") from None
    summary = {"file": str(target), "bytes": target.stat().st_size, **graph.metadata, **seen}
    session.reporter.say(f"{target} ({summary['bytes'] / 1e6:.1f} MB), {config.format}, {_as_text(seen)}")
    replace_text(RunFiles(session.run_dir).summary, json.dumps(summary, indent=2) + "\n")


def make_graph(detector: Detector, config: ExportConfig, image_size: int) -> Graph:
    """Returns the module to record, an example of its input, and the metadata of the file."""
    from trainer import __version__
    from trainer.inference.export_formats import Graph
    from trainer.inference.export_graph import ExportedDetector, SuppressedDetector

    module: Any = ExportedDetector(detector.model)
    metadata = {
        "names": json.dumps(list(detector.names)),
        "stride": str(detector.stride),
        "imgsz": json.dumps([image_size, image_size]),
        "batch": str(config.batch),
        "dynamic": json.dumps(config.dynamic),
        "precision": "float16" if config.half else "float32",
        "format": config.format,
        "yolo_launch": __version__,
    }
    if config.format == "onnx":
        metadata["opset"] = str(config.opset)
    if config.with_nms:
        limits: dict[str, Any] = {
            "confidence_threshold": config.conf,
            "iou_threshold": config.iou,
            "max_detections": config.max_det,
        }
        module = SuppressedDetector(detector.model, **limits)
        metadata["nms"] = json.dumps(limits)
    picture = _picture(config, (image_size, image_size))
    example = _as_input(picture, config).to(detector.device).repeat(config.batch, 1, 1, 1)
    output_name = "detections" if config.with_nms else "predictions"
    return Graph(module.eval(), example, output_name, metadata, config.dynamic, config.opset)


def write_and_check(
    graph: Graph, detector: Detector, config: ExportConfig, path: Path, image_size: int
) -> dict[str, Any]:
    """Writes the file and runs it; returns what was seen. Raises ExportError if the file computes something else."""
    import torch

    from trainer.inference import export_formats

    run_file: RunFile
    with torch.no_grad():
        if config.format == "onnx":
            export_formats.write_onnx(graph, path)
            run_file = export_formats.open_onnx(path)
        else:
            export_formats.write_torchscript(graph, path)
            run_file = export_formats.open_torchscript(path, detector.device)
        seen = compare(run_file, graph.example, detector, config)
        if config.dynamic:
            # Another size and number of images, so that nothing of the example is left in the graph.
            sides = (image_size, max(image_size // 2 // detector.stride, 1) * detector.stride)
            picture = _as_input(_picture(config, sides), config).to(graph.example.device)
            compare(run_file, torch.cat((picture, picture.flip(3), picture)), detector, config)
    return seen


def compare(run_file: RunFile, images: Any, detector: Detector, config: ExportConfig) -> dict[str, Any]:
    """Compares the file's output with PyTorch's on the same images. Raises ExportError if they differ."""
    from trainer.inference.export_check import check_detections, check_predictions
    from trainer.model.postprocess import non_max_suppression

    expected = detector.model(images)[0].cpu()
    found = run_file(images)
    dtype = images.dtype
    if not config.with_nms:
        return {"largest_difference": check_predictions(expected, found, max(images.shape[2:]), dtype)}
    kept = non_max_suppression(
        expected, confidence_threshold=config.conf, iou_threshold=config.iou, max_detections=config.max_det
    )
    return {"equal_detections": check_detections(kept, found, config.conf, dtype)}


def _picture(config: ExportConfig, size_hw: tuple[int, int]) -> Any:
    from trainer.inference.export_check import check_picture

    return check_picture(Path(config.image) if config.image else None, size_hw)


def _as_input(images_bchw: Any, config: ExportConfig) -> Any:
    import torch

    return (images_bchw / 255).to(torch.float16 if config.half else torch.float32)


def _as_text(seen: dict[str, Any]) -> str:
    if "largest_difference" in seen:
        return f"within {seen['largest_difference']:.1e} of PyTorch"
    return f"{seen['equal_detections']} detections equal to PyTorch's"


if __name__ == "__main__":
    sys.exit(run())

"""``python -m trainer.inference.export --weights FILE --format onnx``: a trained model as a file for other programs."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from trainer.protocol import (
    DEFAULT_IMAGE_SIZE,
    MAX_DETECTIONS,
    PREDICT_CONFIDENCE,
    PREDICT_IOU,
    RunFiles,
    replace_text,
    replacing,
)
from trainer.runtime.process_guard import guard_worker

if TYPE_CHECKING:
    from trainer.inference.detector import Detector
    from trainer.inference.export_formats import Graph, RunFile
    from trainer.runtime.session import Session

DEFAULT_OPSET = 17


def run(arguments: Sequence[str] | None = None) -> int:
    """Parse the command line and export; the exit code."""
    options = parse(arguments)
    guard_worker(RunFiles(options.run_dir).logs.folder)
    # Only now: importing torch takes seconds.
    from trainer.runtime.session import run_entry

    return run_entry(lambda session: export(session, options), options.run_dir)


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """The options."""
    parser = argparse.ArgumentParser(prog="python -m trainer.inference.export", description="Export a trained model.")
    parser.add_argument("--weights", type=Path, required=True)
    parser.add_argument("--run-dir", type=Path, required=True, help="where logs and summary go")
    parser.add_argument("--format", default="onnx", choices=("onnx", "torchscript"))
    parser.add_argument("--out", type=Path, help="the file; beside the weights unless given")
    parser.add_argument("--imgsz", type=int, help=f"image side; the one trained on, else {DEFAULT_IMAGE_SIZE}")
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--dynamic", action="store_true", help="any batch and any sides in steps of the stride")
    parser.add_argument("--half", action="store_true", help="float16")
    parser.add_argument("--opset", type=int, default=DEFAULT_OPSET)
    parser.add_argument("--with-nms", action="store_true", help="suppression in the graph (ONNX)")
    parser.add_argument("--conf", type=float, default=PREDICT_CONFIDENCE, help="for --with-nms")
    parser.add_argument("--iou", type=float, default=PREDICT_IOU, help="for --with-nms")
    parser.add_argument("--max-det", type=int, default=MAX_DETECTIONS, help="for --with-nms")
    parser.add_argument("--image", type=Path, help="picture for the check; an embedded one unless given")
    return parser.parse_args(arguments)


def export(session: Session, options: argparse.Namespace) -> None:
    """Write the file beside its place, check it against PyTorch, and only then put it there."""
    from trainer.errors import ConfigError
    from trainer.inference.detector import as_dtype, load_detector
    from trainer.inference.export_formats import SUFFIXES, require

    if options.with_nms and options.format != "onnx":
        raise ConfigError("--with-nms is for ONNX", seen=f"--format {options.format}", expected="--format onnx")
    if options.format == "onnx":
        require("onnx")
        require("onnxruntime")
    import torch

    detector = load_detector(options.weights, session.device)
    if options.half:
        as_dtype(detector.model, torch.float16)
    image_size = detector.image_size(options.imgsz, session.reporter)
    target = options.out or options.weights.with_suffix(SUFFIXES[options.format])
    session.heartbeat.beat("save")
    try:
        graph = make_graph(detector, options, image_size)
        with replacing(target) as temporary:
            seen = write_and_check(graph, detector, options, temporary, image_size)
    except OSError as error:
        raise ConfigError("the exported file cannot be written", seen=str(error), expected="--out FILE") from None
    summary = {"file": str(target), "bytes": target.stat().st_size, **graph.metadata, **seen}
    session.reporter.say(f"{target} ({summary['bytes'] / 1e6:.1f} MB), {options.format}, {_as_text(seen)}")
    replace_text(RunFiles(options.run_dir).summary, json.dumps(summary, indent=2) + "\n")


def make_graph(detector: Detector, options: argparse.Namespace, image_size: int) -> Graph:
    """The module to record, an example of its input, and what the file will say of itself."""
    from trainer import __version__
    from trainer.inference.export_check import check_picture
    from trainer.inference.export_formats import Graph
    from trainer.inference.export_graph import ExportedDetector, SuppressedDetector

    module: Any = ExportedDetector(detector.model)
    metadata = {
        "names": json.dumps(list(detector.names)),
        "stride": str(detector.stride),
        "imgsz": json.dumps([image_size, image_size]),
        "batch": str(options.batch),
        "dynamic": json.dumps(options.dynamic),
        "precision": "float16" if options.half else "float32",
        "format": options.format,
        "yolo_launch": __version__,
    }
    if options.format == "onnx":
        metadata["opset"] = str(options.opset)
    if options.with_nms:
        limits = {
            "confidence_threshold": options.conf,
            "iou_threshold": options.iou,
            "max_detections": options.max_det,
        }
        module = SuppressedDetector(detector.model, **limits)
        metadata["nms"] = json.dumps(limits)
    picture = check_picture(options.image, (image_size, image_size))
    example = _as_input(picture, options).to(detector.device).repeat(options.batch, 1, 1, 1)
    output_name = "detections" if options.with_nms else "predictions"
    return Graph(module.eval(), example, output_name, metadata, options.dynamic, options.opset)


def write_and_check(
    graph: Graph, detector: Detector, options: argparse.Namespace, path: Path, image_size: int
) -> dict[str, Any]:
    """Write the file and run it; what was seen. Raises ExportError where it computes something else."""
    import torch

    from trainer.inference import export_formats
    from trainer.inference.export_check import check_picture

    run_file: RunFile
    with torch.no_grad():
        if options.format == "onnx":
            export_formats.write_onnx(graph, path)
            run_file = export_formats.open_onnx(path)
        else:
            export_formats.write_torchscript(graph, path)
            run_file = export_formats.open_torchscript(path, detector.device)
        seen = compare(run_file, graph.example, detector, options)
        if options.dynamic:
            # Another size and number of images, so that nothing of the example is left in the graph.
            sides = (image_size, max(image_size // 2 // detector.stride, 1) * detector.stride)
            picture = _as_input(check_picture(options.image, sides), options).to(graph.example.device)
            compare(run_file, torch.cat((picture, picture.flip(3), picture)), detector, options)
    return seen


def compare(run_file: RunFile, images: Any, detector: Detector, options: argparse.Namespace) -> dict[str, Any]:
    """The file's output beside PyTorch's on the same images."""
    from trainer.inference.export_check import check_detections, check_predictions
    from trainer.model.postprocess import non_max_suppression

    expected = detector.model(images)[0].cpu()
    found = run_file(images)
    dtype = images.dtype
    if not options.with_nms:
        return {"largest_difference": check_predictions(expected, found, max(images.shape[2:]), dtype)}
    kept = non_max_suppression(
        expected, confidence_threshold=options.conf, iou_threshold=options.iou, max_detections=options.max_det
    )
    return {"equal_detections": check_detections(kept, found, options.conf, dtype)}


def _as_input(images_bchw: Any, options: argparse.Namespace) -> Any:
    import torch

    return (images_bchw / 255).to(torch.float16 if options.half else torch.float32)


def _as_text(seen: dict[str, Any]) -> str:
    if "largest_difference" in seen:
        return f"within {seen['largest_difference']:.1e} of PyTorch"
    return f"{seen['equal_detections']} detections equal to PyTorch's"


if __name__ == "__main__":
    sys.exit(run())

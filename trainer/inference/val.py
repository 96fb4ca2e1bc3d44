"""Measures a trained model as one worker (``python -m trainer.inference.val --weights FILE --data YAML``)."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from trainer.protocol import (
    DEFAULT_IMAGE_SIZE,
    MAX_DETECTIONS,
    VAL_BATCH_SIZE,
    VAL_CONFIDENCE,
    VAL_IOU,
    RunFiles,
    replace_text,
)
from trainer.runtime.process_guard import guard_worker

if TYPE_CHECKING:
    from trainer.data.scan.label_cache import LabeledImages
    from trainer.evaluation.evaluator import Metrics
    from trainer.inference.detector import Detector
    from trainer.runtime.session import Session


def run(arguments: Sequence[str] | None = None) -> int:
    """Parse the command line and validate; the exit code."""
    options = parse(arguments)
    guard_worker(RunFiles(options.run_dir).logs.folder)
    # Only now: importing torch takes seconds.
    from trainer.runtime.session import run_entry

    return run_entry(lambda session: validate(session, options), options.run_dir)


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """The options of one worker; defaults are YOLOv5's."""
    parser = argparse.ArgumentParser(prog="python -m trainer.inference.val", description="Validate as one worker.")
    parser.add_argument("--weights", type=Path, required=True)
    parser.add_argument("--data", required=True, help="a data-set YAML")
    parser.add_argument("--run-dir", type=Path, required=True, help="where summary and pictures go")
    parser.add_argument("--split", default="val", choices=("train", "val", "test"))
    parser.add_argument("--imgsz", type=int, help=f"image side; the one trained on, else {DEFAULT_IMAGE_SIZE}")
    parser.add_argument(
        "--batch", type=int, default=VAL_BATCH_SIZE, help="images a batch; whole batches are dealt to workers"
    )
    parser.add_argument("--conf", type=float, default=VAL_CONFIDENCE)
    parser.add_argument("--iou", type=float, default=VAL_IOU, help="of non-maximum suppression")
    parser.add_argument("--max-det", type=int, default=MAX_DETECTIONS)
    parser.add_argument("--workers", type=int, help="loader processes of this worker")
    parser.add_argument("--half", action="store_true", help="float16 on a GPU")
    parser.add_argument("--noplots", action="store_true")
    parser.add_argument("--coco-json", type=Path, metavar="FILE", help="COCO results")
    return parser.parse_args(arguments)


def validate(session: Session, options: argparse.Namespace) -> None:
    """Measure the model together with all peers; rank 0 then prints, writes and draws."""
    from trainer.inference.detector import load_detector
    from trainer.inference.val_data import load_split

    detector = load_detector(options.weights, session.device, half=options.half)
    image_size = detector.image_size(options.imgsz, session.reporter)
    dataset, images = load_split(session, options.data, options.split, detector)
    detector.warm_up(image_size)
    metrics = measure(session, options, detector, images, image_size, dataset.names)
    if session.collectives.env.is_main:
        report(session, options, metrics, images, image_size, dataset.names)


def measure(
    session: Session,
    options: argparse.Namespace,
    detector: Detector,
    images: LabeledImages,
    image_size: int,
    names: Sequence[str],
) -> Metrics:
    """The metrics over the batches of all ranks, the same on each."""
    from trainer.data.loader import ValidationData, loader_workers, make_validation_loader
    from trainer.data.sampler import ValidationBatches
    from trainer.evaluation.evaluator import EvaluationSettings, Evaluator

    env, reporter = session.collectives.env, session.reporter
    batches = ValidationBatches(images.shapes_hw, options.batch, image_size=image_size, stride=detector.stride)
    loader = make_validation_loader(
        ValidationData(images, image_size=image_size),
        batches,
        rank=env.rank,
        world_size=env.world_size,
        num_workers=loader_workers(options.workers, env.local_world_size, session.device.type),
        pin_memory=session.device.type == "cuda",
    )
    settings = EvaluationSettings(
        confidence_threshold=options.conf,
        nms_iou_threshold=options.iou,
        max_detections=options.max_det,
        keep_detections=not options.noplots or options.coco_json is not None,
    )
    evaluator = Evaluator(num_classes=len(names), names=names, settings=settings)

    def on_batch(done: int, total: int) -> None:
        session.heartbeat.beat("val", step=done)
        reporter.phase("validating", done, total)

    session.heartbeat.beat("val")
    reporter.start_epoch(0, 1, len(loader), 0)
    reporter.phase("validating", 0, len(loader))
    metrics = evaluator.evaluate(
        detector.model, loader, device=session.device, gather=session.collectives.gather, on_batch=on_batch
    )
    reporter.stop()
    return metrics


def report(
    session: Session,
    options: argparse.Namespace,
    metrics: Metrics,
    images: LabeledImages,
    image_size: int,
    names: Sequence[str],
) -> None:
    """Say, write and draw what was measured; the summary comes last and marks the end."""
    from trainer.inference import coco_results, val_report

    say = session.reporter.say
    for number, line in enumerate(val_report.table_lines(metrics)):
        say(line, "" if number else "bold")
    say(val_report.speed_line(metrics))
    summary = {"run_dir": str(options.run_dir), **val_report.summarize(metrics)}
    if options.coco_json is not None:
        assert metrics.detections is not None
        count = coco_results.write_coco_json(options.coco_json, metrics.detections, images, names)
        say(f"{count} detections in {options.coco_json}")
        numbers = coco_results.coco_numbers(metrics.detections, images, names) if metrics.is_judged else {}
        if numbers is None:
            say('COCO\'s own numbers need an extra: pip install "yolo-launch[coco]"')
        elif numbers:
            summary["coco"] = numbers
            say(f"by COCO's definitions: mAP50 {numbers['map50']:.3f}, mAP50-95 {numbers['map5095']:.3f}")
    if not options.noplots:
        val_report.draw(metrics, images, names, image_size, options.run_dir)
    replace_text(RunFiles(options.run_dir).summary, json.dumps(summary, indent=2) + "\n")


if __name__ == "__main__":
    sys.exit(run())

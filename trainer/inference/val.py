"""Measures a trained model as one worker (``python -m trainer.inference.val CONFIG --run-dir DIR``)."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from trainer.config.inference import ValConfig
from trainer.protocol import RunFiles, replace_text
from trainer.runtime.session import Session, run_worker

if TYPE_CHECKING:
    from trainer.data.scan.label_cache import LabeledImages
    from trainer.evaluation.evaluator import Metrics
    from trainer.inference.detector import Detector
    from trainer.inference.val_data import SplitToMeasure


def run(arguments: Sequence[str] | None = None) -> int:
    """Validates as the command line says; returns the exit code."""
    return run_worker("trainer.inference.val", "Measure a trained model", ValConfig.read, validate, arguments)


def validate(session: Session, config: ValConfig) -> None:
    """Measures the model together with all peers; rank 0 then prints, writes and draws."""
    from trainer.inference.detector import load_detector
    from trainer.inference.val_data import load_split

    detector = load_detector(Path(config.weights), session.device, half=config.half)
    image_size = detector.image_size(config.imgsz, session.reporter)
    split = load_split(
        session, config.data, config.split, detector, leave_out=config.leave_out, max_bad_share=config.max_bad_share
    )
    detector.warm_up(image_size)
    metrics = measure(session, config, detector, split.images, image_size, split.names)
    if session.collectives.env.is_main:
        report(session, config, metrics, split, image_size)


def measure(
    session: Session,
    config: ValConfig,
    detector: Detector,
    images: LabeledImages,
    image_size: int,
    names: Sequence[str],
) -> Metrics:
    """Returns the metrics over the batches of all ranks, the same on each."""
    from trainer.data.loader import ValidationData, loader_workers, make_validation_loader
    from trainer.data.sampler import ValidationBatches
    from trainer.evaluation.evaluator import EvaluationSettings, Evaluator

    env, reporter = session.collectives.env, session.reporter
    batches = ValidationBatches(images.shapes_hw, config.batch, image_size=image_size, stride=detector.stride)
    loader = make_validation_loader(
        ValidationData(images, image_size=image_size),
        batches,
        rank=env.rank,
        world_size=env.world_size,
        num_workers=loader_workers(config.workers, env.local_world_size, session.device.type),
        pin_memory=session.device.type == "cuda",
    )
    settings = EvaluationSettings(
        confidence_threshold=config.conf,
        nms_iou_threshold=config.iou,
        max_detections=config.max_det,
        keep_detections=not config.noplots or config.coco_json is not None,
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
    config: ValConfig,
    metrics: Metrics,
    split: SplitToMeasure,
    image_size: int,
) -> None:
    """Reports, writes and draws what was measured; the summary comes last and marks the end."""
    from trainer.inference import coco_results, val_report

    say = session.reporter.say
    for number, line in enumerate(val_report.table_lines(metrics)):
        say(line, "" if number else "bold")
    say(val_report.speed_line(metrics))
    images, names = split.images, split.names
    summary = {"run_dir": str(session.run_dir), **val_report.summarize(metrics)}
    summary["data"] = {config.split: split.report.to_dict()}
    if config.coco_json is not None:
        assert metrics.detections is not None
        count = coco_results.write_coco_json(Path(config.coco_json), metrics.detections, images, names)
        say(f"{count} detections in {config.coco_json}")
        numbers = coco_results.coco_numbers(metrics.detections, images, names) if metrics.is_judged else {}
        if numbers is None:
            say('COCO\'s own numbers need an extra: pip install "yolo-launch[coco]"')
        elif numbers:
            summary["coco"] = numbers
            say(f"by COCO's definitions: mAP50 {numbers['map50']:.3f}, mAP50-95 {numbers['map5095']:.3f}")
    if not config.noplots:
        val_report.draw(metrics, images, names, image_size, session.run_dir)
    replace_text(RunFiles(session.run_dir).summary, json.dumps(summary, indent=2) + "\n")


if __name__ == "__main__":
    sys.exit(run())

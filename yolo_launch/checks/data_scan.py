"""Scans the data set that doctor is asked about: every image and label file, and what splits have in common."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from trainer.config.train import TrainConfig
from trainer.data.demo.dataset import default_cache_dir
from trainer.data.formats.load import load_dataset
from trainer.data.scan.label_cache import LabeledImages
from trainer.data.scan.labels import Labels
from trainer.data.scan.repeats import refuse_leakage
from trainer.data.scan.scan import scan_split
from trainer.data.scan.small_boxes import LEAST_PX, find_small_boxes
from trainer.errors import UserError
from yolo_launch.spec import Finding

CHECK = "data set"


def scan_data(config: TrainConfig) -> tuple[list[Finding], dict[str, Any]]:
    """Scans every split as training does and leaves the same cache; returns the findings, and each split's report."""
    findings: list[Finding] = []
    reports: dict[str, Any] = {}
    scanned: dict[str, LabeledImages] = {}
    try:
        dataset = load_dataset(config.data, val=config.val_data, leave_out=config.leave_out)
    except UserError:
        return [], {}  # which the check of the file says
    for split in dataset.splits:
        try:
            images, report = scan_split(
                dataset,
                split,
                num_classes=dataset.num_classes,
                single_cls=config.single_cls,
                max_bad_share=config.max_bad_share,
                cache_dir=default_cache_dir(),
            )
        except UserError as error:
            findings.append(_refused(split, error))
            continue
        small, enough = find_small_boxes(images, config.imgsz, Labels(dataset, split))
        report = replace(report, too_small=small)
        scanned[split], reports[split] = images, report.to_dict()
        findings.append(Finding(CHECK, "ok", f"{split}: {report.headline()}"))
        for words, tally in report.problems():
            text = "\n".join([f"{split}: {tally.count} {words}", *tally.examples])
            is_small = tally is small
            advice = f"--imgsz {enough}, at which 99 of 100 boxes have {LEAST_PX:g} pixels" if is_small else ""
            findings.append(Finding(CHECK, "warning", text, advice or "docs/data.md says what each reason means"))
    for split in ("val", "test"):
        if split in scanned and "train" in scanned:
            try:
                refuse_leakage(scanned["train"], scanned[split], split, allowed=False)
            except UserError as error:
                findings.append(_refused(split, error))
    return findings, reports


def _refused(split: str, error: UserError) -> Finding:
    seen = "\n".join(part for part in (error.what, error.seen) if part)
    return Finding(CHECK, "failure", f"{split}: {seen}", error.next_command)

"""Checks a whole data set: everything worth knowing before it is trained on, with files and lines."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np

from trainer.data.curation.overview import SplitOverview, overview_of
from trainer.data.dataset import DatasetFile, relative_name
from trainer.data.scan.labels import Labels
from trainer.data.scan.repeats import refuse_leakage
from trainer.data.scan.report import Tally, tally
from trainer.data.scan.small_boxes import LEAST_PX, find_small_boxes
from trainer.errors import DataError, UserError
from yolo_launch.data_sets.scanned import Pool, Progress, ScannedSplit
from yolo_launch.spec import Finding

CHECK = "data set"


@dataclass(frozen=True)
class DatasetCheck:
    """What a check found."""

    findings: list[Finding]
    """failure: training refuses it; warning: worth a look."""
    overviews: dict[str, SplitOverview]
    near: Tally
    """Groups of images that look the same within a split, each as one example."""
    near_across: Tally
    """The same across splits: what is learned from one is asked of the other."""

    @property
    def is_usable(self) -> bool:
        """Returns False if training would refuse the data set."""
        return not any(found.level == "failure" for found in self.findings)

    def to_dict(self) -> dict[str, Any]:
        """Returns the check as plain values."""
        return asdict(self)


def check_data(
    dataset: DatasetFile, scanned: dict[str, ScannedSplit], image_size: int, on_progress: Progress | None = None
) -> DatasetCheck:
    """Returns what there is to know; ``on_progress`` is told (images done, in all) while they are compared."""
    findings = [finding for split, each in scanned.items() for finding in _of_split(dataset, split, each, image_size)]
    pool = Pool({split: each.images for split, each in scanned.items() if each.images is not None})
    findings += _leaks(pool)
    overviews = {split: overview_of(images, dataset.num_classes, image_size) for split, images in pool.splits.items()}
    findings += _of_overviews(dataset, overviews)
    near, across = near_tallies(dataset, pool, pool.near(on_progress))
    for what, found in (
        ("groups of images that look the same within a split", near),
        ("groups of images that look the same are in several splits, so that figures flatter", across),
    ):
        if found.count:
            advice = "look at them; yolo-launch data split keeps them together, data dedupe --near leaves one of each"
            findings.append(_warning(f"{found.count} {what}", found, advice))
    return DatasetCheck(findings, overviews, near, across)


def near_tallies(dataset: DatasetFile, pool: Pool, groups: np.ndarray) -> tuple[Tally, Tally]:
    """Returns the groups of more than one image: those within one split, and those across several."""
    members: dict[int, list[int]] = defaultdict(list)
    for index, group in enumerate(groups.tolist()):
        members[group].append(index)
    paths, names = pool.paths, pool.names
    within: list[str] = []
    across: list[str] = []
    for group in members.values():
        texts = list(dict.fromkeys(f"{names[at]}: {relative_name(dataset, paths[at])}" for at in group))
        if len(texts) > 1:
            shown = texts if len(texts) <= 3 else [*texts[:3], f"{len(texts) - 3} more"]
            (across if len({names[at] for at in group}) > 1 else within).append(", ".join(shown))
    return tally(within), tally(across)


def _of_split(dataset: DatasetFile, split: str, scanned: ScannedSplit, image_size: int) -> list[Finding]:
    if scanned.images is None or scanned.report is None:
        assert scanned.refused is not None
        return [_refused(split, scanned.refused)]
    small, enough = find_small_boxes(scanned.images, image_size, Labels(dataset, split))
    report = replace(scanned.report, too_small=small)
    findings = [Finding(CHECK, "ok", f"{split}: {report.headline()}")]
    for words, found in report.problems():
        sized = f"--imgsz {enough}, at which 99 of 100 boxes have {LEAST_PX:g} pixels"
        advice = sized if found is small else "docs/data.md says what each reason means"
        findings.append(_warning(f"{split}: {found.count} {words}", found, advice))
    return findings


def _leaks(pool: Pool) -> list[Finding]:
    findings = []
    for split in ("val", "test"):
        if split in pool.splits and "train" in pool.splits:
            try:
                refuse_leakage(pool.splits["train"], pool.splits[split], split, allowed=False)
            except DataError as error:
                findings.append(_refused(split, error))
    return findings


def _of_overviews(dataset: DatasetFile, overviews: dict[str, SplitOverview]) -> list[Finding]:
    findings = []
    for split, seen in overviews.items():
        absent = [dataset.names[at] for at, count in enumerate(seen.boxes_by_class) if not count]
        if absent:
            text = f"{split}: {len(absent)} classes without an object: {', '.join(absent[:10])}"
            findings.append(Finding(CHECK, "warning", text, "label some, or leave the names out"))
        if seen.copies.count:
            text = f"{split}: {seen.copies.count} boxes lie on another of their class"
            findings.append(_warning(text, seen.copies, "most often an object that was labeled twice"))
    return findings


def _warning(text: str, found: Tally, advice: str) -> Finding:
    return Finding(CHECK, "warning", "\n".join([text, *found.examples]), advice)


def _refused(split: str, error: UserError) -> Finding:
    seen = "\n".join(part for part in (error.what, error.seen) if part)
    return Finding(CHECK, "failure", f"{split}: {seen}", error.next_command)

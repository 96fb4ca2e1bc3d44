"""Reads and scans the data set of a run."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

from trainer.data.dataset import YOLO_YAML, DatasetFile
from trainer.data.formats.load import load_dataset
from trainer.data.scan.label_cache import LabeledImages
from trainer.data.scan.labels import Labels
from trainer.data.scan.repeats import refuse_leakage
from trainer.data.scan.report import ScanReport
from trainer.data.scan.small_boxes import LEAST_PX, find_small_boxes
from trainer.data.shared_scan import report_problem, scan_together
from trainer.errors import ConfigError
from trainer.protocol import MAX_BAD_SHARE
from trainer.runtime.distributed import Collectives
from trainer.runtime.heartbeat import HeartbeatWriter
from trainer.runtime.reporter import Reporter


@dataclass(frozen=True)
class Data:
    """A data set as this run sees it."""

    dataset: DatasetFile
    names: tuple[str, ...]
    train: LabeledImages
    val: LabeledImages
    reports: dict[str, ScanReport] = field(default_factory=dict)
    """What the scan of each split found."""

    @property
    def can_measure(self) -> bool:
        """Returns whether a validation image has a label; without one there is nothing to compare detections with."""
        return len(self.val.boxes.rows) > 0


def load_data(  # noqa: PLR0913 (what is read and how, and who takes part)
    path: str,
    *,
    val_path: str = "",
    leave_out: Sequence[str] = (),
    single_cls: bool,
    max_bad_share: float = MAX_BAD_SHARE,
    allow_leakage: bool = False,
    collectives: Collectives,
    reporter: Reporter,
    heartbeat: HeartbeatWriter,
) -> Data:
    """Reads the data set and scans both splits, once per machine. Raises DataError or ConfigError."""
    if not path:
        raise ConfigError(
            "no data set was given",
            seen="data: ''",
            expected="the path of a data-set YAML in --data",
            next_command="yolo-launch train --data FILE.yaml",
        )
    dataset = collectives.main_first(lambda _: load_dataset(path, val=val_path, leave_out=leave_out))
    if dataset.format != YOLO_YAML:
        reporter.say(f"data: {path} was read as {dataset.format}")
    for split, table in dataset.annotations.items():
        for reason, count in table.left_out.items():
            reporter.say(f"{split}: {count} left out: {reason}")
    names = ("item",) if single_cls and len(dataset.names) > 1 else dataset.names

    def scan(split: str) -> tuple[LabeledImages, ScanReport]:
        return scan_together(
            dataset,
            split,
            single_cls=single_cls,
            max_bad_share=max_bad_share,
            collectives=collectives,
            reporter=reporter,
            heartbeat=heartbeat,
        )

    (train, found_in_train), (val, found_in_val) = scan("train"), scan("val")
    warning = collectives.from_main(lambda: refuse_leakage(train, val, "val", allowed=allow_leakage))
    if warning:
        reporter.warn(warning)
    data = Data(dataset, names, train, val, {"train": found_in_train, "val": found_in_val})
    if not data.can_measure:
        place = Labels(dataset, "val").place(data.val.paths[0])
        reporter.warn(
            f"no validation image has a label (looked for {place}): this run cannot be "
            "judged. No epoch will be the best one, and none will end it early"
        )
    return data


def count_small_boxes(data: Data, image_size: int, reporter: Reporter) -> Data:
    """Counts and reports the boxes too small to learn at ``image_size``; returns the data with these counts."""
    reports = dict(data.reports)
    for split, images in (("train", data.train), ("val", data.val)):
        tally, enough = find_small_boxes(images, image_size, Labels(data.dataset, split))
        if not tally.count:
            continue
        reports[split] = replace(reports[split], too_small=tally)
        of = f"of {reports[split].boxes} boxes are below {LEAST_PX:g} pixels at --imgsz {image_size}"
        report_problem(reporter, split, f"{of}, too small to learn (99 of 100 are larger at --imgsz {enough})", tally)
    return replace(data, reports=reports)

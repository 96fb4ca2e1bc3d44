"""Scans a split once per machine for all ranks."""

from __future__ import annotations

from collections.abc import Sequence

from trainer.data.dataset import DatasetFile
from trainer.data.demo.dataset import default_cache_dir
from trainer.data.scan.label_cache import LabeledImages
from trainer.data.scan.report import ScanReport
from trainer.data.scan.scan import scan_split
from trainer.errors import DataError
from trainer.runtime.distributed import Collectives
from trainer.runtime.heartbeat import HeartbeatWriter
from trainer.runtime.reporter import Reporter


def scan_together(
    dataset: DatasetFile,
    split: str,
    *,
    single_cls: bool = False,
    collectives: Collectives,
    reporter: Reporter,
    heartbeat: HeartbeatWriter,
) -> LabeledImages:
    """One split of a data set, scanned once per machine; a collective call. Raises DataError."""

    def scan_as(is_writer: bool) -> LabeledImages:
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

    images = collectives.main_first(scan_as)
    check_same_images(split, collectives.gather(len(images)))
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

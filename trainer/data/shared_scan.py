"""Scans a split once per machine for all ranks."""

from __future__ import annotations

from collections.abc import Sequence

from trainer.data.dataset import DatasetFile
from trainer.data.demo.dataset import default_cache_dir
from trainer.data.scan.label_cache import LabeledImages
from trainer.data.scan.report import ScanReport, Tally
from trainer.data.scan.scan import scan_split
from trainer.errors import DataError
from trainer.protocol import MAX_BAD_SHARE
from trainer.runtime.distributed import Collectives
from trainer.runtime.heartbeat import HeartbeatWriter
from trainer.runtime.reporter import Reporter


def scan_together(
    dataset: DatasetFile,
    split: str,
    *,
    single_cls: bool = False,
    max_bad_share: float = MAX_BAD_SHARE,
    collectives: Collectives,
    reporter: Reporter,
    heartbeat: HeartbeatWriter,
) -> tuple[LabeledImages, ScanReport]:
    """Returns the usable images of a split and what was found; a collective call. Raises DataError.

    One rank of a machine scans; the others then read its cache.
    """

    def scan_as(is_writer: bool) -> tuple[LabeledImages, ScanReport]:
        images, report = scan_split(
            dataset,
            split,
            num_classes=dataset.num_classes,
            single_cls=single_cls,
            max_bad_share=max_bad_share,
            cache_dir=default_cache_dir(),
            writer=is_writer,
            on_progress=lambda done, total: heartbeat.beat("scan", step=done),
        )
        if is_writer:
            report_scan(reporter, split, report)
        return images, report

    images, report = collectives.main_first(scan_as)
    check_same_images(split, collectives.gather(len(images)))
    return images, report


def check_same_images(split: str, counts: Sequence[int]) -> None:
    """Raises DataError if the ranks do not count the same: they would not agree on an epoch's batches."""
    if len(set(counts)) > 1:
        raise DataError(
            f"the machines have different usable '{split}' images",
            seen=f"{', '.join(str(count) for count in counts)}, rank by rank",
            expected="the same files on every machine",
            next_command="copy the data set anew to the machines that differ",
        )


def report_scan(reporter: Reporter, split: str, report: ScanReport) -> None:
    """Reports one line for a split, and up to five examples of each problem."""
    reporter.say(f"{split}: {report.headline()}")
    for what, tally in report.problems():
        report_problem(reporter, split, what, tally)


def report_problem(reporter: Reporter, split: str, what: str, tally: Tally) -> None:
    """Reports a count of something and its examples."""
    reporter.warn(f"{split}: {tally.count} {what}, for example")
    for example in tally.examples:
        reporter.say(f"    {example}")

"""Runs ``yolo-launch data check DATA``: says everything that is worth knowing of a data set."""

from __future__ import annotations

import typer

from trainer.data.curation.overview import SIZES
from trainer.data.dataset import DatasetFile
from yolo_launch.cli.conclude import conclude
from yolo_launch.cli.console import Console
from yolo_launch.cli.progress import counting
from yolo_launch.data_sets.check import DatasetCheck, check_data
from yolo_launch.data_sets.options import CheckOptions
from yolo_launch.data_sets.scanned import scan_all
from yolo_launch.errors import ExitCode


def check(ctx: typer.Context, options: CheckOptions) -> None:
    """Scans every split, compares all images, and says what was found; exit code 2 for what training refuses."""
    console = Console(json_mode=options.json)
    with counting("images read") as progress:
        dataset, scanned = scan_all(options.data, progress)
    with counting("images compared") as progress:
        found = check_data(dataset, scanned, options.imgsz, progress)
    reports = {split: each.report.to_dict() for split, each in scanned.items() if each.report is not None}
    conclude(
        console,
        ExitCode.DONE if found.is_usable else ExitCode.USAGE,
        result={"data": str(dataset.path), "classes": list(dataset.names), **found.to_dict(), "reports": reports},
        show=lambda: _show(dataset, found, options.imgsz, console),
    )


def _show(dataset: DatasetFile, found: DatasetCheck, image_size: int, console: Console) -> None:
    splits = list(found.overviews)
    if splits:
        console.table("objects by class (images)", ("class", *splits), _class_rows(dataset, found))
        rows = [[name, *(str(found.overviews[split].boxes_by_size[name]) for split in splits)] for name, _ in SIZES]
        limits = ", ".join(f"{name} below {limit:g}" for name, limit in SIZES[1:-1])
        console.table(f"objects by size at {image_size}, in pixels: {limits}", ("size", *splits), rows)
        console.table("images by width and height", ("split", "images"), _size_rows(found))
    for finding in found.findings:
        console.finding(finding)


def _class_rows(dataset: DatasetFile, found: DatasetCheck) -> list[list[str]]:
    rows = []
    for index, name in enumerate(dataset.names):
        cells = [f"{seen.boxes_by_class[index]} ({seen.images_by_class[index]})" for seen in found.overviews.values()]
        rows.append([name, *cells])
    return rows


def _size_rows(found: DatasetCheck) -> list[list[str]]:
    rows = []
    for split, seen in found.overviews.items():
        rows.append([split, ", ".join(f"{count} {size}" for size, count in seen.image_sizes.items())])
    return rows

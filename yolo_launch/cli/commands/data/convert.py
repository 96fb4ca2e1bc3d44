"""Runs ``yolo-launch data convert DATA``: writes a data set of any format as label files and a YAML file."""

from __future__ import annotations

from pathlib import Path

import typer

from trainer.data.curation.write_yolo import write_yolo
from yolo_launch.cli.conclude import conclude
from yolo_launch.cli.console import Console
from yolo_launch.cli.progress import counting
from yolo_launch.data_sets.options import ConvertOptions
from yolo_launch.data_sets.scanned import default_folder, pool_of, scan_all
from yolo_launch.errors import ExitCode, LaunchError

FORMATS = ("yolo",)


def convert(ctx: typer.Context, options: ConvertOptions) -> None:
    """Reads every split and writes it; what a scan leaves out is left out here, and said."""
    console = Console(json_mode=options.json)
    if options.to not in FORMATS:
        raise LaunchError("This format is not written.", seen=f"--to {options.to}", expected=" or ".join(FORMATS))
    with counting("images read") as progress:
        dataset, scanned = scan_all(options.data, progress)
    pool = pool_of(scanned)
    for split, each in scanned.items():
        for words, found in each.report.problems() if each.report is not None else ():
            console.note(f"{split}: {found.count} {words}, such as {found.examples[0]}")
    folder = Path(options.out) if options.out else default_folder(dataset, "yolo")
    file = write_yolo(dataset, pool.splits, folder, copies=options.copy)
    counts = {split: len(images) for split, images in pool.splits.items()}

    def show() -> None:
        console.line(f"{', '.join(f'{count} {split}' for split, count in counts.items())} images -> {folder}")
        console.line(f"yolo-launch train --data {file}")

    conclude(console, ExitCode.DONE, result={"file": str(file), "images": counts}, show=show)

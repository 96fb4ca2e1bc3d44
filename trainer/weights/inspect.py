"""Describes a weights file and converts it into this project's own: ``python -m trainer.weights.inspect FILE``."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from trainer.errors import UserError, WeightsError
from trainer.protocol import EXIT_USAGE, replacing

_MAX_NAMES_SHOWN = 12


def run(arguments: Sequence[str] | None = None) -> int:
    """Parses the command line, describes the file, converts it if asked to, and returns the exit code."""
    parser = argparse.ArgumentParser(prog="python -m trainer.weights.inspect", description="What is in a weights file.")
    parser.add_argument("file", type=Path, help="a .pt file of YOLOv5 or yolo-launch, or a .safetensors file")
    parser.add_argument("--convert", type=Path, metavar="OUT", help="write weights of yolo-launch: .pt or .safetensors")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    options = parser.parse_args(arguments)
    try:
        if options.convert is not None:
            check_target(options.file, options.convert)
        # Imported after the checks, because importing torch takes seconds.
        from trainer.weights.load import build_loaded, load_weights

        loaded = load_weights(options.file)
        report = describe_weights(loaded)
        if options.convert is not None:
            build_loaded(loaded)
            convert_weights(loaded, options.convert)
            report["converted_to"] = str(options.convert)
    except UserError as error:
        print(json.dumps({"error": error.to_dict()}) if options.json else error, file=sys.stderr)
        return EXIT_USAGE
    print(json.dumps(report) if options.json else as_text(report))
    return 0


def describe_weights(loaded: Any) -> dict[str, Any]:
    """Returns plain facts of a ``LoadedWeights``: kind, classes, sizes, facts of its run, and problems."""
    import torch

    from trainer.weights.load import build_loaded

    trainable = [
        tensor
        for key, tensor in loaded.state.items()
        if not key.endswith(("running_mean", "running_var", "num_batches_tracked", ".anchors"))
    ]
    problems = [
        f"{key} is not finite" for key, tensor in loaded.state.items() if not bool(torch.isfinite(tensor).all())
    ]
    try:
        build_loaded(loaded)
    except WeightsError as error:
        problems.append(f"{error.what} ({error.seen})")
    definition = loaded.definition
    return {
        "file": str(loaded.path),
        "bytes": loaded.path.stat().st_size,
        "kind": loaded.kind,
        "model": definition.get("source"),
        "layers": sum(len(definition[part]) for part in ("backbone", "head")),
        "parameters": sum(tensor.numel() for tensor in trainable),
        "tensors": len(loaded.state),
        "classes": len(loaded.names),
        "names": list(loaded.names),
        "stride": list(loaded.stride),
        "anchors": definition.get("anchors"),
        "image_size": loaded.image_size,
        **loaded.details,
        "notes": list(loaded.notes),
        "problems": problems,
    }


def as_text(report: dict[str, Any]) -> str:
    """Returns the report as text for people, one fact a line."""
    names = report["names"]
    shown = ", ".join(names[:_MAX_NAMES_SHOWN]) + (", ..." if len(names) > _MAX_NAMES_SHOWN else "")
    rows = [
        ("file", f"{report['file']} ({report['bytes'] / 1e6:.1f} MB)"),
        ("kind", {"yolov5": "YOLOv5 checkpoint"}.get(report["kind"], f"{report['kind']} weights")),
        ("model", f"{report['model']}: {report['layers']} layers, {report['parameters']:,} parameters"),
        ("tensors", f"{report['tensors']} of the {report.get('weights_of', 'model')}"),
        ("stored as", report.get("precision")),
        ("classes", f"{report['classes']}: {shown}"),
        ("stride", ", ".join(map(str, report["stride"]))),
        ("image size", report["image_size"]),
        ("epoch", report.get("epoch")),
        ("best epoch", report.get("best_epoch")),
        ("best fitness", report.get("best_fitness")),
        ("optimizer", "kept, so training could resume" if report.get("has_optimizer") else None),
        ("date", report.get("date")),
        ("note", "; ".join(report["notes"]) or None),
        ("problem", "; ".join(report["problems"]) or None),
        ("converted to", report.get("converted_to")),
    ]
    return "\n".join(f"{label + ':':<14}{value}" for label, value in rows if value is not None)


def check_target(source: Path, target: Path) -> None:
    """Raises WeightsError for a name that cannot be written, before any file is read."""
    if target.suffix not in (".pt", ".safetensors"):
        raise WeightsError(
            "--convert writes two kinds of file", seen=str(target), expected="a name in .pt or .safetensors"
        )
    if target.exists() and source.exists() and target.samefile(source):
        raise WeightsError("--convert would overwrite the file it reads", seen=str(target), expected="another name")
    if not target.absolute().parent.is_dir():
        raise WeightsError(
            "the folder for --convert is missing", seen=str(target.parent), expected="an existing folder"
        )


def convert_weights(loaded: Any, target: Path) -> None:
    """Writes the weights as this project's own: ``.pt`` as a checkpoint without optimizer, or ``.safetensors``.

    Raises WeightsError, and leaves no file behind, if the disk or a missing extra prevents the conversion.
    """
    from trainer import __version__
    from trainer.weights.checkpoint import FORMAT, write_checkpoint
    from trainer.weights.load import safetensors_library

    header = {
        "definition": loaded.definition,
        "names": list(loaded.names),
        "stride": list(loaded.stride),
        "image_size": loaded.image_size,
        "versions": {"yolo_launch": __version__},
    }
    try:
        if target.suffix == ".safetensors":
            library = safetensors_library()
            with replacing(target) as temporary:
                library.torch.save_file(loaded.state, temporary, {"format": "pt", FORMAT: json.dumps(header)})
        else:
            write_checkpoint(target, {**header, "config": {}, "ema": {"model": loaded.state, "updates": 0}})
    except OSError as error:
        raise WeightsError(f"{target.name} could not be written", seen=f"{target}: {error}") from None


if __name__ == "__main__":
    sys.exit(run())

"""Describes files that are no usable checkpoints: failed downloads and files of other projects."""

from __future__ import annotations

import re
from pathlib import Path

from trainer.errors import WeightsError
from trainer.protocol import BEST_WEIGHTS

_SIGNATURES: tuple[tuple[bytes, str], ...] = (
    (b"\x1f\x8b", "a gzip archive; unpack it first"),
    (b"7z\xbc\xaf\x27\x1c", "a 7-Zip archive; unpack it first"),
    (b"Rar!", "a RAR archive; unpack it first"),
    (b"\x89HDF", "an HDF5 file, as Keras writes"),
    (b"\x89PNG", "a picture"),
    (b"\xff\xd8\xff", "a picture"),
    (b"%PDF", "a PDF"),
    (b"\x80", "a pickle that torch.save did not write"),
)
_ONNX = re.compile(rb"\x08[\x01-\x20](\x12.[\x20-\x7e]|:|B|\x1a)", re.DOTALL)
"""The number of the format's version, then the program that wrote it, or the graph (onnx.proto, ModelProto)."""
_EXPORTS = {
    ".engine": "a TensorRT engine",
    ".mlmodel": "a Core ML model",
    ".onnx": "an ONNX export",
    ".pb": "a TensorFlow graph",
    ".tflite": "a TensorFlow Lite model",
    ".torchscript": "a TorchScript export",
}
_HTML = re.compile(rb"^\s*(<!--.*?-->\s*)*<(!doctype|html|head|body|meta|\?xml)", re.IGNORECASE | re.DOTALL)
_LFS = re.compile(rb"^version https://git-lfs\S*/spec/v1\s(?:.*\s)?size (\d{1,20})\s", re.DOTALL)

_OTHER_PROJECTS: tuple[tuple[bytes, str], ...] = (
    (b"ultralytics.nn", "Ultralytics YOLOv8 or later"),
    (b"ultralytics.yolo", "Ultralytics YOLOv8 or later"),
    (b"ultralytics.utils", "Ultralytics YOLOv8 or later"),
    (b"yolov6.", "YOLOv6"),
    (b"yolox.", "YOLOX"),
    (b"mmengine.", "OpenMMLab"),
    (b"mmcv.", "OpenMMLab"),
    (b"mmdet.", "OpenMMLab"),
    (b"detectron2.", "Detectron2"),
    (b"super_gradients.", "SuperGradients"),
    (b"pytorch_lightning.", "PyTorch Lightning"),
    (b"lightning.", "PyTorch Lightning"),
    (b"fastai.", "fastai"),
    (b"torchvision.", "torchvision"),
    (b"transformers.", "Transformers"),
)


def describe_foreign_file(path: Path, head: bytes, size_bytes: int) -> WeightsError:
    """Returns the error for a file whose first bytes are not those of a checkpoint."""
    if size_bytes == 0:
        return WeightsError(
            f"{path.name} is empty",
            seen=f"{path}: 0 bytes",
            expected="a checkpoint",
            next_command="get it again",
        )
    if pointer := _LFS.match(head):
        return WeightsError(
            f"{path.name} is a Git LFS pointer, not the weights themselves",
            seen=f"{path}: {size_bytes} bytes that stand for a file of {int(pointer[1]):,}",
            expected="the file it points to",
            next_command="git lfs pull",
        )
    if _HTML.match(head):
        return WeightsError(
            f"{path.name} is a web page, not weights: the download got a page instead of the file",
            seen=f"{path}: {_page_title(head)}",
            expected="a checkpoint",
            next_command="download it again, and look at the address",
        )
    if head.lstrip().startswith(b"{") or head[8:9] == b"{":
        kind = "safetensors data, whose names end in .safetensors" if head[8:9] == b"{" else "JSON text"
    elif head[257:262] == b"ustar":
        kind = "a tar archive; if it contains a checkpoint, unpack it first"
    else:
        kind = next((kind for start, kind in _SIGNATURES if head.startswith(start)), f"starts with {head[:8]!r}")
        export = "an ONNX export" if _ONNX.match(head) else _EXPORTS.get(path.suffix.lower())
        if export:
            kind = f"{export}; --weights takes the checkpoint (.pt) that it was exported from"
    return WeightsError(
        f"{path.name} is not a checkpoint",
        seen=f"{path}: {size_bytes:,} bytes, {kind}",
        expected="a .pt file of YOLOv5 or of yolo-launch",
        next_command=f"--weights path/to/{BEST_WEIGHTS}",
    )


def truncated_file(path: Path, size_bytes: int, why: str) -> WeightsError:
    """Returns the error for a file that starts as a checkpoint and does not end as one."""
    return WeightsError(
        f"{path.name} is cut short or damaged: its end is missing",
        seen=f"{path}: {size_bytes:,} bytes ({why[:120]})",
        expected="the whole file",
        next_command="get or copy it again",
    )


def describe_foreign_names(path: Path, name: str, pickle: bytes) -> WeightsError:
    """Returns the error for a pickle with a name outside the tables: another project's class, or an attack."""
    # Text in the options of a YOLOv5 run may contain a project's name, so the refused name itself comes first.
    hints = [project for start, project in _OTHER_PROJECTS if name.encode(errors="replace").startswith(start)]
    hints += [project for start, project in _OTHER_PROJECTS[:3] if start in pickle]
    if hints:
        return WeightsError(
            f"{path.name} is a file of {hints[0]}, whose models yolo-launch does not build",
            seen=f"{path}: it holds {name}",
            expected="a .pt file of YOLOv5 (v4 to v7) or of yolo-launch",
            next_command=f"--weights path/to/{BEST_WEIGHTS}",
        )
    return WeightsError(
        f"{path.name} asks for {name}, which no YOLOv5 checkpoint needs; it was refused and nothing was executed",
        seen=str(path),
        expected="a .pt file of YOLOv5 (v4 to v7) or of yolo-launch",
        next_command="do not open this one with torch.load; get weights from a source that you trust",
    )


def _page_title(head: bytes) -> str:
    title = re.search(rb"<title[^>]*>([^<]{1,80})", head, re.IGNORECASE)
    return title[1].decode("utf-8", "replace").strip() if title else "HTML"

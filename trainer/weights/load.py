"""Loads weights files of this project and of YOLOv5, and recognizes the kind by the content.

No file is executed, none is downloaded, and memory stays within a small multiple of the file's size.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from trainer.errors import ConfigError, WeightsError
from trainer.model.graph import DetectionModel, build_model, zoo_names
from trainer.protocol import BEST_WEIGHTS
from trainer.weights.checkpoint import FORMAT, VERSION
from trainer.weights.extent import ElementLimit, check_extent
from trainer.weights.foreign.allowed_globals import TensorRef
from trainer.weights.foreign.plain_values import plain_value
from trainer.weights.foreign.torch_archive import TorchFile, damaged, open_torch_file
from trainer.weights.foreign.yolov5 import read_yolov5
from trainer.weights.transfer import TransferReport, transfer

COCO_TRAINING_IMAGES = 118_287
COCO_NAMES_AT_ENDS = ("person", "toothbrush")
"""The first and the last of COCO's 80 classes."""


@dataclass(frozen=True)
class LoadedWeights:
    """A detector as its file describes it; the weights are those of the moving average if the file has one."""

    path: Path
    kind: Literal["yolo-launch", "yolov5"]
    definition: dict[str, Any]
    names: tuple[str, ...]
    stride: tuple[int, ...]
    state: dict[str, Tensor]
    """Floating tensors as float32, on the CPU."""
    image_size: int | None = None
    """Side in pixels of the images that the detector was trained on, if the file has it."""
    learned_images: int = 0
    """Number of images that the detector was trained on; 0 if the file does not say."""
    details: dict[str, Any] = field(default_factory=dict)
    """Plain facts for people."""
    notes: tuple[str, ...] = ()


def load_weights(path: Path) -> LoadedWeights:
    """Loads a weights file. Raises WeightsError for a missing, damaged or foreign file."""
    if path.suffix == ".safetensors":
        return _load_safetensors(path)
    if not path.is_file():
        raise missing_file(path)
    with open_torch_file(path) as file:
        if isinstance(file.content, dict) and file.content.get("format") == FORMAT:
            return _read_own(file)
        found = read_yolov5(file)
    stated = found.details.get("options", {})
    image_size = stated.get("imgsz", stated.get("img_size")) if isinstance(stated, dict) else None
    if isinstance(image_size, list):  # v4 and v5 took a size for training and a size for validation
        image_size = image_size[0] if image_size else None
    return LoadedWeights(
        path=path,
        kind="yolov5",
        definition=found.definition,
        names=found.names,
        stride=found.stride,
        state=found.state,
        image_size=image_size if type(image_size) is int else None,
        # The names of COCO's classes are those of the official weights, whose files do not tell the rest.
        learned_images=COCO_TRAINING_IMAGES if found.names[:1] + found.names[-1:] == COCO_NAMES_AT_ENDS else 0,
        details=found.details,
        notes=tuple(found.notes),
    )


def load_model(path: Path) -> tuple[DetectionModel, LoadedWeights]:
    """Loads the detector of a weights file, in evaluation mode on the CPU, and returns the file's facts too."""
    loaded = load_weights(path)
    return build_loaded(loaded), loaded


def load_weights_into(model: DetectionModel, path: Path, names: Sequence[str]) -> TransferReport:
    """Starts ``model``, which detects ``names``, from a weights file.

    Raises WeightsError if the file cannot be used, has numbers that are not finite, or has no convolution that fits.
    """
    loaded = load_weights(path)
    bad = [key for key, tensor in loaded.state.items() if not bool(torch.isfinite(tensor).all())]
    if bad:
        raise WeightsError(
            f"{path.name} holds numbers that are not finite, as a failed training leaves them",
            seen=f"{path}: {_some(bad)}",
            expected="an earlier checkpoint of that run",
            next_command=f"--weights path/to/{BEST_WEIGHTS}",
        )
    report = transfer(model, loaded.state, loaded.names, names)
    if not _copied_a_convolution(model, report):
        fitting = Path(str(loaded.definition.get("source", ""))).stem
        raise WeightsError(
            f"no convolution of {path.name} fits the model of --cfg",
            seen=f"{path}: a model of {loaded.definition.get('source', 'another definition')}",
            expected="weights and --cfg of the same model",
            next_command=f"--cfg {fitting}, or --weights '' to train from scratch" if fitting in zoo_names() else "",
        )
    return replace(report, source=path.name, notes=loaded.notes, learned_images=loaded.learned_images)


def _copied_a_convolution(model: DetectionModel, report: TransferReport) -> bool:
    """Returns True if a convolution was copied; anchors and some biases fit any model by chance."""
    skipped = set(report.skipped)
    return any(tensor.dim() == 4 and key not in skipped for key, tensor in model.state_dict().items())


def definition_of(path: Path) -> dict[str, Any]:
    """Returns the model definition in a weights file, for a training without --cfg. Raises WeightsError."""
    return build_loaded(load_weights(path)).definition


def missing_file(path: Path) -> WeightsError:
    """Returns the error for a missing file; for YOLOv5's own weights the error says where to get them."""
    if path.is_dir():
        return WeightsError(
            "a weights file was expected",
            seen=f"{path} is a folder",
            expected="a .pt file in it",
            next_command=f"--weights {path}/weights/{BEST_WEIGHTS}",
        )
    if path.suffix == ".pt" and path.stem in zoo_names() and path.parent == Path():
        return WeightsError(
            f"{path.name} is not here, and yolo-launch downloads nothing by itself",
            seen=f"no such file in {Path.cwd()}",
            expected=f"{path.name} from the assets of YOLOv5's releases v6.1 to v7.0 on GitHub (repository "
            f"ultralytics/{'yolov3' if path.stem.startswith('yolov3') else 'yolov5'}), saved in this folder",
            next_command=f"--weights path/to/{path.name}, or --weights '' to train from scratch",
        )
    return WeightsError(
        "the weights file is missing",
        seen=str(path),
        expected="the path of a .pt file",
        next_command=f"--weights path/to/{BEST_WEIGHTS}, or --weights '' to train from scratch",
    )


def build_loaded(loaded: LoadedWeights) -> DetectionModel:
    """Builds the detector that a file describes, with the file's weights, in evaluation mode on the CPU.

    Raises WeightsError if the definition cannot be built or the weights do not fit the definition.
    """
    definition, state = loaded.definition, loaded.state
    try:
        check_extent(loaded.definition, len(loaded.state))
        with ElementLimit(sum(tensor.numel() for tensor in state.values())):
            model = build_model(definition, num_classes=len(loaded.names))
    except (ConfigError, RuntimeError, TypeError, ValueError) as error:
        seen = f"{error.what} {error.seen}" if isinstance(error, ConfigError) else str(error)
        raise WeightsError(
            f"the model in {loaded.path.name} has layers that yolo-launch does not build",
            seen=f"{loaded.path}: {seen[:300]}",
            expected="a detection model of YOLOv5 (v4 to v7) or of yolo-launch",
            next_command=f"--weights path/to/{BEST_WEIGHTS}",
        ) from None
    expected = model.state_dict()
    missing = [key for key in expected if key not in state]
    extra = [key for key in state if key not in expected]
    other = [key for key in expected if key in state and state[key].shape != expected[key].shape]
    for what, keys in (("lacks", missing), ("has besides", extra), ("has in another shape", other)):
        if keys:
            raise WeightsError(
                f"the weights in {loaded.path.name} do not fit the model definition beside them",
                seen=f"{loaded.path}: it {what} {_some(keys)}",
                expected=f"the {len(expected)} tensors of {definition.get('source', 'its definition')}",
                next_command="get or copy it again",
            )
    model.load_state_dict(state)
    return model.eval()


def _some(keys: Sequence[str]) -> str:
    return ", ".join(keys[:3]) + (f" and {len(keys) - 3} more" if len(keys) > 3 else "")


# This project's own files


def _read_own(file: TorchFile) -> LoadedWeights:
    content = file.content
    version = content.get("version")
    if type(version) is not int or version > VERSION:
        raise WeightsError(
            f"{file.path.name} was written by a newer yolo-launch",
            seen=f"format version {version}",
            expected=f"at most {VERSION}",
            next_command="pip install --upgrade yolo-launch",
        )
    average = content.get("ema")
    state = average.get("model") if isinstance(average, dict) else content.get("model")
    if not isinstance(state, dict) or not all(isinstance(value, TensorRef) for value in state.values()):
        raise damaged(file.path, "no weights in it")
    tensors = {str(key): file.tensor(reference) for key, reference in state.items()}
    return _own_weights(file.path, content, tensors)


def _own_weights(path: Path, header: dict[str, Any], tensors: dict[str, Tensor]) -> LoadedWeights:
    keys = ("definition", "names", "stride", "image_size", "progress", "versions", "learned_images")
    try:
        plain: dict[str, Any] = {key: plain_value(header.get(key)) for key in keys}
    except ValueError as error:
        raise damaged(path, f"a description {error}") from None
    definition, names, stride = plain["definition"], plain["names"], plain["stride"]
    good = isinstance(definition, dict) and isinstance(names, list) and isinstance(stride, list)
    if not good or not all(type(name) is str for name in names) or not all(type(side) is int for side in stride):
        raise damaged(path, "no definition, class names or strides in it")
    progress = plain["progress"] if isinstance(plain["progress"], dict) else {}
    facts = {
        "weights_of": "moving average" if header.get("ema") is not None else "model",
        "has_optimizer": header.get("optimizer") is not None,
        **{key: progress.get(key) for key in ("epoch", "best_epoch", "best_fitness")},
        "versions": plain["versions"],
    }
    return LoadedWeights(
        path=path,
        kind="yolo-launch",
        definition=definition,
        names=tuple(names),
        stride=tuple(stride),
        state=tensors,
        image_size=plain["image_size"] if type(plain["image_size"]) is int else None,
        learned_images=plain["learned_images"] if type(plain["learned_images"]) is int else 0,
        details={key: value for key, value in facts.items() if value is not None},
    )


def safetensors_library() -> Any:
    """Returns the library for .safetensors files. Raises WeightsError if its extra is not installed."""
    try:
        import safetensors.torch
    except ImportError:
        raise WeightsError(
            "safetensors files need an extra that is not installed",
            expected="the package safetensors",
            next_command='pip install "yolo-launch[export]"',
        ) from None
    return safetensors


def _load_safetensors(path: Path) -> LoadedWeights:
    if not path.is_file():
        raise missing_file(path)
    library = safetensors_library()
    try:
        with library.safe_open(path, framework="pt") as file:
            header = json.loads((file.metadata() or {}).get(FORMAT, "null"))
            tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118  not a mapping
    except (library.SafetensorError, OSError, ValueError, RecursionError) as error:
        raise damaged(path, str(error)[:200]) from None
    if not isinstance(header, dict):
        raise WeightsError(
            f"{path.name} was not written by yolo-launch",
            seen=f"{path}: no model definition in it",
            expected="safetensors as yolo-launch weights writes them",
            next_command=f"--weights path/to/{BEST_WEIGHTS}",
        )
    floats = {key: value.float() if value.is_floating_point() else value for key, value in tensors.items()}
    return _own_weights(path, header, floats)

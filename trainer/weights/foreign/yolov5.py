"""Reads a detector from a checkpoint of YOLOv5 (v4 to v7): definition, class names, strides and weights.

Such a file pickles whole module objects. This module gets them as placeholders, whose attributes ``_modules``,
``_parameters`` and ``_buffers`` it walks as ``torch.nn.Module.state_dict`` does.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from trainer.errors import WeightsError
from trainer.protocol import BEST_WEIGHTS
from trainer.weights.foreign.allowed_globals import PlaceholderObject, TensorRef
from trainer.weights.foreign.plain_values import plain_value
from trainer.weights.foreign.torch_archive import TorchFile, damaged

_MAX_MODULES = 20_000
_MAX_DEPTH = 32
_BATCH_NORM_EPS = 1e-3
_DEFAULT_ACTIVATION = "SiLU"
# Attributes of torch's activations that their constructors take, with the default of each.
_ACTIVATION_ARGUMENTS = {"negative_slope": 0.01, "alpha": 1.0}
_OTHER_TASKS = {"Segment": "segmentation", "SegmentationModel": "segmentation", "ClassificationModel": "classification"}
_YOLOV7_CLASSES = frozenset({"IDetect", "IAuxDetect", "IKeypoint", "RepConv", "SPPCSPC", "ImplicitA"})


@dataclass
class Yolov5Checkpoint:
    """The content of a YOLOv5 file; the weights are those of the moving average if the file has one."""

    definition: dict[str, Any]
    """In YOLOv5's schema, with the classes and anchors that the weights have."""
    names: tuple[str, ...]
    stride: tuple[int, ...]
    state: dict[str, Tensor]
    """Floating tensors as float32; keys as ``DetectionModel.state_dict`` has them."""
    details: dict[str, Any] = field(default_factory=dict)
    """Plain facts for people: class, average or not, precision, epoch, date, fitness, hyperparameters."""
    notes: list[str] = field(default_factory=list)


def read_yolov5(file: TorchFile) -> Yolov5Checkpoint:
    """Reads the detector in an open file. Raises WeightsError if there is none."""
    content = file.content
    top = content if isinstance(content, dict) else {"model": content}
    _refuse_other_tasks(file)
    source = "ema" if _find_model(top.get("ema")) is not None else "model"
    model = _find_model(top.get(source))
    if model is None:
        raise _no_model_error(file, top)

    definition = _definition(file, model)
    stored_dtypes: set[torch.dtype] = set()
    state: dict[str, Tensor] = {}
    for key, reference in _entries(file, model):
        if not key.endswith(".anchor_grid"):  # a copy of the anchors in files up to v6.0
            stored_dtypes.add(reference.storage.dtype)
            state[key] = file.tensor(reference)
    notes = _unfold_batch_norm(state)
    head = next(reversed(_children(model.entries("_modules").get("model"))), None)
    stride = _strides(file, model, head)
    names = _names(model, definition, notes)
    _take_anchors(definition, state, stride, notes)
    _take_activation(definition, model, notes)
    floating = sorted(str(dtype).removeprefix("torch.") for dtype in stored_dtypes if dtype.is_floating_point)
    details = {
        "class": model.path,
        "weights_of": "moving average" if source == "ema" else "model",
        "precision": ", ".join(floating),
        "has_optimizer": bool(top.get("optimizer")),
        **_facts(top, model),
    }
    return Yolov5Checkpoint(definition, names, stride, state, details, notes)


def _refuse_other_tasks(file: TorchFile) -> None:
    classes = {name.rpartition(".")[2] for name in file.class_names if not name.startswith("torch.")}
    tasks = sorted({_OTHER_TASKS[name] for name in classes & set(_OTHER_TASKS)})
    if tasks:
        raise WeightsError(
            f"{file.path.name} is a {tasks[0]} model of YOLOv5",
            seen=str(file.path),
            expected="a detection model such as yolov5s.pt",
            next_command=f"--weights path/to/{BEST_WEIGHTS}",
        )
    if found := sorted(classes & _YOLOV7_CLASSES):
        raise WeightsError(
            f"{file.path.name} is a file of YOLOv7, whose models yolo-launch does not build",
            seen=f"{file.path}: it holds {', '.join(found)}",
            expected="a .pt file of YOLOv5 (v4 to v7) or of yolo-launch",
            next_command=f"--weights path/to/{BEST_WEIGHTS}",
        )


def _no_model_error(file: TorchFile, top: dict[Any, Any]) -> WeightsError:
    name, path = file.path.name, file.path
    expected = "a .pt file of YOLOv5 (v4 to v7) or of yolo-launch"
    inner = next((top[key] for key in ("model", "state_dict", "ema") if isinstance(top.get(key), dict)), top)
    if any(isinstance(value, TensorRef) for value in inner.values()):
        keys = ", ".join(str(key)[:60] for key in list(inner)[:2])
        return WeightsError(
            f"{name} holds bare tensors without a model's definition: it is a file of another project",
            seen=f"{path}: {keys}, ...",
            expected=expected,
            next_command=f"--weights path/to/{BEST_WEIGHTS}",
        )
    if isinstance(file.content, dict):
        seen = ", ".join(str(key)[:40] for key in list(file.content)[:8]) or "nothing"
    else:
        seen = file.content.path if isinstance(file.content, PlaceholderObject) else type(file.content).__name__
    return WeightsError(
        f"{name} holds no detection model of YOLOv5",
        seen=f"{path}: {seen}",
        expected=expected,
        next_command=f"--weights path/to/{BEST_WEIGHTS}",
    )


def _find_model(value: Any) -> PlaceholderObject | None:
    """Returns the detector in a value: the value, the first of a pair (v3 and v4 averages), or inside wrappers."""
    if isinstance(value, (tuple, list)) and value:
        value = value[0]
    for _ in range(5):
        if not isinstance(value, PlaceholderObject):
            return None
        if isinstance(value.state.get("yaml"), dict):
            return value
        inner = value.entries("_modules")
        value = inner.get("model", inner.get("module"))
    return None


def _children(module: Any) -> dict[str, Any]:
    return module.entries("_modules") if isinstance(module, PlaceholderObject) else {}


def _entries(file: TorchFile, model: PlaceholderObject) -> Iterator[tuple[str, TensorRef]]:
    """Yields names and tensors in the order of ``state_dict``: parameters and buffers of a module, then its children.

    Raises WeightsError for endless nesting and for entries that are no tensors.
    """
    pending: list[tuple[str, PlaceholderObject]] = [("", model)]
    visited = 0
    while pending:
        prefix, module = pending.pop()
        visited += 1
        if visited > _MAX_MODULES or prefix.count(".") > _MAX_DEPTH:
            raise damaged(file.path, "modules that contain one another without end")
        unsaved = module.state.get("_non_persistent_buffers_set")
        for group in ("_parameters", "_buffers"):
            for name, tensor in module.entries(group).items():
                if group == "_buffers" and isinstance(unsaved, (set, frozenset)) and name in unsaved:
                    continue
                if isinstance(tensor, TensorRef):
                    yield f"{prefix}{name}", tensor
                elif tensor is not None:
                    raise damaged(file.path, f"{prefix}{name} is a {type(tensor).__name__} instead of a tensor")
        children = [(name, child) for name, child in _children(module).items() if isinstance(child, PlaceholderObject)]
        pending.extend((f"{prefix}{name}.", child) for name, child in reversed(children))


def _definition(file: TorchFile, model: PlaceholderObject) -> dict[str, Any]:
    try:
        definition = plain_value(model.state["yaml"])
    except ValueError as error:
        raise damaged(file.path, f"a model definition {error}") from None
    for key in ("backbone", "head"):
        if not isinstance(definition.get(key), list):
            raise damaged(file.path, f"a model definition without a list of layers under {key!r}")
    yaml_file = model.state.get("yaml_file")
    return {**definition, "source": yaml_file if isinstance(yaml_file, str) else file.path.name}


def _strides(file: TorchFile, model: PlaceholderObject, head: Any) -> tuple[int, ...]:
    for module in (model, _children(model.entries("_modules").get("model")).get(head) if head else None):
        reference = module.state.get("stride") if isinstance(module, PlaceholderObject) else None
        if isinstance(reference, TensorRef) and 0 < reference.numel <= 8:
            values = file.tensor(reference).flatten().tolist()
            if all(1 <= value <= 1024 for value in values):
                return tuple(round(value) for value in values)
    raise damaged(file.path, "a model without strides")


def _names(model: PlaceholderObject, definition: dict[str, Any], notes: list[str]) -> tuple[str, ...]:
    """Returns class names by number, from a list (to v6.1) or a dictionary (since)."""
    count = definition.get("nc")
    found = model.state.get("names")
    if isinstance(found, dict):
        found = [found.get(index) for index in range(len(found))]
    if isinstance(found, (list, tuple)) and len(found) == count and all(type(n) in (str, int) for n in found):
        return tuple(str(name) for name in found)
    count = count if type(count) is int and 0 < count <= 100_000 else 0
    notes.append("the file's class names do not fit its classes; they are numbered instead")
    return tuple(str(index) for index in range(count))


def _take_anchors(
    definition: dict[str, Any], state: dict[str, Tensor], stride: tuple[int, ...], notes: list[str]
) -> None:
    """Takes the anchors from the head's buffer, which has those of the training; the definition may be older."""
    key = next((key for key in reversed(state) if key.endswith(".anchors")), None)
    anchors = state[key] if key else None
    if anchors is None or anchors.dim() != 3 or len(anchors) != len(stride) or anchors.shape[2] != 2:
        notes.append("the file's head has no usable anchors; those of its definition are used")
        return
    pixels = anchors.double() * torch.tensor(stride, dtype=torch.float64).view(-1, 1, 1)
    definition["anchors"] = [[round(side, 4) for side in level.flatten().tolist()] for level in pixels]


def _take_activation(definition: dict[str, Any], model: PlaceholderObject, notes: list[str]) -> None:
    """Takes the activation of the first block that has one, if the definition has none: files differ from v6.2 on."""
    if definition.get("activation"):
        return
    first = next(iter(_children(model.entries("_modules").get("model")).values()), None)
    inner = _children(first)
    block = inner["conv"] if isinstance(inner.get("conv"), PlaceholderObject) and "act" not in inner else first
    activation = _children(block).get("act")
    name = activation.path.rpartition(".")[2] if isinstance(activation, PlaceholderObject) else _DEFAULT_ACTIVATION
    if name == _DEFAULT_ACTIVATION:
        return
    assert isinstance(activation, PlaceholderObject)
    arguments = [activation.state[key] for key in _ACTIVATION_ARGUMENTS if key in activation.state]
    numbers = [float(value) for value in arguments if type(value) in (int, float)]
    definition["activation"] = f"nn.{name}({', '.join(map(str, numbers))})"
    notes.append(f"its activation is {definition['activation']}")


def _unfold_batch_norm(state: dict[str, Tensor]) -> list[str]:
    """Adds a batch norm without effect to each convolution whose norm was folded in, so that such files load too."""
    folded = [key for key in state if key.endswith(".conv.bias") and f"{key[:-9]}bn.weight" not in state]
    for key in folded:
        bias, norm = state.pop(key), f"{key[:-9]}bn."
        state[norm + "weight"] = torch.ones_like(bias)
        state[norm + "bias"] = bias
        state[norm + "running_mean"] = torch.zeros_like(bias)
        state[norm + "running_var"] = torch.full_like(bias, 1 - _BATCH_NORM_EPS)
        state[norm + "num_batches_tracked"] = torch.tensor(0)
    return [f"{len(folded)} batch norms were folded into their convolutions"] if folded else []


def _facts(top: dict[Any, Any], model: PlaceholderObject) -> dict[str, Any]:
    """Returns plain values that a run wrote into its file, without those that are missing or have no plain form."""
    found = {
        "epoch": top.get("epoch"),
        "date": top.get("date"),
        "best_fitness": top.get("best_fitness"),
        "updates": top.get("updates"),
        "hyperparameters": model.state.get("hyp"),
        "options": top.get("opt"),
        "git": top.get("git"),
    }
    facts = {}
    for name, value in found.items():
        try:
            plain = plain_value(value, 2_000)
        except ValueError:
            continue
        if plain is not None:
            facts[name] = plain
    # -1 marks a file whose training has ended.
    if facts.get("epoch") == -1:
        facts["epoch"] = "finished"
    return facts

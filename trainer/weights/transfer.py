"""Copies weights from one detector to another: tensors by name and shape, class rows of the head by class name."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from trainer.model.detect import BOX_AND_OBJECTNESS, Detect
from trainer.model.graph import DetectionModel

_BATCH_COUNT = "num_batches_tracked"


@dataclass(frozen=True)
class TransferReport:
    """The tensors of a model that were copied from a file, and those that the model keeps from its initialization."""

    loaded: int
    """Number of tensors copied whole."""
    total: int
    """Number of tensors of the model."""
    skipped: tuple[str, ...] = ()
    """Names of the model's tensors that were not copied whole."""
    head_kept: bool = True
    """The head's tensors fit as they are: same classes in the same order."""
    carried_classes: tuple[str, ...] = ()
    """If the head is new: classes whose rows were copied because the file has classes of the same names."""
    num_classes: int = 0
    boxes_kept: bool = True
    """Box and objectness rows of the head, which belong to no class, were copied."""
    anchors_kept: bool = True
    knows_classes: bool = True
    """The whole detector was copied, and with it every class of the model: nothing starts anew."""
    learned_images: int = 0
    """Number of images that the file's detector was trained on; 0 if it is unknown."""
    source: str = ""
    notes: tuple[str, ...] = ()

    def summary(self) -> str:
        """Returns one line of text for people."""
        parts = [f"{self.loaded} of {self.total} tensors from {self.source or 'the weights'}"]
        if not self.head_kept:
            classes = "1 class" if self.num_classes == 1 else f"{self.num_classes} classes"
            copied = len(self.carried_classes)
            known = f", {copied} of them known to the file ({_shortened(self.carried_classes)})" if copied else ""
            boxes = ", its box and objectness rows kept" if self.boxes_kept else ""
            parts.append(f"the head is new for {classes}{known}{boxes}")
        if not self.anchors_kept:
            parts.append("its anchors do not fit and were left")
        return "; ".join([*parts, *self.notes])


@torch.no_grad()
def transfer(
    model: DetectionModel, state: Mapping[str, Tensor], source_names: Sequence[str], target_names: Sequence[str]
) -> TransferReport:
    """Copies the tensors of ``state`` (keys as the model's own) that fit into ``model``, in place.

    Anchors are copied if the head has equal numbers of levels and anchors. With other classes, or the same classes in
    another order, the head starts anew; but if the layout fits, the box and objectness rows, which belong to no class,
    are copied, and so are the rows of classes with the same name, whatever their capitals.
    """
    target = model.state_dict()
    head = f"model.{len(model.model) - 1}."
    rows_of_head = [key for key in target if key.startswith(f"{head}m.")]
    head_kept = [_spelled(name) for name in source_names] == [_spelled(name) for name in target_names] and all(
        key in state and state[key].shape == target[key].shape for key in rows_of_head
    )
    loaded: set[str] = set()
    for key, tensor in target.items():
        source = state.get(key)
        if source is None or source.shape != tensor.shape or (key in rows_of_head and not head_kept):
            continue
        # A count of batches fits every norm, but is meaningful only if the statistics of those batches are copied too.
        if key.endswith(_BATCH_COUNT) and key.removesuffix(_BATCH_COUNT) + "running_mean" not in loaded:
            continue
        if key != f"{head}anchors":
            tensor.copy_(source)
        loaded.add(key)

    anchors_kept = f"{head}anchors" in loaded
    if anchors_kept:
        _take_anchors(model, state[f"{head}anchors"])
    boxes_kept = head_kept
    copied_classes: tuple[str, ...] = ()
    if not head_kept and anchors_kept:
        rows = _matching_rows(source_names, target_names)
        boxes_kept = _copy_rows(model.detect, state, head, rows, len(source_names))
        copied_classes = tuple(target_names[index] for _, index in rows) if boxes_kept else ()
    body = [key for key in target if key not in rows_of_head and not key.endswith(_BATCH_COUNT)]
    return TransferReport(
        loaded=len(loaded),
        total=len(target),
        skipped=tuple(key for key in target if key not in loaded),
        head_kept=head_kept,
        boxes_kept=boxes_kept,
        carried_classes=copied_classes,
        num_classes=len(target_names),
        anchors_kept=anchors_kept,
        knows_classes=loaded.issuperset(body) and (head_kept or len(copied_classes) == len(target_names)),
    )


def _take_anchors(model: DetectionModel, anchors: Tensor) -> None:
    """Sets ``anchors``, (levels, A, 2) in cells, through the model's own setter, which updates the definition too."""
    pixels = anchors.double() * model.stride.double().cpu().view(-1, 1, 1)
    model.set_anchors(pixels.flatten(1).tolist())


def _spelled(name: str) -> str:
    return " ".join(name.split()).casefold()


def _matching_rows(source_names: Sequence[str], target_names: Sequence[str]) -> list[tuple[int, int]]:
    """Returns (source class, target class) for every target class that is among the source's names."""
    known: dict[str, int] = {}
    for index, name in enumerate(source_names):
        known.setdefault(_spelled(name), index)
    return [(known[_spelled(name)], index) for index, name in enumerate(target_names) if _spelled(name) in known]


def _copy_rows(
    detect: Detect, state: Mapping[str, Tensor], head: str, rows: Sequence[tuple[int, int]], source_classes: int
) -> bool:
    """Copies box, objectness and matching class rows of every level; returns False, copying none, if a level differs.

    A level's convolution has anchors x (5 + classes) output channels in this order.
    """
    pairs: list[tuple[Tensor, Tensor]] = []
    for level, convolution in enumerate(detect.m):
        for kind, parameter in convolution.named_parameters():
            source = state.get(f"{head}m.{level}.{kind}")
            channels = detect.num_anchors * (BOX_AND_OBJECTNESS + source_classes)
            if source is None or source.shape != (channels, *parameter.shape[1:]):
                return False
            per_anchor = (detect.num_anchors, -1)
            pairs.append((source.unflatten(0, per_anchor), parameter.data.unflatten(0, per_anchor)))
    for source, tensor in pairs:
        tensor[:, :BOX_AND_OBJECTNESS] = source[:, :BOX_AND_OBJECTNESS].to(tensor)
        for source_class, target_class in rows:
            tensor[:, BOX_AND_OBJECTNESS + target_class] = source[:, BOX_AND_OBJECTNESS + source_class].to(tensor)
    return True


def _shortened(names: Sequence[str], limit: int = 5) -> str:
    return ", ".join([*names[:limit], *(["..."] if len(names) > limit else [])])

"""Reads and checks model definitions, built-in or a user's YAML in YOLOv5's schema, without torch.

A definition is a mapping with ``nc``, ``depth_multiple``, ``width_multiple``, ``anchors``, ``backbone`` and ``head``.
Each row of ``backbone`` and ``head`` is [from, number, layer, arguments]. No part of a definition is evaluated as code.
"""

from __future__ import annotations

import difflib
import logging
import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from trainer.errors import ConfigError
from trainer.reading.text_file import printable
from trainer.reading.yaml_file import read_yaml

logger = logging.getLogger(__name__)

ZOO_DIR = Path(__file__).parent / "zoo"
CHANNEL_MULTIPLE = 8
"""Scaled widths are rounded up to a multiple of this."""

MAX_REPEATS = 1_000
_MAX_MULTIPLE = 100
_MAX_CLASSES = 100_000
_SHOWN_CHARACTERS = 200
_SEE_EXAMPLES = "correct the file; docs/models.md shows how a definition is written"
DEFAULT_NUM_CLASSES = 80
DEFAULT_ANCHORS_PER_LEVEL = 3
_LITERALS: dict[str, Any] = {"None": None, "True": True, "False": False}


@dataclass(frozen=True)
class LayerRow:
    """One row of a definition with its references resolved."""

    index: int
    """Position of the layer in the whole network, and so in the state-dict keys."""
    sources: tuple[int, ...]
    """Layers whose outputs are this layer's inputs, -1 for the image."""
    repeats: int
    """Number of repeats, after scaling by ``depth_multiple``."""
    name: str
    """Layer as written, without a leading ``nn.``."""
    arguments: tuple[Any, ...]
    where: str
    """File and row, for messages."""


def zoo_names() -> list[str]:
    """Returns the names of the built-in models, sorted."""
    return sorted(path.stem for path in ZOO_DIR.glob("*.yaml"))


def load_definition(name_or_path: str) -> dict[str, Any]:
    """Reads the definition called ``yolov5s``, ``yolov5s.yaml`` or by a file's path; an existing file comes first.

    The result has a key ``source``, the name as given. Raises ConfigError if there is neither a file nor a built-in
    model of that name (with the nearest built-in name), and if the file is no definition.
    """
    path = Path(name_or_path)
    if not os.path.isfile(path):
        path = _built_in_path(name_or_path)
    content = read_yaml(path, f"The model definition {printable(name_or_path)} cannot be read.", error=ConfigError)
    if not isinstance(content, dict):
        raise ConfigError(
            f"{name_or_path} is not a model definition.",
            seen=f"a file that holds {type(content).__name__}",
            expected="a mapping with nc, depth_multiple, width_multiple, anchors, backbone and head",
            next_command="--cfg yolov5s",
        )
    definition = {**content, "source": str(name_or_path)}
    check_definition(definition)
    return definition


def _built_in_path(name_or_path: str) -> Path:
    requested = Path(name_or_path)
    # YOLOv5's users type `models/yolov5s.yaml`, the path in YOLOv5's repository.
    bare = requested.parent.as_posix() in (".", "models", "models/hub")
    stem = requested.name.removesuffix(".yaml").removesuffix(".yml")
    path = ZOO_DIR / f"{stem}.yaml"
    if bare and stem in zoo_names():
        if requested.parent != Path():
            logger.info("%s is no file here; the built-in %s is used", name_or_path, stem)
        return path
    nearest = difflib.get_close_matches(stem.lower(), zoo_names(), n=1, cutoff=0.5)
    raise ConfigError(
        f"There is no model definition {name_or_path}.",
        seen="neither a file nor a built-in name",
        expected=f"a YAML file's path or one of {', '.join(zoo_names())}",
        next_command=f"--cfg {nearest[0]}" if nearest else "--cfg yolov5s",
    )


def check_definition(definition: Mapping[str, Any]) -> None:
    """Raises ConfigError unless the mapping has the schema's keys with usable values; rows are checked when parsed."""
    source = source_of(definition)
    for key in ("backbone", "head"):
        if not isinstance(definition.get(key), list) or not definition[key]:
            raise ConfigError(
                f"The model definition {source} needs a list of rows under '{key}'.",
                seen=_short(definition.get(key)),
                expected="rows of the form [from, number, layer, arguments]",
                next_command=_SEE_EXAMPLES,
            )
    for key in ("depth_multiple", "width_multiple"):
        value = definition.get(key, 1.0)
        if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 < value <= _MAX_MULTIPLE:
            raise ConfigError(
                f"'{key}' of the model definition {source} is not usable.",
                seen=_short(value),
                expected=f"a number above 0, at most {_MAX_MULTIPLE}",
                next_command=_SEE_EXAMPLES,
            )
    classes = definition.get("nc", DEFAULT_NUM_CLASSES)
    if isinstance(classes, bool) or not isinstance(classes, int) or not 1 <= classes <= _MAX_CLASSES:
        raise ConfigError(
            f"'nc' of the model definition {source} is not usable.",
            seen=_short(classes),
            expected=f"a whole number from 1 to {_MAX_CLASSES}",
            next_command=_SEE_EXAMPLES,
        )
    if definition.get("ch", 3) != 3:
        raise ConfigError(
            f"The model definition {source} asks for images of other than three channels.",
            seen=f"ch: {_short(definition['ch'])}",
            expected="no 'ch', or 3",
            next_command=_SEE_EXAMPLES,
        )
    check_anchors(definition.get("anchors", DEFAULT_ANCHORS_PER_LEVEL), source)


def check_anchors(anchors: Any, source: str) -> None:
    """Raises ConfigError unless ``anchors`` is a count per level, or per level w, h, w, h... in pixels."""
    if isinstance(anchors, int) and not isinstance(anchors, bool) and anchors > 0:
        return
    good = isinstance(anchors, Sequence) and not isinstance(anchors, str) and len(anchors) > 0
    if good:
        rows_good = [isinstance(row, Sequence) and not isinstance(row, str) and len(row) > 0 for row in anchors]
        good = all(rows_good) and len(anchors[0]) % 2 == 0 and len({len(row) for row in anchors}) == 1
    if good:
        good = all(isinstance(side, (int, float)) and 0 < side < math.inf for row in anchors for side in row)
    if not good:
        raise ConfigError(
            f"'anchors' of the model definition {source} is not usable.",
            seen=_short(anchors),
            expected="a count per level such as 3, or for each level the same number of width, height pairs above 0",
            next_command=_SEE_EXAMPLES,
        )


def source_of(definition: Mapping[str, Any]) -> str:
    """Returns the name of a definition for messages."""
    return str(definition.get("source", "given as a mapping"))


def parse_rows(definition: Mapping[str, Any]) -> list[LayerRow]:
    """Returns all rows in order, references made absolute and depth scaled.

    Raises ConfigError with file and row for a bad row.
    """
    depth = float(definition.get("depth_multiple", 1.0))
    rows: list[LayerRow] = []
    for section in ("backbone", "head"):
        for position, row in enumerate(definition[section]):
            index = len(rows)
            where = f"{source_of(definition)}, {section} row {position} (layer {index}): {_short(row)}"
            if not isinstance(row, (list, tuple)) or len(row) != 4:
                raise row_error(where, "it has not four columns", "[from, number, layer, arguments]")
            origin, number, name, arguments = row
            if isinstance(number, bool) or not isinstance(number, int) or not 1 <= number <= MAX_REPEATS:
                raise row_error(where, f"its number is {_short(number)}", f"a whole number from 1 to {MAX_REPEATS}")
            if not isinstance(name, str):
                raise row_error(where, f"its layer is {_short(name)}", "a layer's name")
            if arguments is None:
                arguments = []
            if not isinstance(arguments, (list, tuple)):
                raise row_error(where, f"its arguments are {_short(arguments)}", "a list, [] for none")
            rows.append(
                LayerRow(
                    index=index,
                    sources=_absolute_sources(origin, index, where),
                    repeats=max(round(number * depth), 1) if number > 1 else number,
                    name=name.removeprefix("torch.").removeprefix("nn."),
                    arguments=tuple(_LITERALS.get(a, a) if isinstance(a, str) else a for a in arguments),
                    where=where,
                )
            )
    return rows


def _absolute_sources(origin: Any, index: int, where: str) -> tuple[int, ...]:
    references = origin if isinstance(origin, (list, tuple)) else [origin]
    sources = []
    for reference in references:
        if isinstance(reference, bool) or not isinstance(reference, int):
            raise row_error(
                where, f"it takes its input from {_short(reference)}", "a layer's number, or -1 for the one before"
            )
        source = index + reference if reference < 0 else reference
        # Only the first layer reads the image, as the layer before it.
        if source >= index or source < -1 or (source == -1 and index > 0):
            raise row_error(
                where,
                f"it takes its input from {reference}, which is not a layer before it",
                f"a number below {index}, or -1 to {-max(index, 1)} counted back from here",
            )
        sources.append(source)
    if not sources:
        raise row_error(where, "it takes no input", "at least one layer's number")
    return tuple(sources)


def row_error(where: str, problem: str, expected: str) -> ConfigError:
    """The error of a bad row; ``where`` is the row's own."""
    return ConfigError(
        f"Bad row in the model definition {where}",
        seen=problem,
        expected=expected or "a row as in the built-in definitions",
        next_command=_SEE_EXAMPLES,
    )


def _short(value: Any) -> str:
    text = str(value) if isinstance(value, (list, tuple)) else repr(value)
    return text if len(text) <= _SHOWN_CHARACTERS else text[:_SHOWN_CHARACTERS] + " ..."


def scaled_width(channels: int, width_multiple: float) -> int:
    """Scales channels and rounds the product up to a multiple of 8."""
    return math.ceil(channels * width_multiple / CHANNEL_MULTIPLE) * CHANNEL_MULTIPLE

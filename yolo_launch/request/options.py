"""Declares options of the command line as fields: of frozen dataclasses here, of configurations in the trainer.

Every option is declared once, with its type, its default, its spellings and its help text. A field made by ``option``
is an option of its own; a field made by ``settings_of`` stands for one option per field of a configuration.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields, replace
from typing import TYPE_CHECKING, Any, Literal, get_args, get_origin, get_type_hints

from yolo_launch.request.option_values import SPECIAL

if TYPE_CHECKING:
    from pydantic import BaseModel

DEVICES, LAUNCH, MACHINES = "Devices", "Launch", "Machines"
OPTION, ARGUMENT, PARSE, MODEL = "option", "argument", "parse", "model"
"""Keys of a field's metadata: what is shown of it, how its words are read, whose settings it holds."""


@dataclass(frozen=True)
class Option:
    """One option of the command line, absent (None, or nothing in a list) unless typed."""

    name: str
    flags: tuple[str, ...]
    text: str
    type: Any = str
    panel: str = LAUNCH
    default_text: str = ""
    metavar: str | None = None


def option(
    default: Any,
    *flags: str,
    text: str,
    panel: str = LAUNCH,
    default_text: str | None = None,
    metavar: str | None = None,
    parse: Callable[[Any], Any] | None = None,
) -> Any:
    """Returns a field of a dataclass of options.

    ``default_text`` says what counts if the option is not typed; without it the default itself is shown. ``parse``
    makes the field's value of the words that were typed.
    """
    if default_text is None:
        default_text = f"{default:g}" if isinstance(default, float) else _default_text(default)
    metadata = {OPTION: Option("", flags, text, str, panel, default_text, metavar), PARSE: parse}
    if isinstance(default, dict):
        return field(default_factory=lambda: dict(default), metadata=metadata)
    return field(default=default, metadata=metadata)


@dataclass(frozen=True)
class Argument:
    """Words of the command line that no flag precedes."""

    name: str
    text: str
    metavar: str | None = None
    is_list: bool = False
    """True if any number of words may be typed; else there has to be one."""


def argument(*, text: str, metavar: str | None = None) -> Any:
    """Returns a field for one word that has to be typed."""
    return field(default="", metadata={ARGUMENT: Argument("", text, metavar)})


def arguments(*, text: str, metavar: str | None = None) -> Any:
    """Returns a field for any number of words."""
    return field(default=(), metadata={ARGUMENT: Argument("", text, metavar, is_list=True), PARSE: tuple})


def settings_of(model: type[BaseModel]) -> Any:
    """Returns a field that holds what was typed of a configuration, by field name."""
    return field(default_factory=dict, metadata={MODEL: model})


def options_of(kind: type[Any]) -> list[Option]:
    """Returns every option of a dataclass of options, in the order of its fields, by panel if it names their order."""
    types, found = get_type_hints(kind), []
    for each in fields(kind):
        if MODEL in each.metadata:
            found += config_field_options(each.metadata[MODEL])
        elif OPTION in each.metadata:
            one: Option = each.metadata[OPTION]
            found.append(replace(one, name=each.name, type=_typed_as(types[each.name])))
    panels: tuple[str, ...] = getattr(kind, "PANELS", ())
    return sorted(found, key=lambda one: panels.index(one.panel)) if panels else found


def arguments_of(kind: type[Any]) -> list[Argument]:
    """Returns the words without a flag that a dataclass of options has, in the order of its fields."""
    return [replace(each.metadata[ARGUMENT], name=each.name) for each in fields(kind) if ARGUMENT in each.metadata]


def config_values(model: type[BaseModel], typed: Mapping[str, Any]) -> dict[str, Any]:
    """Returns what was typed of a configuration, by field name; ``--batch auto`` gives None. Raises LaunchError."""
    given = {one.name: typed[one.name] for one in config_field_options(model) if typed.get(one.name) is not None}
    return {name: SPECIAL[name](value) if name in SPECIAL else value for name, value in given.items()}


def config_field_options(model: type[BaseModel]) -> list[Option]:
    """Returns one option for each field of a configuration that has flags."""
    options = []
    for name, described in model.model_fields.items():
        extra = described.json_schema_extra
        if not isinstance(extra, dict) or not extra.get("flags"):
            continue
        flags = tuple(str(flag) for flag in extra["flags"])  # type: ignore[union-attr]
        kind = str if name in SPECIAL else _simple_type(described.annotation)
        default = None if described.is_required() else described.default
        text = str(extra.get("default_text", _default_text(default)))
        panel = str(extra.get("panel", LAUNCH))
        options.append(Option(name, flags, described.description or "", kind, panel, text, _choices(described)))
    return options


def _typed_as(annotation: Any) -> Any:
    """Returns the type of an option's words: a mapping is typed as several words, a tuple of numbers as one."""
    return list[str] if get_origin(annotation) is Mapping else _simple_type(annotation)


def _simple_type(annotation: Any) -> Any:
    if get_origin(annotation) is Literal:
        return str
    simple = [kind for kind in (get_args(annotation) or (annotation,)) if kind is not type(None)]
    return simple[0] if simple and simple[0] in (bool, int, float, str) else str


def _choices(described: Any) -> str | None:
    if get_origin(described.annotation) is not Literal:
        return None
    return "|".join(str(choice) for choice in get_args(described.annotation) if choice)


def _default_text(default: Any) -> str:
    if default is None or isinstance(default, bool) or default in ("", (), {}):
        return ""
    return str(default)

"""Declares options as fields of configurations, validates their values, and reads and writes their files.

A field is an option: its description is the help text, ``flags`` in its ``json_schema_extra`` are the spellings on
the command line (ours first, then YOLOv5's) and ``panel`` the group it is shown in.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, TypeVar, get_args, get_origin

from pydantic import BaseModel, Field, ValidationError
from pydantic.fields import FieldInfo

from trainer.errors import ConfigError
from trainer.protocol import CONFIG_FILE, replace_text
from trainer.reading.text_file import printable

T = TypeVar("T", bound=BaseModel)


def option(default: Any, *flags: str, panel: str, text: str, default_text: str | None = None, **checks: Any) -> Any:
    """Returns a field that is an option; ``default_text`` says what counts if it is absent, else the default does."""
    extra: dict[str, Any] = {"flags": list(flags), "panel": panel}
    if default_text is not None:
        extra["default_text"] = default_text
    return Field(default, description=text, json_schema_extra=extra, **checks)


def marks(**is_on: bool) -> tuple[str, ...]:
    """Returns the names of what is on."""
    return tuple(name for name, on in is_on.items() if on)


def flag_of(model: type[BaseModel], name: str) -> str:
    """Returns the spelling of a field on the command line, or the field's name if it has none."""
    field = model.model_fields.get(name)
    extra = field.json_schema_extra if field is not None else None
    flags = extra.get("flags") if isinstance(extra, dict) else None
    return str(flags[0]).split("/")[0] if isinstance(flags, list) and flags else name


def validated(model: type[T], values: Mapping[str, Any]) -> T:
    """Makes a configuration of values by field name.

    Raises ConfigError that names the option, the value seen and the value expected.
    """
    unnamed = [name for name in values if not isinstance(name, str)]
    if unnamed:  # YAML takes a bare off, or a number, for what it is
        raise ConfigError(
            "an option has no name",
            seen=f"{unnamed[0]!r:.100}: {values[unnamed[0]]!r:.100}",
            expected="names such as epochs",
            next_command="correct the file, or leave the option out",
        )
    try:
        return model(**values)
    except ValidationError as error:
        first = error.errors()[0]
        name = str(first["loc"][0]) if first["loc"] else "configuration"
        flag, field = flag_of(model, name), model.model_fields.get(name)
        raise ConfigError(
            f"{flag} cannot be used",
            seen=f"{flag} {printable(str(first['input']))[:200]}",
            expected=_expected(field) if field is not None else first["msg"],
            next_command="correct the option, or the file that it stands in",
        ) from None


def _expected(field: FieldInfo) -> str:
    """Describes what a field takes: one of its words, or a number within its bounds."""
    kinds = [field.annotation, *get_args(field.annotation)]
    for kind in kinds:
        if get_origin(kind) is Literal:
            words = [repr(word) if word == "" else str(word) for word in get_args(kind)]
            return " or ".join(filter(None, (", ".join(words[:-1]), words[-1])))
    noun = "a number" if {int, float} & set(kinds) else "a value of its type"
    low, above, high, below = (_bound(field, name) for name in ("ge", "gt", "le", "lt"))
    if low is not None and high is not None:
        return f"{low:g} to {high:g}"
    limits = ((" of at least", low), (" above", above), (" of at most", high), (" below", below))
    found = [f"{words} {limit:g}" for words, limit in limits if limit is not None]
    return noun + " and".join(found)


def _bound(field: FieldInfo, name: str) -> float | None:
    return next((getattr(check, name) for check in field.metadata if getattr(check, name, None) is not None), None)


def write_config(config: BaseModel, path: Path) -> None:
    """Writes every value as YAML; reading that gives the same configuration back.

    A kill leaves the old file or the new one: without its configuration a run cannot be resumed.
    """
    from trainer.reading.yaml_file import dump_yaml  # it loads YAML, which --help does not need

    replace_text(path, dump_yaml(config.model_dump(mode="json")), sync=True)


def read_options(path: Path) -> dict[str, Any]:
    """Reads the option values of a configuration file, not yet validated. Raises ConfigError."""
    from trainer.reading.yaml_file import read_yaml  # it loads YAML, which --help does not need

    if not os.path.exists(path):
        raise ConfigError(
            "the configuration file is missing",
            seen=printable(path),
            expected=f"the {CONFIG_FILE} of a run, or a file like it",
            next_command="give its path",
        )
    values = read_yaml(path, f"{printable(path)} cannot be read", error=ConfigError)
    if not isinstance(values, dict):
        raise ConfigError(
            f"{printable(path)} holds no configuration",
            seen=type(values).__name__,
            expected="lines such as 'epochs: 100'",
            next_command=f"give the path of a run's {CONFIG_FILE}",
        )
    return values

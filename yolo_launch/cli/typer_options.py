"""Makes Typer parameters of options, and typed options of what Typer parsed."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from dataclasses import fields
from typing import Annotated, Any, TypeVar

import typer

from yolo_launch.request.options import MODEL, PARSE, Argument, Option, arguments_of, config_values, options_of

T = TypeVar("T")


def typer_function(kind: type[T], run: Callable[[typer.Context, T], None]) -> Callable[..., None]:
    """Returns a function of which Typer makes the parser of a dataclass of options; ``run`` gets what was typed."""

    def function(ctx: typer.Context, **values: Any) -> None:
        run(ctx, options_from(kind, values))

    context = inspect.Parameter("ctx", inspect.Parameter.KEYWORD_ONLY, annotation=typer.Context)
    words = [_argument(one) for one in arguments_of(kind)]
    parameters = [context, *words, *(_parameter(one) for one in options_of(kind))]
    function.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    return function


def options_from(kind: type[T], values: Mapping[str, Any]) -> T:
    """Returns the typed options that Typer's values stand for; None among them means that an option was not typed.

    Raises LaunchError for words that cannot be read.
    """
    given: dict[str, Any] = {}
    for field in fields(kind):  # type: ignore[arg-type]
        value = values.get(field.name)
        if MODEL in field.metadata:
            given[field.name] = config_values(field.metadata[MODEL], values)
        elif value is not None:
            parse = field.metadata.get(PARSE)
            given[field.name] = parse(value) if parse else value
    return kind(**given)


def _argument(argument: Argument) -> inspect.Parameter:
    declared = typer.Argument(metavar=argument.metavar, help=argument.text)
    if argument.is_list:
        wanted: Any = list[str] | None
        annotation, default = Annotated[wanted, declared], None
    else:
        annotation, default = Annotated[str, declared], inspect.Parameter.empty
    return inspect.Parameter(argument.name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=annotation)


def _parameter(option: Option) -> inspect.Parameter:
    wanted: Any = option.type | None
    declared = typer.Option(
        *option.flags,
        help=_help(option),
        rich_help_panel=option.panel,
        show_default=False,
        metavar=option.metavar,
    )
    return inspect.Parameter(
        option.name, inspect.Parameter.KEYWORD_ONLY, default=None, annotation=Annotated[wanted, declared]
    )


def _help(option: Option) -> str:
    # Every option is absent unless typed, so Typer does not know the values that count then.
    is_told = not option.default_text or "default" in option.text
    return option.text if is_told else f"{option.text} (default: {option.default_text})"

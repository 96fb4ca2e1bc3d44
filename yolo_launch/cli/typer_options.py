"""Makes Typer parameters of options, and typed options of what Typer parsed."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Mapping
from dataclasses import fields
from typing import Annotated, Any, TypeVar

import typer

from yolo_launch.request.options import MODEL, PARSE, Option, config_values, options_of

T = TypeVar("T")


def takes(kind: type[T], *first: inspect.Parameter) -> Callable[[Callable[[typer.Context, T], None]], Any]:
    """Make a command of a function that takes a context and typed options.

    ``first`` are parameters of fields that no option stands for, such as the files of a command.
    """

    def decorate(function: Callable[[typer.Context, T], None]) -> Any:
        @with_options(options_of(kind), *first)
        def command(ctx: typer.Context, **values: Any) -> None:
            function(ctx, options_from(kind, values))

        command.__doc__, command.__name__ = function.__doc__, function.__name__
        return command

    return decorate


def options_from(kind: type[T], values: Mapping[str, Any]) -> T:
    """The typed options that Typer's values stand for; None among them means that the option was not typed.

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


def with_options(options: Iterable[Option], *first: inspect.Parameter) -> Callable[[Callable[..., None]], Any]:
    """Give a function that takes a context and ``**values`` the signature from which Typer makes its parser."""
    context = inspect.Parameter("ctx", inspect.Parameter.KEYWORD_ONLY, annotation=typer.Context)

    def decorate(function: Callable[..., None]) -> Any:
        parameters = [context, *first, *(_parameter(option) for option in options)]
        function.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
        return function

    return decorate


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

"""Makes Typer parameters of the option tables."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable
from typing import Annotated, Any

import typer

from yolo_launch.request.options import Option


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

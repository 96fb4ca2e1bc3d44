"""Commands that remember what was typed, for the next command that an error proposes."""

from __future__ import annotations

from typing import Any

import typer
from typer.core import TyperCommand

from yolo_launch.arguments import normalise_arguments

_TYPED = "yolo_launch.typed"


class TypedCommand(TyperCommand):
    """A command that keeps its arguments as typed."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Remember, then parse."""
        ctx.meta[_TYPED] = ("yolo-launch", str(self.name), *args)
        return super().parse_args(ctx, args)


class TrainCommand(TypedCommand):
    """A command that also takes YOLOv5's way of typing: optional values, lists, underscores."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Bring the arguments into the parser's form, then parse. Raises LaunchError for options of YOLOv5 alone."""
        return super().parse_args(ctx, normalise_arguments(args))


def typed_in(ctx: typer.Context) -> tuple[str, ...]:
    """The whole command as typed."""
    return tuple(ctx.meta.get(_TYPED, ("yolo-launch", "train")))

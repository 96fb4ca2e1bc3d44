"""Remembers what was typed, for the next command that an error proposes."""

from __future__ import annotations

import shlex
from typing import Any

import typer
from typer.core import TyperCommand

from yolo_launch.errors import LaunchError
from yolo_launch.request.yolov5_arguments import normalize_arguments

_TYPED = "words as typed"


class TypedCommand(TyperCommand):
    """A command that keeps its arguments as typed, and also takes YOLOv5's and torchrun's way of typing."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Remembers the arguments, brings those of YOLOv5 and torchrun into the parser's form, then parses.

        Raises LaunchError for options that only these have.
        """
        ctx.meta[_TYPED] = ("yolo-launch", str(self.name), *args)
        return super().parse_args(ctx, normalize_arguments(args, str(self.name)))


class RunCommand(TypedCommand):
    """A command whose unknown options are most likely meant for the script."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Parses. Raises LaunchError that shows the place of a missing --."""
        try:
            return super().parse_args(ctx, args)
        except Exception as error:
            # Since typer carries a click of its own, the class has two homes.
            option = getattr(error, "option_name", None)
            if type(error).__name__ != "NoSuchOption" or "--" in args or not option:
                raise
            place = next((i for i, word in enumerate(args) if word.partition("=")[0] == option), 0)
            follows_script = any(word.endswith(".py") for word in args[:place]) or "--module" in args[:place]
            words = (*args[:place], "--", *args[place:]) if follows_script else ("--help",)
            raise LaunchError(
                f"'yolo-launch run' has no option {option}.",
                seen=shlex.join(typed_in(ctx)),
                expected="the launcher's options and the script first, then --, then the script's own options",
                next_command=shlex.join((*typed_in(ctx)[:2], *words)),
            ) from None


def typed_in(ctx: typer.Context) -> tuple[str, ...]:
    """Returns the whole command as typed."""
    return tuple(ctx.meta.get(_TYPED, ("yolo-launch", "train")))

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
    """A command that keeps its arguments as typed."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Remembers the arguments, then parses."""
        ctx.meta[_TYPED] = ("yolo-launch", str(self.name), *args)
        return super().parse_args(ctx, args)


class TrainCommand(TypedCommand):
    """A command that also takes YOLOv5's way of typing: optional values, lists, underscores."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Brings the arguments into the parser's form, then parses. Raises LaunchError for options of YOLOv5 alone."""
        return super().parse_args(ctx, normalize_arguments(args))


class RunCommand(TypedCommand):
    """A command whose unknown options are most likely meant for the script."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Parses. Raises LaunchError that shows the place of a missing --."""
        words = list(args)
        try:
            return super().parse_args(ctx, args)
        except Exception as error:
            # Since typer carries a click of its own, the class has two homes.
            option = getattr(error, "option_name", None)
            if type(error).__name__ != "NoSuchOption" or "--" in words or not option:
                raise
            place = next((i for i, word in enumerate(words) if word.partition("=")[0] == option), len(words))
            raise LaunchError(
                f"'yolo-launch run' has no option {option}.",
                expected="the launcher's options first, then --, then those of the script",
                next_command=shlex.join((*typed_in(ctx)[:2], *words[:place], "--", *words[place:])),
            ) from None


class InferenceCommand(TypedCommand):
    """A command that also takes YOLOv5's underscores, as in ``--save_txt``."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Turns underscores of option names into hyphens, then parses."""
        return super().parse_args(ctx, [_with_hyphens(word) for word in args])


def typed_in(ctx: typer.Context) -> tuple[str, ...]:
    """Returns the whole command as typed."""
    return tuple(ctx.meta.get(_TYPED, ("yolo-launch", "train")))


def _with_hyphens(word: str) -> str:
    if not word.startswith("--"):
        return word
    flag, equals, value = word.partition("=")
    return flag.replace("_", "-") + equals + value

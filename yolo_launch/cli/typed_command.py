"""Remembers what was typed, for the next command that an error proposes."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from typing import Any

import typer
from typer.core import TyperCommand

from yolo_launch.errors import LaunchError
from yolo_launch.request.command_line import BETWEEN, with_script_apart
from yolo_launch.request.machine_options import RunOptions
from yolo_launch.request.options import options_of
from yolo_launch.request.torchrun_arguments import takes_value
from yolo_launch.request.yolov5_arguments import normalize_arguments
from yolo_launch.submission.submit_options import own_and_others

_TYPED = "words as typed"


class TypedCommand(TyperCommand):
    """A command that keeps its arguments as typed, and also takes YOLOv5's and torchrun's way of typing."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Remembers the arguments, brings those of YOLOv5 and torchrun into the parser's form, then parses.

        Raises LaunchError for options that only these have.
        """
        ctx.meta[_TYPED] = (*ctx.command_path.split(), *args)
        return super().parse_args(ctx, normalize_arguments(args, str(self.name), note=_say))


class RunCommand(TypedCommand):
    """A command whose words after the script are the script's."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Remembers the arguments with ``--`` behind the script, so that options can be changed before it; parses.

        Raises LaunchError for an option that the launcher lacks, which most likely is the script's.
        """
        try:
            return super().parse_args(ctx, with_script_apart(args, _is_valued_in_run))
        except Exception as error:
            # Since typer carries a click of its own, the class has two homes.
            if type(error).__name__ != "NoSuchOption":
                raise
            raise LaunchError(
                f"'yolo-launch run' has no option {getattr(error, 'option_name', '')}.",
                seen=shlex.join(("yolo-launch", "run", *args)),
                expected="the launcher's options first, then the script, then the script's own options",
                next_command="yolo-launch run --help",
            ) from None


class SubmitCommand(TypedCommand):
    """A command around the words of another."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Parses submit's own words; the other command's follow behind ``--`` and are left to its parser."""
        own, others = own_and_others(args, _is_valued_in_run)
        return super().parse_args(ctx, [*own, BETWEEN, *others])


def own_words(arguments: Sequence[str]) -> list[str]:
    """Returns those words of a whole command that are not a script's."""
    words = list(arguments)
    if words[:1] == ["submit"]:
        return ["submit", *own_and_others(words[1:], _is_valued_in_run)[0]]
    if words[:1] == ["run"]:
        words[1:] = with_script_apart(words[1:], _is_valued_in_run)
    return words[: words.index(BETWEEN)] if BETWEEN in words else words


def _is_valued_in_run(flag: str) -> bool:
    valued = {name for option in options_of(RunOptions) if option.type is not bool for name in option.flags}
    return flag.replace("_", "-") in valued or takes_value(flag)


def typed_in(ctx: typer.Context) -> tuple[str, ...]:
    """Returns the whole command as typed."""
    return tuple(ctx.meta.get(_TYPED, ("yolo-launch", "train")))


def _say(text: str) -> None:
    typer.echo(f"note: {text}", err=True)

"""Lists the commands of the program; what a command takes and does is loaded when it is used."""

from __future__ import annotations

import importlib
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import typer
from typer.core import TyperCommand, TyperGroup

from yolo_launch.cli.typed_command import RunCommand, SubmitCommand, TypedCommand
from yolo_launch.errors import LaunchError
from yolo_launch.request.answers import COMMANDS as ANSWERED_COMMANDS


@dataclass(frozen=True)
class CommandEntry:
    """One command of the program."""

    module: str
    """Its module, which holds a function of the same name that takes a context and typed options."""
    options: str
    """The dataclass of its options."""
    parser: type[TypedCommand]
    text: str
    group: str = ""
    """The word before its name, one of GROUPS; most have none."""

    @property
    def name(self) -> str:
        """Returns the name as typed."""
        return self.module.rpartition(".")[2]


COMMANDS = (
    CommandEntry(
        "yolo_launch.cli.commands.train",
        "yolo_launch.request.train_options.TrainOptions",
        TypedCommand,
        "Train a detector; without --data, on a small embedded data set.",
    ),
    CommandEntry(
        "yolo_launch.cli.commands.node",
        "yolo_launch.request.node_options.NodeOptions",
        TypedCommand,
        "Train on several machines: yolo-launch node --rank R --master ADDRESS, on each.",
    ),
    CommandEntry(
        "yolo_launch.cli.commands.val",
        "yolo_launch.request.inference_options.ValOptions",
        TypedCommand,
        "Measure trained weights on a data set.",
    ),
    CommandEntry(
        "yolo_launch.cli.commands.predict",
        "yolo_launch.request.inference_options.PredictOptions",
        TypedCommand,
        "Find objects in pictures and films.",
    ),
    CommandEntry(
        "yolo_launch.cli.commands.export",
        "yolo_launch.request.inference_options.ExportOptions",
        TypedCommand,
        "Write a trained model as ONNX or TorchScript.",
    ),
    CommandEntry(
        "yolo_launch.cli.commands.weights",
        "yolo_launch.request.inference_options.WeightsOptions",
        TypedCommand,
        "Say what is in a weights file; with --convert, write it as weights of yolo-launch.",
    ),
    CommandEntry(
        "yolo_launch.cli.commands.plan",
        "yolo_launch.request.machine_options.PlanOptions",
        TypedCommand,
        "Show what would be started, here or on another machine; nothing is.",
    ),
    CommandEntry(
        "yolo_launch.cli.commands.run",
        "yolo_launch.request.machine_options.RunOptions",
        RunCommand,
        "Run any torchrun-style script: yolo-launch run --gpus 0,1 train.py --data coco.yaml",
    ),
    CommandEntry(
        "yolo_launch.cli.commands.submit",
        "yolo_launch.submission.submit_options.SubmitOptions",
        SubmitCommand,
        "Hand train, node or run to a cluster: yolo-launch submit slurm train --nodes 4 ...",
    ),
    CommandEntry(
        "yolo_launch.cli.commands.jobs.runs",
        "yolo_launch.request.machine_options.RunsOptions",
        TypedCommand,
        "List runs: state, epoch, best mAP, machine and age.",
    ),
    CommandEntry(
        "yolo_launch.cli.commands.jobs.attach",
        "yolo_launch.request.machine_options.AttachOptions",
        TypedCommand,
        "Show what a run says now, wherever it was started; Ctrl-C leaves it running.",
    ),
    CommandEntry(
        "yolo_launch.cli.commands.jobs.stop",
        "yolo_launch.request.machine_options.StopOptions",
        TypedCommand,
        "End a run with its state saved.",
    ),
    CommandEntry(
        "yolo_launch.cli.commands.doctor",
        "yolo_launch.request.machine_options.DoctorOptions",
        TypedCommand,
        "Look at this machine and say what would stand in the way of training. Exit code 0, or 3.",
    ),
    CommandEntry(
        "yolo_launch.cli.commands.data.check",
        "yolo_launch.data_sets.options.CheckOptions",
        TypedCommand,
        "Say what is worth knowing of a data set, with files and lines. Exit code 2 for one that training refuses.",
        "data",
    ),
    CommandEntry(
        "yolo_launch.cli.commands.data.split",
        "yolo_launch.data_sets.options.SplitOptions",
        TypedCommand,
        "Write lists of images to train, validate and test on; what is alike stays together. Nothing is copied.",
        "data",
    ),
    CommandEntry(
        "yolo_launch.cli.commands.data.convert",
        "yolo_launch.data_sets.options.ConvertOptions",
        TypedCommand,
        "Write a data set of any format as label files and a YAML file.",
        "data",
    ),
    CommandEntry(
        "yolo_launch.cli.commands.data.dedupe",
        "yolo_launch.data_sets.options.DedupeOptions",
        TypedCommand,
        "Write lists without the images that repeat others. Nothing is deleted.",
        "data",
    ),
)
GROUPS = {"data": "Look at a data set before it is trained on, and split it."}


class LazyCommand(TyperCommand):
    """A command that knows its name and help; its options are loaded to parse or describe them."""

    def __init__(self, entry: CommandEntry) -> None:
        self._entry = entry
        super().__init__(name=entry.name, help=entry.text)

    @cached_property
    def loaded(self) -> Any:
        """Loads the command with its options, once; the command's module is loaded when the command runs."""
        return load_command(self._entry)

    @property
    def params(self) -> Any:
        """Returns the parameters of the loaded command."""
        return self.loaded.params

    @params.setter
    def params(self, value: Any) -> None:
        """Leaves the parameters to the loaded command."""

    def make_context(self, info_name: str | None, args: list[str], parent: Any = None, **extra: Any) -> Any:
        """Parses the arguments as the loaded command does, which the context then names."""
        return self.loaded.make_context(info_name, args, parent=parent, **extra)


class CommandGroup(TyperGroup):
    """The program's group: it holds every command of the table."""

    def __init__(self, **settings: Any) -> None:
        commands: dict[str, Any] = _lazy_commands("")
        for group, text in GROUPS.items():
            commands[group] = TyperGroup(name=group, help=text, commands=_lazy_commands(group), no_args_is_help=True)
        super().__init__(**{**settings, "commands": commands})

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Parses; leaves the program's own options out if a command comes first: typer reads them with pydantic."""
        if args and args[0].removesuffix(".py") not in self.commands:
            _answer_other_programs(args)
        if not args or args[0] not in self.commands:
            return super().parse_args(ctx, args)
        own, self.params = self.params, []
        self.add_help_option = False
        try:
            return super().parse_args(ctx, args)
        finally:
            self.params = own
            self.add_help_option = True


def _lazy_commands(group: str) -> dict[str, Any]:
    return {entry.name: LazyCommand(entry) for entry in COMMANDS if entry.group == group}


def _answer_other_programs(args: list[str]) -> None:
    """Raises LaunchError for a command of YOLOv5, ultralytics or torchrun, with the one that does it here."""
    word = args[0].rpartition("/")[2].removesuffix(".py")
    nearest = ANSWERED_COMMANDS.get(word)
    if nearest is None and "=" in args[0]:
        nearest = "yolo-launch train --help"
    if nearest is not None:
        raise LaunchError(
            f"yolo-launch has no command '{args[0]}'.",
            seen=args[0],
            expected=f"one of {', '.join([*(entry.name for entry in COMMANDS if not entry.group), *GROUPS])}",
            next_command=nearest,
        )


def load_command(entry: CommandEntry) -> Any:
    """Returns a command with its options as parameters; the command imports its module when it is called."""
    # Only now: the options of some commands need pydantic, which takes as long as everything else.
    from yolo_launch.cli.typer_options import typer_function

    module, _, kind = entry.options.rpartition(".")

    def run(ctx: typer.Context, options: object) -> None:
        getattr(importlib.import_module(entry.module), entry.name)(ctx, options)

    app = typer.Typer(add_completion=False)
    function = typer_function(getattr(importlib.import_module(module), kind), run)
    app.command(entry.name, cls=entry.parser, help=entry.text)(function)
    return typer.main.get_command(app)

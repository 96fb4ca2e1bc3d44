"""Turns torchrun's spellings into those of this program: on one machine for train and run, of several for node."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import zip_longest

from yolo_launch.errors import LaunchError
from yolo_launch.request.answers import TORCHRUN, TORCHRUN_REFUSED

_SHORT = {"-r": "--redirects", "-t": "--tee", "-m": "--module"}
_HERE = ("127.0.0.1", "localhost", "::1", "0.0.0.0")
_ONE_MACHINE = ("1", "1:1")
_ALL_DEVICES = ("auto", "gpu", "xpu")
_VALUED = ("--nproc-per-node", "--nnodes", "--node-rank", "--master-addr", "--master-port")
_WITHOUT_VALUE = ("--run-path",)
COMMANDS = ("train", "node", "run", "plan")


def torchrun_option(command: str, flag: str, value: str, note: Callable[[str], None]) -> list[str] | None:
    """Returns the words that stand for one option of torchrun with its value; None if torchrun has no such option.

    ``note`` is told of an option that changes nothing here, and why. Raises LaunchError for one that cannot be had, or
    a value, with what can.
    """
    name = flag.replace("_", "-")
    if name in TORCHRUN_REFUSED:
        raise _refused(command, flag, TORCHRUN_REFUSED[name])
    if name == "--rdzv-endpoint" and command == "node":
        return _endpoint(value)
    if name in TORCHRUN:
        note(f"{flag} of torchrun changes nothing here: {TORCHRUN[name]}")
        return []
    if name == "--standalone":
        return []
    if name == "--nproc-per-node":
        return _nproc(value)
    if name == "--nnodes":
        return _nnodes(command, value)
    if name == "--node-rank":
        return ["--rank", value] if command == "node" else _only_here(command, flag, value, ("0",))
    if name == "--master-addr":
        return ["--master", value] if command == "node" else _only_here(command, flag, value, _HERE)
    if name == "--master-port":
        return ["--port", value]
    return None


def place_of(command: str, arguments: Sequence[str]) -> str:
    """Returns the command whose words stand for a machine's place: ``run`` of several machines takes those of node."""
    for word, following in zip_longest(arguments, arguments[1:], fillvalue=""):
        flag, equals, value = word.partition("=")
        is_many = flag.replace("_", "-") == "--nnodes" and (value if equals else following) not in _ONE_MACHINE
        if command == "run" and (is_many or flag in ("--nodes", "--rank", "--master")):
            return "node"
    return command


def takes_value(flag: str) -> bool:
    """Returns True if the word after an option of torchrun is its value."""
    name = long_spelling(flag).replace("_", "-")
    return name in _VALUED or (name in TORCHRUN and name not in _WITHOUT_VALUE)


def long_spelling(word: str) -> str:
    """Returns torchrun's long spelling of a short option, or the word itself."""
    return _SHORT.get(word, word)


def _nproc(value: str) -> list[str]:
    if value in _ALL_DEVICES:
        return []
    if value == "cpu":
        return ["--gpus", "cpu"]
    return ["--nproc", value]


def _nnodes(command: str, value: str) -> list[str]:
    if command == "plan":
        return ["--nnodes", value]
    if command == "node":
        return ["--nodes", value]
    return _only_here(command, "--nnodes", value, _ONE_MACHINE)


def _endpoint(value: str) -> list[str]:
    address, colon, port = value.rpartition(":")
    if not colon or value.endswith("]"):
        return ["--master", value.strip("[]")]
    return ["--master", address.strip("[]"), *(["--port", port] if port != "0" else [])]


def _only_here(command: str, flag: str, value: str, allowed: Sequence[str]) -> list[str]:
    if value in allowed:
        return []
    raise LaunchError(
        f"yolo-launch {command} works on one machine.",
        seen=f"{flag} {value}",
        expected="on each machine: yolo-launch node --rank R --master ADDRESS, with --nodes N on the first",
        next_command="yolo-launch node --help",
    )


def _refused(command: str, flag: str, way_out: str) -> LaunchError:
    return LaunchError(
        f"{flag} is an option of torchrun that yolo-launch does not have: {way_out}.",
        seen=flag,
        expected="options of yolo-launch",
        next_command=f"yolo-launch {command} --help",
    )

"""Reads Python stacks of stalled workers from faulthandler's text, and finds what the code waits for."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

_FRAME = re.compile(r'File "(?P<path>[^"]*)", line (?P<line>\S+) in (?P<function>.+)$')
_COLLECTIVES = frozenset(
    {
        "all_reduce",
        "all_gather",
        "all_gather_object",
        "all_gather_into_tensor",
        "all_to_all",
        "barrier",
        "monitored_barrier",
        "broadcast",
        "broadcast_object_list",
        "gather",
        "gather_object",
        "reduce",
        "reduce_scatter",
        "scatter",
        "recv",
        "send",
        "wait",
        "synchronize",
        "init_process_group",
        "rendezvous",
        "_store_based_barrier",
        "destroy_process_group",
    }
)
_OUTSIDE_SCRIPT = ("runpy>", "/runpy.py", "/yolo_launch/workers/script_entrypoint.py")
"""Endings of files that start a script and are no part of it."""
_BACKWARD = frozenset({"_engine_run_backward"})
_WAITS = "trainer/runtime/patience.py"
_LOADERS = ("torch/utils/data/dataloader.py", "trainer/data/loading/batch_loader.py")


@dataclass(frozen=True)
class Frame:
    """One line of a stack."""

    path: str
    line: str
    function: str

    def __str__(self) -> str:
        return f"{'/'.join(self.path.split('/')[-2:])}:{self.line} in {self.function}"


def main_stack(text: str) -> list[Frame]:
    """Returns the main thread's frames, which faulthandler lists last, innermost first, up to the script."""
    threads = re.split(r"^(?:Current thread|Thread) .*$", text, flags=re.MULTILINE)
    frames = [match for match in (_FRAME.search(line) for line in threads[-1].splitlines()) if match]
    found = [Frame(match["path"], match["line"], match["function"]) for match in frames]
    while len(found) > 1 and found[-1].path.endswith(_OUTSIDE_SCRIPT):
        found.pop()
    return found


def collective_in(frames: Sequence[Frame]) -> str:
    """Returns the collective that the code waits in, or ''. A backward pass waits for gradients in C++."""
    for frame in reversed(frames):
        if "/torch/distributed/" in frame.path and frame.function in _COLLECTIVES:
            return frame.function
        if frame.path.endswith(_WAITS):
            return "the work of another rank"
        if frame.function in _BACKWARD:
            return "the backward pass"
    return ""


def waits_for_loader(frames: Sequence[Frame]) -> bool:
    """Returns whether the code waits for a batch of loader processes, our trainer's or a script's DataLoader's."""
    return any(frame.path.endswith(_LOADERS) for frame in frames)


def own_frame(frames: Sequence[Frame]) -> Frame | None:
    """Returns the innermost frame outside installed packages and the standard library, else the innermost one."""
    for frame in frames:
        if "site-packages" not in frame.path and "/lib/python" not in frame.path and not frame.path.startswith("<"):
            return frame
    return frames[0] if frames else None

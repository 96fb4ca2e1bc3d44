"""Runs a foreign script as a worker: `python -u -m yolo_launch.workers.script_entrypoint [-m] SCRIPT ...`.

It adds to a script what the built-in trainer does by itself: it ends with the launcher, and its loader processes with
it; it writes its exception to the error file and its stacks on SIGUSR2.
The script is the process's ``__main__``, until the interpreter ends: what it pickles at exit, in a thread or for a
spawned process finds its classes there, as with `python SCRIPT ...`.
"""

from __future__ import annotations

import builtins
import contextlib
import importlib
import importlib.machinery
import multiprocessing
import multiprocessing.util
import os
import runpy
import sys
import threading
import traceback
import zipfile
from pathlib import Path
from types import ModuleType, TracebackType

_MAIN_THREAD = type(threading.main_thread())


def main() -> None:
    """Runs the script that the command line names, in this process."""
    protocol, guard, origin = _import_ours(
        "trainer.protocol", "trainer.runtime.process_guard", "trainer.runtime.origin"
    )
    guard.guard_worker()
    _tie_loaders(guard)
    if protocol.output_is_data(os.environ):
        os.dup2(2, 1)  # stdout is for the launcher's JSON
    arguments = sys.argv[1:]
    as_module = arguments[:1] == ["-m"]
    target, *rest = arguments[1:] if as_module else arguments
    sys.argv = [target, *rest]
    # python -m put the working directory first; a script expects its own folder there. With PYTHONSAFEPATH neither is
    # there, and the first entry is the user's.
    if not getattr(sys.flags, "safe_path", False):
        sys.path[0] = os.getcwd() if as_module else str(Path(target).resolve().parent)
    try:
        _run_as_main(target, as_module=as_module)
    except SystemExit as end:
        if isinstance(end.code, str):  # Python prints it and exits with 1
            _write_error(end, protocol, by_torch=False)
        raise
    except BaseException as error:
        _begin_traceback_in_script(error)
        if not isinstance(error, KeyboardInterrupt):
            _write_error(error, protocol, by_torch=origin.raised_by_torch(error))
        raise
    finally:
        _note_last_line(protocol)


def _run_as_main(target: str, *, as_module: bool) -> None:
    """Runs a module, folder, archive or file in a ``__main__`` of its own, which takes this one's place for good."""
    sys.modules[f"{__package__}.script_entrypoint"] = sys.modules["__main__"]
    main_module = sys.modules["__main__"] = ModuleType("__main__")
    main_module.__dict__["__builtins__"] = builtins
    if sys.version_info < (3, 14):
        main_module.__dict__.update(__annotations__={})
    is_path_entry = not as_module and (os.path.isdir(target) or zipfile.is_zipfile(target))
    if is_path_entry:  # it is searched first, with PYTHONSAFEPATH too
        sys.path[: not getattr(sys.flags, "safe_path", False)] = [os.path.abspath(target)]
    if as_module or is_path_entry:
        # What python -m, python FOLDER and python ARCHIVE call.
        runpy._run_module_as_main(target if as_module else "__main__", alter_argv=as_module)  # type: ignore[attr-defined]
        return
    path = os.path.join(os.getcwd(), target)
    loader = importlib.machinery.SourceFileLoader("__main__", path)
    main_module.__dict__.update(__file__=path, __loader__=loader, __cached__=None)
    exec(compile(Path(path).read_bytes(), path, "exec"), main_module.__dict__)


def _import_ours(*names: str) -> list[ModuleType]:
    """Returns modules of our trainer, from beside this package; a script's own package ``trainer`` keeps its name."""
    root = str(Path(__file__).resolve().parents[2])
    sys.path.insert(0, root)
    try:
        return [importlib.import_module(name) for name in names]
    finally:
        sys.path.remove(root)
        for name in [name for name in sys.modules if name.partition(".")[0] == "trainer"]:
            del sys.modules[name]


def _tie_loaders(guard: ModuleType) -> None:
    """Ends the script's loader processes with this worker, also in the middle of an item.

    They are daemonic children of multiprocessing, which are meant to end with their parent. The kernel watches the
    thread that forked; those of a thread that may end before watch their parent themselves.
    """

    def tie(_: object) -> None:
        parent = multiprocessing.parent_process()
        if parent is None or parent.pid is None or not multiprocessing.current_process().daemon:
            return
        if type(threading.current_thread()) is _MAIN_THREAD:
            guard.die_with_parent(parent.pid)
        else:
            threading.Thread(target=guard.exit_after_parent, args=(parent.pid,), daemon=True).start()

    multiprocessing.util.register_after_fork(_MAIN_THREAD, tie)


def _begin_traceback_in_script(error: BaseException) -> None:
    """Removes this file's and runpy's frames from what is shown: they have no bearing on the script."""
    own_files = {main.__code__.co_filename, runpy.run_path.__code__.co_filename}
    frames = error.__traceback__
    while frames is not None and frames.tb_frame.f_code.co_filename in own_files:
        frames = frames.tb_next
    error.__traceback__ = frames
    show = sys.excepthook

    def show_script_only(kind: type[BaseException], shown: BaseException, trace: TracebackType | None) -> None:
        # Raising it again has put this file's frame back.
        if shown is error:
            shown.__traceback__ = trace = frames
        show(kind, shown, trace)

    sys.excepthook = show_script_only


def _note_last_line(protocol: ModuleType) -> None:
    """Says that the script is over, so that a process that does not end after it is noticed."""
    logs_dir = os.environ.get(protocol.LOGS_VARIABLE)
    if logs_dir:
        with contextlib.suppress(OSError):
            protocol.LogFiles(Path(logs_dir)).finished(protocol.rank_in(os.environ)).touch()


def _write_error(error: BaseException, protocol: ModuleType, *, by_torch: bool) -> None:
    """Writes the exception to the error file unless torch's own @record has written one already."""
    name = os.environ.get(protocol.ERROR_FILE_VARIABLE)
    if not name or (Path(name).exists() and Path(name).stat().st_size > 0):
        return
    text = "".join(traceback.format_exception(type(error), error, error.__traceback__))
    message = "".join(traceback.format_exception_only(type(error), error)).strip()
    if isinstance(error, SystemExit):
        message, text = str(error.code), ""
    record = protocol.FailureRecord(protocol.rank_in(os.environ), message, text, by_torch=by_torch)
    with contextlib.suppress(OSError):  # a full disk; the exit code still tells
        protocol.write_failure(Path(name), record)


if __name__ == "__main__":
    main()

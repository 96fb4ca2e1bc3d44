"""Writes down all that a script can see of how it was started, also at its very end."""

import atexit
import io
import json
import os
import pickle
import signal
import sys
import threading
import time

HERE = os.environ["PROBE_OUT"] + "." + os.environ.get("RANK", "0")
seen = {}


class Thing:
    """A class of the script's own."""

    def __init__(self, value):
        self.value = value


def describe(value):
    return f"{type(value).__module__}.{type(value).__qualname__}" if value is not None else None


def look():
    main = sys.modules["__main__"]
    seen["globals"] = sorted(set(globals()) - {"HERE"})
    seen["main is this"] = main.__dict__ is globals()
    seen["__name__"], seen["__file__"] = __name__, __file__
    seen["__package__"], seen["__doc__"], seen["__cached__"] = __package__, __doc__, globals().get("__cached__")
    seen["__spec__"] = __spec__.name if __spec__ else None
    seen["__loader__"], seen["__builtins__"] = describe(__loader__), describe(__builtins__)
    seen["argv"], seen["path"] = sys.argv, sys.path
    flags = {name: getattr(sys.flags, name) for name in dir(sys.flags) if name[0] != "_"}
    seen["flags"] = {name: value for name, value in flags.items() if isinstance(value, (int, bool))}
    seen["warnoptions"], seen["xoptions"] = sys.warnoptions, sys._xoptions
    seen["excepthook"] = sys.excepthook is sys.__excepthook__
    seen["streams"] = [describe(getattr(sys, name)) for name in ("stdin", "stdout", "stderr")]
    seen["stdout is real"] = sys.stdout is sys.__stdout__ and isinstance(sys.stdout, io.TextIOWrapper)
    seen["terminal"] = [os.isatty(number) for number in range(3)]
    seen["cwd"], seen["umask"], seen["nice"] = os.getcwd(), os.umask(0), os.nice(0)
    os.umask(seen["umask"])
    seen["signals"] = {
        int(s): str(signal.getsignal(s)) for s in signal.valid_signals() if signal.getsignal(s) is not None
    }
    seen["blocked"] = sorted(int(s) for s in signal.pthread_sigmask(signal.SIG_BLOCK, []))
    seen["threads"] = sorted(thread.name for thread in threading.enumerate())
    seen["our modules"] = sorted(name for name in sys.modules if name.split(".")[0] in ("trainer", "yolo_launch"))
    seen["environment"] = dict(os.environ)
    seen["stdin"] = sys.stdin.readline() if os.environ.get("PROBE_READS") else None


def at_exit():
    # The classes of the script must still be found where pickle looks for them.
    seen["pickled at exit"] = pickle.loads(pickle.dumps(Thing(3))).value
    seen["main at exit"] = sys.modules["__main__"].__dict__ is globals()
    with open(HERE, "w") as file:
        json.dump(seen, file)


def late():
    time.sleep(0.3)
    seen["pickled in a thread after the last line"] = pickle.loads(pickle.dumps(Thing(2))).value


if __name__ == "__main__":
    look()
    seen["pickled"] = pickle.loads(pickle.dumps(Thing(1))).value
    atexit.register(at_exit)
    threading.Thread(target=late).start()

"""Tells exceptions that torch raised from those of the program that runs on it. Free of torch."""

from __future__ import annotations

import dis

_RAISING = {dis.opmap[name] for name in ("RAISE_VARARGS", "RERAISE") if name in dis.opmap}


def raised_by_torch(error: BaseException) -> bool:
    """Returns True if torch raised the exception, or the one that it was raised from.

    Only torch's own exceptions can say that a peer is gone; other libraries lose connections of their own. They are
    RuntimeErrors, and come from a module of torch, or out of compiled code: then the last line of Python is a call,
    and no ``raise``.
    """
    earlier = error.__cause__ or (None if error.__suppress_context__ else error.__context__)
    if earlier is not None:
        return raised_by_torch(earlier)
    trace = error.__traceback__
    if not isinstance(error, RuntimeError) or trace is None:
        return False
    while trace.tb_next is not None:
        trace = trace.tb_next
    if str(trace.tb_frame.f_globals.get("__name__", "")).partition(".")[0] == "torch":
        return True
    return trace.tb_frame.f_code.co_code[trace.tb_lasti] not in _RAISING

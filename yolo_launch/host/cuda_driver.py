"""Asks the CUDA driver, in a process of its own, whether the planned GPUs start: NVML may see more than works."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Mapping

_LIMIT_S = 60.0
_ASK = """
import ctypes, sys
try:
    cuda = ctypes.CDLL("libcuda.so.1")
except OSError as error:
    sys.exit(f"the CUDA driver's library is not there ({error})")
def check(code):
    if code:
        name = ctypes.c_char_p()
        cuda.cuGetErrorString(code, ctypes.byref(name))
        sys.exit(f"{(name.value or b'unknown error').decode()} (CUDA error {code})")
check(cuda.cuInit(0))
count = ctypes.c_int()
check(cuda.cuDeviceGetCount(ctypes.byref(count)))
print(count.value)
"""


def find_problem(environment: Mapping[str, str], devices: int) -> str:
    """Returns why the driver does not start so many GPUs in this environment, in its own words; empty if it does.

    ``environment`` is added to this process's own: the plan's masks.
    """
    try:
        ended = subprocess.run(
            [sys.executable, "-I", "-c", _ASK],
            env={**os.environ, **environment},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=_LIMIT_S,
        )
    except subprocess.TimeoutExpired:
        return f"the CUDA driver did not answer within {_LIMIT_S:g} s"
    except OSError as error:
        return str(error)
    if ended.returncode != 0:
        return ended.stderr.strip().rpartition("\n")[2] or f"the driver ended the question with {ended.returncode}"
    found = int(ended.stdout)
    return "" if found >= devices else f"CUDA starts {found} of the {devices} planned GPUs"

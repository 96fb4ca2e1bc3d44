"""Loads torch in a child while this machine waits, so that loading it here takes less time.

Loading its libraries blocks every thread of a process, from a cold disk for longer than a machine of a job may be
silent. The child reads them into memory first.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable

from yolo_launch.host.inventory import INSTALLED_ONLY

WARM_S = 180.0
"""After so many seconds the machine goes on without it."""
_LOADED = "import torch.distributed.launcher.api"


class TorchPreload:
    """Starts to load torch in a child at once, unless it is loaded here."""

    def __init__(self) -> None:
        self._child: subprocess.Popen[bytes] | None = None
        if "torch" not in sys.modules:
            quiet = subprocess.DEVNULL
            environment = {**os.environ, **INSTALLED_ONLY}
            self._child = subprocess.Popen(
                [sys.executable, "-c", _LOADED], env=environment, stdin=quiet, stdout=quiet, stderr=quiet
            )

    def wait(self, should_stop: Callable[[], bool]) -> None:
        """Returns when the child has loaded torch, or the time is up, or ``should_stop``."""
        deadline = time.monotonic() + WARM_S
        while self._child is not None and self._child.poll() is None:
            if should_stop() or time.monotonic() > deadline:
                return
            time.sleep(0.05)

    def close(self) -> None:
        """Ends the child if it still runs."""
        if self._child is not None and self._child.poll() is None:
            self._child.kill()
            self._child.wait()

"""What rank 0 shows: it never ends a training."""

from __future__ import annotations

import subprocess
import sys

import pytest

SAY = """
import sys
from pathlib import Path
from trainer.runtime.reporter import Reporter
reporter = Reporter(enabled=True, log_path=Path(sys.argv[1]))
for number in range(3):
    reporter.say(f"line {number}")
    sys.stdout.flush()
"""


@pytest.mark.skipif(sys.platform != "linux", reason="/dev/full is Linux's")
@pytest.mark.parametrize("screen", ["/dev/full", "closed pipe"])
def test_a_screen_that_takes_nothing_leaves_the_log(tmp_path, screen):
    log = tmp_path / "rank0.log"
    command = [sys.executable, "-c", SAY, str(log)]
    if screen == "closed pipe":
        command = ["bash", "-c", 'set -o pipefail; "$@" | true', "bash", *command]
        child = subprocess.run(command, capture_output=True, text=True, check=False)
    else:
        with open(screen, "w") as full:
            child = subprocess.run(command, stdout=full, stderr=subprocess.PIPE, text=True, check=False)
    assert child.returncode == 0, child.stderr
    assert log.read_text() == "line 0\nline 1\nline 2\n"

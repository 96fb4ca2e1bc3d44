"""Runs the program as ``python -m yolo_launch``, if its console script is not on the path."""

from __future__ import annotations

import os
import sys
from pathlib import Path

from yolo_launch.cli.main import main

CODE_DIR = Path(__file__).resolve().parents[1]


def share_code() -> None:
    """Lets workers find the code that runs here if it comes from the working directory, as in a checkout.

    They take nothing from the working directory by themselves, and would find no package, or an installed one.
    """
    if sys.path and sys.path[0] and Path(sys.path[0]).resolve() == CODE_DIR:
        inherited = os.environ.get("PYTHONPATH")
        os.environ["PYTHONPATH"] = os.pathsep.join([str(CODE_DIR), *([inherited] if inherited else [])])


if __name__ == "__main__":
    share_code()
    main()

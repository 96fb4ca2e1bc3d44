"""``python -m yolo_launch``: the program, if its console script is not on the path."""

from __future__ import annotations

from yolo_launch.cli.main import main

if __name__ == "__main__":
    main()

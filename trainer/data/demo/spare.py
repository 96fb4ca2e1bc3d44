"""A user's folder in the system's temporary folder, for caches that have no better place."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path


def spare_root() -> Path:
    """Makes and returns this user's folder in the system's temporary folder; OSError if it is somebody else's."""
    folder = Path(tempfile.gettempdir()) / f"yolo-launch-{os.getuid()}"
    folder.mkdir(mode=0o700, exist_ok=True)
    if folder.lstat().st_uid != os.getuid():
        raise PermissionError(f"{folder} belongs to another user")
    return folder

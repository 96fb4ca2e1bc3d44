"""Shows pictures in a window on the screen, for people who ask for one."""

from __future__ import annotations

import os
import sys

import cv2
import numpy as np

from trainer.errors import ConfigError

_TITLE = "yolo-launch"
_KEYS_TO_STOP = frozenset((ord("q"), 27))


def open_window() -> None:
    """Opens the window. Raises ConfigError if this OpenCV or this machine has none."""
    screenless = sys.platform == "linux" and not (os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY"))
    # Without a display some builds of OpenCV end the process instead of raising.
    seen = "no display (DISPLAY and WAYLAND_DISPLAY are not set)" if screenless else ""
    if not seen:
        try:
            cv2.namedWindow(_TITLE, cv2.WINDOW_NORMAL)
        except cv2.error:
            seen = "an OpenCV that was built without windows, such as opencv-python-headless"
    if seen:
        raise ConfigError(
            "--show cannot open a window here",
            seen=seen,
            expected="a display, and opencv-python in place of opencv-python-headless",
            next_command="leave --show out; the drawn pictures are in the run directory",
        )


def show(picture: np.ndarray, *, wait_for_key: bool) -> bool:
    """Shows a picture, until a key is pressed if so wanted; returns True if the user wants to stop (q or Esc)."""
    cv2.imshow(_TITLE, picture)
    return cv2.waitKey(0 if wait_for_key else 1) & 0xFF in _KEYS_TO_STOP

"""Text in pictures: OpenCV's built-in letters for ASCII, a font of the machine for everything else."""

from __future__ import annotations

import unicodedata
from typing import TYPE_CHECKING

import cv2
import numpy as np

from trainer.evaluation.fonts import font_of_size

if TYPE_CHECKING:
    from PIL.ImageFont import FreeTypeFont

Color = tuple[int, int, int]

_FONT = cv2.FONT_HERSHEY_SIMPLEX
_PX_AT_SCALE_1 = 30
"""The height of a font whose letters are as large as OpenCV's at scale 1."""


def drawable(text: str, fallback: str) -> str:
    """``text`` in one line, if a font has all of its characters; else what ASCII has of it, or ``fallback``.

    Without a font accents are dropped, and ``fallback`` is taken if no letter or digit remains.
    """
    line = " ".join(text.split())
    if line and (line.isascii() or _font(line, 1.0) is not None):
        return line
    plain = unicodedata.normalize("NFKD", line)
    plain = "".join(character for character in plain if not unicodedata.combining(character))
    plain = plain.encode("ascii", "replace").decode()
    return plain if any(character.isalnum() for character in plain) else fallback


def text_size(text: str, scale: float, thickness: int = 1) -> tuple[int, int, int]:
    """(width, height above the base line, depth below it) of a line of text in pixels."""
    font = _font(text, scale)
    if font is None:
        (width, height), base = cv2.getTextSize(text, _FONT, scale, thickness)
        return int(width), int(height), int(base)
    left, top, right, bottom = font.getbbox(text, anchor="ls", stroke_width=thickness - 1)
    return int(np.ceil(right - min(left, 0))), int(np.ceil(-top)), int(np.ceil(max(bottom, 0)))


def put_text(
    image_bgr: np.ndarray, text: str, at: tuple[int, int], scale: float, color: Color, thickness: int = 1
) -> None:
    """Draw a line of text into an image, in place, its base line starting at ``at`` (x, y)."""
    font = _font(text, scale)
    if font is None:
        cv2.putText(image_bgr, text, at, _FONT, scale, color, thickness, cv2.LINE_AA)
        return
    from PIL import Image, ImageDraw

    width, height, depth = text_size(text, scale, thickness)
    mask = Image.new("L", (width + 2, height + depth + 2), 0)
    ImageDraw.Draw(mask).text((1, height + 1), text, fill=255, font=font, anchor="ls", stroke_width=thickness - 1)
    _blend(image_bgr, np.asarray(mask, np.float32) / 255, at[0] - 1, at[1] - height - 1, color)


def _blend(image: np.ndarray, shares: np.ndarray, left: int, top: int, color: Color) -> None:
    """Mix a color into an image by shares of 0 to 1, which may stand out over its edges."""
    bottom, right = min(top + shares.shape[0], image.shape[0]), min(left + shares.shape[1], image.shape[1])
    inside = shares[max(0, -top) : bottom - top, max(0, -left) : right - left, None]
    if not inside.size:
        return
    part = image[max(0, top) : bottom, max(0, left) : right]
    part[:] = (part * (1 - inside) + np.array(color, np.float32) * inside + 0.5).astype(np.uint8)


def _font(text: str, scale: float) -> FreeTypeFont | None:
    """The font that draws a text; None for ASCII, and if there is none."""
    return None if text.isascii() else font_of_size(text, max(8, round(_PX_AT_SCALE_1 * scale)))

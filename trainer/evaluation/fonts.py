"""Finds fonts that have the characters of a text, among matplotlib's own and those that the machine has."""

from __future__ import annotations

import importlib.util
import logging
import unicodedata
from collections.abc import Iterable
from functools import cache, lru_cache
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from PIL.ImageFont import FreeTypeFont

_PACKAGES = {
    "CJK": "Noto Sans CJK (Debian and Ubuntu: fonts-noto-cjk)",
    "HIRAGANA": "Noto Sans CJK (Debian and Ubuntu: fonts-noto-cjk)",
    "KATAKANA": "Noto Sans CJK (Debian and Ubuntu: fonts-noto-cjk)",
    "HANGUL": "Noto Sans CJK (Debian and Ubuntu: fonts-noto-cjk)",
    "FULLWIDTH": "Noto Sans CJK (Debian and Ubuntu: fonts-noto-cjk)",
}
"""First word of a character's Unicode name -> the font to install; of other scripts, Noto's font is called as they."""

_log = logging.getLogger(__name__)


def fonts_for(text: str) -> tuple[list[Path], str]:
    """Font files that together have every character of ``text``, and the characters that no font has.

    The first font is matplotlib's own, so that plain text looks the same everywhere.
    """
    chosen = [_own_font()]
    missing = _drawn(text)
    missing -= _characters_of(chosen[0]) if missing else set()
    if missing:
        for path in _font_files():
            if found := missing & _characters_of(path):
                chosen.append(path)
                missing -= found
            if not missing:
                break
    return chosen, "".join(sorted(missing))


def warn_of_missing(texts: Iterable[str]) -> None:
    """Say once which characters no font of this machine has, and which font to install."""
    _, missing = fonts_for("".join(text for text in texts if not text.isascii()))
    if missing:
        _warn(missing)


@cache
def _warn(missing: str) -> None:
    fonts = list(dict.fromkeys(map(_font_to_install, missing)))
    _log.warning(
        "no font on this machine has %s: pictures name such classes by their number. Install %s, or put a font into "
        "~/.local/share/fonts",
        " ".join(missing[:10]) + (" and more" if len(missing) > 10 else ""),
        " and ".join(fonts[:3]),
    )


@lru_cache(maxsize=512)
def font_of_size(text: str, size_px: int) -> FreeTypeFont | None:
    """A font of Pillow that has every character of ``text``, about ``size_px`` high; None if no single one has."""
    from PIL import ImageFont

    if text.isascii():  # what every font of letters has; matplotlib would take 0.3 s to say so
        return ImageFont.truetype(str(_own_font()), size_px)
    needed = _drawn(text)
    fonts, missing = fonts_for(text)
    for path in [] if missing else [*fonts, *_font_files()]:
        if needed <= _characters_of(path):
            return ImageFont.truetype(str(path), size_px)
    return None


def family_names(texts: Iterable[str]) -> list[str]:
    """Names of font families for matplotlib, which takes each character from the first that has it."""
    from matplotlib.font_manager import FontProperties, fontManager

    names = []
    for path in fonts_for("".join(texts))[0]:
        if not any(entry.fname == str(path) for entry in fontManager.ttflist):
            fontManager.addfont(str(path))
        names.append(FontProperties(fname=str(path)).get_name())
    return list(dict.fromkeys(names))


def _font_to_install(character: str) -> str:
    script = unicodedata.name(character, "UNKNOWN").split()[0].split("-")[0]
    return _PACKAGES.get(script, f"Noto Sans {script.capitalize()} (Debian and Ubuntu: fonts-noto-core)")


def _drawn(text: str) -> set[str]:
    """The characters of a text that need a sign of their own."""
    return {character for character in text if not character.isspace() and unicodedata.category(character)[0] != "C"}


def _own_font() -> Path:
    """The font that comes with matplotlib, which is not imported for it."""
    found = importlib.util.find_spec("matplotlib")
    assert found is not None
    assert found.origin is not None
    return Path(found.origin).parent / "mpl-data" / "fonts" / "ttf" / "DejaVuSans.ttf"


@cache
def _font_files() -> tuple[Path, ...]:
    """The font files of this machine, plain upright ones first."""
    from matplotlib.font_manager import findSystemFonts

    def is_special(path: Path) -> bool:
        return any(
            word in path.stem.lower() for word in ("bold", "italic", "oblique", "mono", "serif", "light", "thin")
        )

    paths = [Path(path) for path in findSystemFonts()]
    return tuple(sorted(set(paths), key=lambda path: (is_special(path), str(path))))


@cache
def _characters_of(path: Path) -> frozenset[str]:
    """The characters that a font has signs for; none for a file that is no font that can be drawn with."""
    from matplotlib.ft2font import FT2Font

    try:
        font = FT2Font(str(path))
    except (RuntimeError, OSError):
        return frozenset()
    # A font of pictures in one size cannot be drawn at another.
    return frozenset(map(chr, font.get_charmap())) if font.scalable else frozenset()

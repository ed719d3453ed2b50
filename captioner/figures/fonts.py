"""Fonts of figures: those that have the letters of a caption, in any script."""

import logging
import unicodedata
from collections.abc import Iterator
from contextlib import AbstractContextManager
from functools import cache

import matplotlib
from matplotlib import font_manager

_FIRST = "DejaVu Sans"
"""matplotlib's own font, which has most alphabets."""

_INVISIBLE = ("Cc", "Cf", "Zs", "Zl", "Zp")  # Unicode categories: control characters, spaces

_logger = logging.getLogger(__name__)


def fonts_for(text: str) -> AbstractContextManager[None]:
    """Let matplotlib draw a text: while it is open, letters that its own font lacks are taken from others."""
    return matplotlib.rc_context({"font.family": [_FIRST, *_further_fonts(frozenset(text))]})


def font_file_for(text: str) -> str:
    """The file of a font that has all letters of a text, if one is installed, else of matplotlib's own."""
    further = list(_further_fonts(frozenset(text)).values())
    return further[0] if len(further) == 1 else font_manager.findfont(_FIRST)


@cache
def _further_fonts(letters: frozenset[str]) -> dict[str, str]:
    """The installed families that together have the letters that matplotlib's own font lacks, the ones with
    most of them first, and their files. Letters that no font has are named in the log."""
    missing = {ord(letter) for letter in letters if unicodedata.category(letter) not in _INVISIBLE}
    missing -= _codes(font_manager.findfont(_FIRST))
    fonts: dict[str, str] = {}
    while missing:
        best, family, path = max(
            ((len(missing & _codes(path)), family, path) for family, path in _installed()),
            default=(0, "", ""),
        )
        if not best:
            shown = "".join(map(chr, sorted(missing)))
            _logger.warning("no installed font has %s; figures show boxes in their place", shown)
            break
        fonts[family] = path
        missing -= _codes(path)
    return fonts


def _installed() -> Iterator[tuple[str, str]]:
    """The upright fonts of normal weight by family, and their files."""
    for font in font_manager.fontManager.ttflist:
        is_regular = font.style == "normal" and font.weight in (400, "normal", "regular", "book")
        if is_regular and not font.name.startswith("Last Resort"):  # that one has a box for each character
            yield font.name, font.fname


@cache
def _codes(path: str) -> frozenset[int]:
    """The code points of the characters that a font has."""
    try:
        return frozenset(font_manager.get_font(path).get_charmap())
    except (OSError, RuntimeError):  # a font file that is damaged or gone
        return frozenset()

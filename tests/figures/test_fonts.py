"""Figures show the letters of any script, if a font with them is installed."""

import matplotlib
import pytest
from matplotlib import font_manager

from captioner.figures.fonts import font_file_for, fonts_for

LATIN, IN_STIX = (
    "ein Mädchen",
    "\u20dd",
)  # a sign that matplotlib's first font lacks and another of its fonts has


def families(text: str) -> list[str]:
    with fonts_for(text):
        return matplotlib.rcParams["font.family"]


def test_letters_that_the_first_font_lacks_come_from_another() -> None:
    assert families(LATIN) == ["DejaVu Sans"]
    first, *further = families(f"{LATIN} {IN_STIX}")
    assert first == "DejaVu Sans"
    assert len(further) == 1
    assert ord(IN_STIX) in font_manager.get_font(font_file_for(IN_STIX)).get_charmap()
    assert font_file_for(LATIN) == font_manager.findfont("DejaVu Sans")


def test_letters_that_no_font_has_are_named(caplog: pytest.LogCaptureFixture) -> None:
    nowhere = chr(0x10FFFD)  # for private use
    assert families(nowhere) == ["DejaVu Sans"]
    assert families(nowhere) == ["DejaVu Sans"]  # and is said once
    assert caplog.text.count("no installed font has") == 1

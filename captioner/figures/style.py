"""Settings of figures."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Literal

from msgspec import Meta

from captioner.bounds import Bounded, require
from captioner.errors import reject_string

OverlayStyle = Literal["smooth", "cells"]
FigureFormat = Literal["png", "svg", "pdf"]

MAX_FIGURE_PX = 40_000

FIGURE_PX = 2_048
"""Sides that a picture needs for any figure; far larger ones are read at a fraction of their size."""


def is_chosen(word: str, words: Sequence[str]) -> bool:
    """Whether a word is among those to draw, whatever its case; all are if none are named."""
    return not words or word.casefold() in map(str.casefold, words)


@dataclass(frozen=True, kw_only=True)
class FigureStyle(Bounded):
    """Look of figures."""

    overlay_style: OverlayStyle = "smooth"
    """Draw a smooth heatmap, or the raw cells of the grid."""
    columns: Annotated[int, Meta(ge=1, le=100)] = 5
    """Panels per row of an overlay: five fit a page's text, two or three a paper's column."""
    colormap: str = "inferno"
    """Any of matplotlib's; the default is perceptually uniform, also when printed in grey."""
    words: tuple[str, ...] = ()
    """In overlays and matrices, draw only these words."""
    dpi: Annotated[int, Meta(ge=10, le=2_400)] = 200
    """Pixels per inch of pictures; text in svg and pdf stays text."""

    def __post_init__(self) -> None:
        reject_string(self.words, "words")
        super().__post_init__()
        width_px = self.columns * self.dpi
        require(width_px <= MAX_FIGURE_PX, f"columns times dpi must be at most {MAX_FIGURE_PX:,}", width_px)


DEFAULT_STYLE = FigureStyle()

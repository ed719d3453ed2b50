"""Heatmaps over pictures, and their colours."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import matplotlib
import numpy as np
from jaxtyping import Float, UInt8
from matplotlib.colors import Colormap, Normalize
from PIL import Image

from captioner.config import GridConfig, PreprocessConfig
from captioner.errors import UsageError
from captioner.figures.style import FigureStyle

HEAT_SHARE = 0.6  # of a pixel's colour; the rest is the picture
_LUMINANCE = (0.2126, 0.7152, 0.0722)  # of R, G and B (Rec. 709)


@runtime_checkable
class AttendedCaption(Protocol):
    """What figures need of a caption (`captioner.caption.Caption`)."""

    @property
    def file(self) -> str: ...
    @property
    def text(self) -> str: ...
    @property
    def tokens(self) -> tuple[str, ...]: ...
    @property
    def log_prob(self) -> float: ...
    @property
    def alphas(self) -> Float[np.ndarray, "tokens rows cols"]: ...
    @property
    def grid(self) -> GridConfig: ...
    @property
    def preprocess(self) -> PreprocessConfig: ...
    @property
    def alternatives(self) -> "Sequence[AttendedCaption]": ...

    def image(self, *, enough_px: int | None = None) -> Image.Image: ...

    def pieces(self) -> tuple[list[tuple[str, str]], str]: ...

    def heatmap(
        self, word: int | str, image_size: tuple[int, int], *, is_smooth: bool = True
    ) -> Float[np.ndarray, "height width"]: ...


def find_colormap(style: FigureStyle) -> Colormap:
    """The colour map that a style names. Raises: UsageError, if matplotlib does not have it."""
    try:
        return matplotlib.colormaps[style.colormap]
    except KeyError:
        raise UsageError(
            f"matplotlib has no colour map {style.colormap!r}; try inferno, magma, viridis, cividis or gray"
        ) from None


@dataclass(frozen=True)
class AttentionHeatmaps:
    """A picture, shrunk, with a heatmap for each word of its caption on a common scale.

    The scale runs from zero to the largest value of any word.
    """

    picture: Image.Image
    by_word: tuple[Float[np.ndarray, "height width"], ...]
    scale: Normalize
    colormap: Colormap

    @classmethod
    def from_caption(
        cls, caption: AttendedCaption, image: Image.Image, *, side_px: int, style: FigureStyle
    ) -> "AttentionHeatmaps":
        """`image` is RGB and upright; its longer side becomes at most `side_px`.

        Raises:
            UsageError: there is no such colour map.
        """
        shown = image.copy()
        shown.thumbnail((side_px, side_px))
        is_smooth = style.overlay_style == "smooth"
        by_word = tuple(
            caption.heatmap(index, shown.size, is_smooth=is_smooth) for index in range(len(caption.tokens))
        )
        highest = max((float(heatmap.max()) for heatmap in by_word), default=1.0)
        return cls(shown, by_word, Normalize(0.0, highest), find_colormap(style))

    def drawn(self) -> Iterator[Float[np.ndarray, "height width 3"]]:
        """The picture under the heatmap of each word, RGB in [0, 1]."""
        pixels = np.asarray(self.picture)
        for heatmap in self.by_word:
            yield blend(pixels, heatmap, scale=self.scale, colormap=self.colormap)


def blend(
    pixels: UInt8[np.ndarray, "height width 3"],
    heatmap: Float[np.ndarray, "height width"],
    *,
    scale: Normalize,
    colormap: Colormap,
) -> Float[np.ndarray, "height width 3"]:
    """The heatmap's colours over a grey picture, so that all colour is attention; RGB in [0, 1]."""
    grey = (pixels @ np.array(_LUMINANCE) / 255)[..., None]
    return (1 - HEAT_SHARE) * grey + HEAT_SHARE * colormap(scale(heatmap))[..., :3]

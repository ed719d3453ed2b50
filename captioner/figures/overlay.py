"""Overlay: one figure per picture with the attention of each word."""

import math

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Colormap, Normalize
from matplotlib.figure import Figure
from PIL import Image

from captioner.figures.fonts import fonts_for
from captioner.figures.heatmap import AttendedCaption, AttentionHeatmaps
from captioner.figures.style import DEFAULT_STYLE, FigureStyle, is_chosen

# Inches. Five panels are as wide as the text of a page (6.9), three fit a wide column and two a narrow one;
# the words are then as large as the text of a figure's caption.
_PANEL_IN = 1.31  # the longer side of a panel
_GAP_IN = 0.06
_TITLE_IN = 0.19  # above each panel, for its word
_CAPTION_IN = 0.26  # above all panels, for the whole caption
_BAR_IN = 0.45  # below all panels, for the colour scale
_WORD_PT, _CAPTION_PT, _SCALE_PT = 8.5, 9.0, 7.0
_MIN_ASPECT = 0.25  # of a panel, for very wide or tall pictures


def draw_overlay(
    caption: AttendedCaption, image: Image.Image, *, style: FigureStyle = DEFAULT_STYLE
) -> Figure:
    """Draw the picture, then one panel per word with the word's attention over the picture.

    `image` is RGB and upright, as `Caption.image` gives it.

    All panels share one colour scale, from zero to the largest value of any word of the caption, given by
    the bar below in attention per cell (a word's attention sums to one over the grid's cells). A pixel
    shows the attention of the cells that see it. The picture underneath is grey, so that all colour is
    attention.

    Raises:
        captioner.errors.UsageError: there is no such colour map.
    """
    heatmaps = AttentionHeatmaps.from_caption(
        caption, image, side_px=round(_PANEL_IN * style.dpi), style=style
    )
    drawn = [
        (word, pixels)
        for word, pixels in zip(caption.tokens, heatmaps.drawn(), strict=True)
        if is_chosen(word, style.words)
    ]
    with fonts_for(caption.text):
        figure, axes = _panels(len(drawn) + 1, heatmaps.picture.size, style.columns)
        _show(axes[0], np.asarray(heatmaps.picture), "")
        for axis, (word, pixels) in zip(axes[1:], drawn, strict=True):
            _show(axis, pixels, word)
        _write_caption(figure, caption.text)
        _draw_scale(figure, heatmaps.scale, heatmaps.colormap)
    return figure


def _panels(count: int, image_size: tuple[int, int], max_columns: int) -> tuple[Figure, list[Axes]]:
    """A figure with `count` panels of the picture's aspect ratio, in rows."""
    columns = min(count, max_columns)
    rows = math.ceil(count / columns)
    width_px, height_px = image_size
    width = _PANEL_IN * max(min(1.0, width_px / height_px), _MIN_ASPECT)
    height = _PANEL_IN * max(min(1.0, height_px / width_px), _MIN_ASPECT)
    figure_width = columns * (width + _GAP_IN) + _GAP_IN
    figure_height = _CAPTION_IN + rows * (height + _TITLE_IN) + _BAR_IN
    figure = Figure(figsize=(figure_width, figure_height), facecolor="white")
    FigureCanvasAgg(figure)
    axes = []
    for index in range(count):
        row, column = divmod(index, columns)
        left = _GAP_IN + column * (width + _GAP_IN)
        bottom = figure_height - _CAPTION_IN - (row + 1) * (height + _TITLE_IN)
        axes.append(
            figure.add_axes(
                (left / figure_width, bottom / figure_height, width / figure_width, height / figure_height)
            )
        )
    return figure, axes


def _show(axis: Axes, pixels: np.ndarray, word: str) -> None:
    axis.imshow(pixels, interpolation="nearest")
    axis.set_title(word, fontsize=_WORD_PT, pad=2, parse_math=False)
    axis.set_axis_off()


def _write_caption(figure: Figure, text: str) -> None:
    """As large as the figure's width allows."""
    width, height = figure.get_size_inches()
    written = figure.text(
        _GAP_IN / width,
        1 - 0.5 * _CAPTION_IN / height,
        text,
        fontsize=_CAPTION_PT,
        va="center",
        fontweight="bold",
        parse_math=False,
    )
    needed = written.get_window_extent().width / figure.dpi
    written.set_fontsize(_CAPTION_PT * min(1.0, 0.98 * (width - 2 * _GAP_IN) / max(needed, _GAP_IN)))


def _draw_scale(figure: Figure, scale: Normalize, colormap: Colormap) -> None:
    width, height = figure.get_size_inches()
    bar_width = min(2.0, width - 4 * _GAP_IN)
    axis = figure.add_axes(((width - bar_width) / 2 / width, 0.31 / height, bar_width / width, 0.06 / height))
    bar = figure.colorbar(ScalarMappable(scale, colormap), cax=axis, orientation="horizontal")
    highest = float(scale.vmax or 1.0)
    bar.set_ticks([0.0, highest / 2, highest])
    bar.ax.xaxis.set_major_formatter("{x:.2g}")
    bar.ax.tick_params(labelsize=_SCALE_PT, length=2, pad=1)
    bar.outline.set_linewidth(0.4)
    bar.set_label("attention per cell", fontsize=_SCALE_PT, labelpad=1)

"""One figure a picture: what each word of its caption looked at."""

import errno
import math
from pathlib import Path

import numpy as np
from jaxtyping import UInt8
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from PIL import Image

from captioner.config import OverlayStyle
from captioner.images import ImageError, load_image
from captioner.inference import Caption
from captioner.output import OutputError
from captioner.paths import OVERLAY_SUFFIX

COLORMAP = "inferno"
_HEAT_SHARE = 0.6  # of a panel's colour; the rest is the picture
_PANEL_IN = 2.0  # the longer side of a panel
_TITLE_IN = 0.28  # above each panel, for its word
_MARGIN_IN = 0.08
_CAPTION_IN = 0.42  # above all panels, for the whole caption
_BAR_IN = 0.62  # below all panels, for the colour scale
_MIN_ASPECT = 0.25  # of a panel, for very long or tall pictures
_DPI = 120
_MAX_COLUMNS = 5


def draw_overlay(caption: Caption, image: Image.Image, *, style: OverlayStyle = "smooth") -> Figure:
    """Draw the picture and then one panel a word, with the word's attention over the picture.

    `image` is RGB and upright, as `captioner.images.load_image` gives it.

    All panels share one colour scale, from zero to the largest heat of any word, which the bar below
    states in attention per cell (a word's attention sums to one over the grid's cells). The heat of a
    cell lies on the pixels around the centre of what that cell saw.
    """
    panel_px = int(_PANEL_IN * _DPI)
    shown = image.copy()
    shown.thumbnail((panel_px, panel_px))
    heats = [
        caption.heatmap(index, shown.size, is_smooth=style == "smooth")
        for index in range(len(caption.tokens))
    ]
    scale = Normalize(vmin=0.0, vmax=max((float(heat.max()) for heat in heats), default=1.0))
    figure, axes = _panels(len(caption.tokens) + 1, shown.size)

    pixels = np.asarray(shown, dtype=np.float64) / 255
    _show(axes[0], pixels, "")
    for axis, word, heat in zip(axes[1:], caption.tokens, heats, strict=True):
        colours = colormaps[COLORMAP](scale(heat))[..., :3]
        _show(axis, (1 - _HEAT_SHARE) * pixels + _HEAT_SHARE * colours, word)
    _write_caption(figure, caption.text)
    _draw_scale(figure, scale)
    return figure


def save_overlay(figure: Figure, path: Path | str) -> None:
    """Save as PNG; the same figure gives the same bytes."""
    figure.savefig(path, dpi=_DPI, format="png", metadata={"Software": None})


def rendered(figure: Figure) -> UInt8[np.ndarray, "height width 3"]:
    """The pixels of a figure, RGB."""
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    return np.asarray(canvas.buffer_rgba())[..., :3].copy()


class OverlayWriter:
    """Writes one figure a picture; two pictures of the same name do not overwrite each other.

    Raises:
        captioner.output.OutputError: the folder cannot be made or written to.
        captioner.images.ImageError: one picture has gone since, or its name is too long for a figure's.
    """

    def __init__(self, folder: Path, style: OverlayStyle) -> None:
        self.folder, self.style = folder, style
        self._taken: set[str] = set()
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise OutputError(f"cannot make the folder {folder}: {error.strerror}") from error

    def write(self, caption: Caption) -> None:
        """Draw a caption of a file, and save it as NAME.attention.png."""
        stem = name = Path(caption.file).stem
        number = 1
        while name in self._taken:
            number += 1
            name = f"{stem}-{number}"
        self._taken.add(name)
        path = self.folder / f"{name}{OVERLAY_SUFFIX}"
        figure = draw_overlay(caption, load_image(Path(caption.file)), style=self.style)
        try:
            save_overlay(figure, path)
        except OSError as error:
            if error.errno == errno.ENAMETOOLONG:
                raise ImageError(caption.file, "its name is too long for a figure's") from error
            raise OutputError(f"cannot write {path}: {error.strerror or error}") from error


def _panels(count: int, image_size: tuple[int, int]) -> tuple[Figure, list[Axes]]:
    """A figure with `count` panels of the picture's aspect ratio, in rows."""
    columns = min(count, _MAX_COLUMNS)
    rows = math.ceil(count / columns)
    width_px, height_px = image_size
    width = _PANEL_IN * max(min(1.0, width_px / height_px), _MIN_ASPECT)
    height = _PANEL_IN * max(min(1.0, height_px / width_px), _MIN_ASPECT)
    figure_width = columns * (width + _MARGIN_IN) + _MARGIN_IN
    figure_height = _CAPTION_IN + rows * (height + _TITLE_IN) + _BAR_IN
    figure = Figure(figsize=(figure_width, figure_height), facecolor="white")
    FigureCanvasAgg(figure)
    axes = []
    for index in range(count):
        row, column = divmod(index, columns)
        left = _MARGIN_IN + column * (width + _MARGIN_IN)
        bottom = figure_height - _CAPTION_IN - (row + 1) * (height + _TITLE_IN)
        axes.append(
            figure.add_axes(
                (left / figure_width, bottom / figure_height, width / figure_width, height / figure_height)
            )
        )
    return figure, axes


def _show(axis: Axes, pixels: np.ndarray, word: str) -> None:
    axis.imshow(pixels, interpolation="nearest")
    axis.set_title(word, fontsize=11, pad=3, parse_math=False)
    axis.set_axis_off()


def _write_caption(figure: Figure, text: str) -> None:
    width, height = figure.get_size_inches()
    fontsize = min(13.0, 72 * (width - 2 * _MARGIN_IN) / (0.55 * max(len(text), 1)))
    figure.text(
        _MARGIN_IN / width,
        1 - 0.5 * _CAPTION_IN / height,
        text,
        fontsize=fontsize,
        va="center",
        fontweight="bold",
        parse_math=False,
    )


def _draw_scale(figure: Figure, scale: Normalize) -> None:
    width, height = figure.get_size_inches()
    bar_width = min(3.0, width - 4 * _MARGIN_IN)
    axis = figure.add_axes(((width - bar_width) / 2 / width, 0.42 / height, bar_width / width, 0.09 / height))
    bar = figure.colorbar(ScalarMappable(scale, COLORMAP), cax=axis, orientation="horizontal")
    bar.set_ticks([0.0, (scale.vmax or 1.0) / 2, scale.vmax or 1.0])
    bar.ax.xaxis.set_major_formatter("{x:.2g}")
    bar.ax.tick_params(labelsize=8, length=2, pad=2)
    bar.set_label("attention per cell", fontsize=8, labelpad=1)

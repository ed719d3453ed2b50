"""What all figures have in common: heat over a picture, colours, and how a figure becomes a file."""

import base64
import errno
import html
import io
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from jaxtyping import Float, UInt8
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import Colormap, Normalize
from matplotlib.figure import Figure
from PIL import Image

from captioner.captions import Caption
from captioner.config import FigureFormat, FigureStyle
from captioner.errors import UsageError
from captioner.images import ImageError
from captioner.output import OutputError

HEAT_SHARE = 0.6  # of a pixel's colour; the rest is the picture
_LUMINANCE = (0.2126, 0.7152, 0.0722)  # of R, G and B (Rec. 709)

_SAVING: Any = {
    "svg.fonttype": "none",  # text, not its outlines
    "pdf.fonttype": 42,  # TrueType: can be searched, and edited
    "svg.hashsalt": "captioner",  # the same figure gives the same bytes
}
_NO_DATE: dict[str, dict[str, Any]] = {
    "png": {"Software": None},
    "svg": {"Date": None},
    "pdf": {"CreationDate": None, "Producer": None, "Creator": None},
}


def colormap_of(style: FigureStyle) -> Colormap:
    """Raises: captioner.errors.UsageError, where matplotlib has no colour map of that name."""
    try:
        return matplotlib.colormaps[style.colormap]
    except KeyError:
        raise UsageError(
            f"matplotlib has no colour map {style.colormap!r}; try inferno, magma, viridis, cividis or gray"
        ) from None


@dataclass(frozen=True)
class Heats:
    """A picture, shrunk, with the heat of each word of its caption on its pixels, and their common scale.

    The scale goes from zero to the largest heat of any word.
    """

    picture: Image.Image
    by_word: tuple[Float[np.ndarray, "height width"], ...]
    scale: Normalize
    colormap: Colormap

    @classmethod
    def of(cls, caption: Caption, image: Image.Image, *, side_px: int, style: FigureStyle) -> "Heats":
        """`image` is RGB and upright; its longer side becomes `side_px` at most.

        Raises:
            captioner.errors.UsageError: there is no such colour map.
        """
        shown = image.copy()
        shown.thumbnail((side_px, side_px))
        is_smooth = style.overlay_style == "smooth"
        by_word = tuple(
            caption.heatmap(place, shown.size, is_smooth=is_smooth) for place in range(len(caption.tokens))
        )
        highest = max((float(heat.max()) for heat in by_word), default=1.0)
        return cls(shown, by_word, Normalize(0.0, highest), colormap_of(style))

    def drawn(self) -> Iterator[Float[np.ndarray, "height width 3"]]:
        """The picture under the heat of each word, RGB in [0, 1]."""
        pixels = np.asarray(self.picture)
        for heat in self.by_word:
            yield heat_over(pixels, heat, scale=self.scale, colormap=self.colormap)


def heat_over(
    pixels: UInt8[np.ndarray, "height width 3"],
    heat: Float[np.ndarray, "height width"],
    *,
    scale: Normalize,
    colormap: Colormap,
) -> Float[np.ndarray, "height width 3"]:
    """The heat's colours over a grey picture, so that every colour is heat; RGB in [0, 1]."""
    grey = (pixels @ np.array(_LUMINANCE) / 255)[..., None]
    return (1 - HEAT_SHARE) * grey + HEAT_SHARE * colormap(scale(heat))[..., :3]


def save_figure(
    figure: Figure, path: Path | str | io.BytesIO, style: FigureStyle, kind: FigureFormat
) -> None:
    """Save as PNG, SVG or PDF; the same figure gives the same bytes, and text stays text."""
    with matplotlib.rc_context(_SAVING):
        figure.savefig(path, dpi=style.dpi, format=kind, metadata=_NO_DATE[kind])


def figure_as_html(figure: Figure, *, alternative: str) -> str:
    """An HTML image that holds its own pixels; `alternative` is the text in its place."""
    stream = io.BytesIO()
    save_figure(figure, stream, FigureStyle(dpi=110), "png")
    data = base64.b64encode(stream.getvalue()).decode()
    return (
        f'<img src="data:image/png;base64,{data}" alt="{html.escape(alternative)}" style="max-width: 100%">'
    )


def rendered(figure: Figure) -> UInt8[np.ndarray, "height width 3"]:
    """The pixels of a figure, RGB."""
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    return np.asarray(canvas.buffer_rgba())[..., :3].copy()


class FolderWriter:
    """Writes one figure a caption into a folder; two pictures of the same name do not overwrite each other.

    Raises:
        captioner.errors.UsageError: there is no such colour map.
        captioner.output.OutputError: the folder cannot be made or written to.
        captioner.images.ImageError: one picture has gone since, or its name is too long for a figure's.
    """

    def __init__(
        self,
        folder: Path,
        *,
        draw: Callable[[Caption, FigureStyle], Figure],
        stem: str,
        style: FigureStyle,
        kind: FigureFormat,
    ) -> None:
        self.folder, self.draw, self.stem, self.style, self.kind = folder, draw, stem, style, kind
        self._taken: set[str] = set()
        colormap_of(style)  # refuse what cannot be drawn before any work is done
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise OutputError(f"cannot make the folder {folder}: {error.strerror}") from error

    def write(self, caption: Caption) -> None:
        """Draw a caption of a file, and save it as its name, the stem and .png, .svg or .pdf."""
        wanted = name = Path(caption.file).stem
        number = 1
        while name in self._taken:
            number += 1
            name = f"{wanted}-{number}"
        self._taken.add(name)
        path = self.folder / f"{name}{self.stem}.{self.kind}"
        figure = self.draw(caption, self.style)
        try:
            save_figure(figure, path, self.style, self.kind)
        except OSError as error:
            if error.errno == errno.ENAMETOOLONG:
                raise ImageError(caption.file, "its name is too long for a figure's") from error
            raise OutputError(f"cannot write {path}: {error.strerror or error}") from error

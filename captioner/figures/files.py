"""Figures as files, HTML and pixels."""

import base64
import errno
import html
import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from jaxtyping import UInt8
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from captioner.atomic import replaced_file
from captioner.errors import CaptionerError, ImageError
from captioner.figures.heatmap import AttendedCaption, find_colormap
from captioner.figures.style import FigureFormat, FigureStyle, is_chosen

_SAVING: Any = {
    "svg.fonttype": "none",  # text, not its outlines
    "pdf.fonttype": 42,  # TrueType: searchable and editable
    "svg.hashsalt": "captioner",  # the same figure gives the same bytes
}
_NO_DATE: dict[str, dict[str, Any]] = {
    "png": {"Software": None},
    "svg": {"Date": None},
    "pdf": {"CreationDate": None, "Producer": None, "Creator": None},
}


def save_figure(
    figure: Figure, path: Path | str | io.BytesIO, style: FigureStyle, kind: FigureFormat
) -> None:
    """Save as PNG, SVG or PDF; the same figure gives the same bytes, and text stays text."""
    with matplotlib.rc_context(_SAVING):
        figure.savefig(path, dpi=style.dpi, format=kind, metadata=_NO_DATE[kind])


def figure_as_html(figure: Figure, *, alternative: str) -> str:
    """A self-contained HTML image; `alternative` is its alternative text."""
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
    """Writes one figure per caption into a folder; pictures of the same name do not overwrite each other.

    Raises:
        UsageError: there is no such colour map.
        CaptionerError: the folder cannot be created or written to.
        ImageError: a picture has disappeared, or its name is too long for a figure's.
    """

    def __init__(
        self,
        folder: Path,
        *,
        draw: Callable[[Any, FigureStyle], Figure],
        stem: str,
        style: FigureStyle,
        kind: FigureFormat,
    ) -> None:
        self.folder, self.draw, self.stem, self.style, self.kind = folder, draw, stem, style, kind
        self._taken: set[str] = set()
        self._num_without_words = 0
        find_colormap(style)  # refuse before any work is done
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise CaptionerError(f"cannot create the folder {folder}: {error.strerror}") from error

    def write(self, caption: AttendedCaption) -> None:
        """Draw the caption of a file, and save it under the file's name, the stem and a suffix; not if it has
        none of the words that are to be drawn."""
        if not any(is_chosen(word, self.style.words) for word in caption.tokens):
            self._num_without_words += 1
            return
        wanted = name = Path(caption.file).stem
        number = 1
        while name in self._taken:
            number += 1
            name = f"{wanted}-{number}"
        self._taken.add(name)
        path = self.folder / f"{name}{self.stem}.{self.kind}"
        figure = self.draw(caption, self.style)
        try:
            with replaced_file(path) as new:
                save_figure(figure, new, self.style, self.kind)
        except OSError as error:
            if error.errno == errno.ENAMETOOLONG:
                raise ImageError(caption.file, "its name is too long for a figure's") from error
            raise CaptionerError(f"cannot write {path}: {error.strerror or error}") from error

    def summary(self) -> str | None:
        """What is to be said at the end."""
        if not self._num_without_words:
            return None
        words = ", ".join(self.style.words)
        return f"{self.folder}: {self._num_without_words:,} captions without {words} have no figure"

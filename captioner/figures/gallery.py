"""Gallery: one self-contained page of captioned pictures whose words show their attention.

The page is plain HTML, readable without its script (`page/`). It requests nothing from outside, which its
content-security policy forbids.
"""

import base64
import hashlib
import io
import json
import logging
import os
from collections.abc import Callable, Mapping, Sequence
from html import escape
from importlib.resources import files
from pathlib import Path
from string import Template
from types import TracebackType

import numpy as np
from jaxtyping import Float
from PIL import Image

from captioner.errors import CaptionerError
from captioner.figures.heatmap import HEAT_SHARE, AttendedCaption, find_colormap
from captioner.figures.style import FIGURE_PX, FigureStyle
from captioner.images.geometry import cells_to_pixels

_logger = logging.getLogger(__name__)

_THUMBNAIL_PX = 400  # the longer side
_JPEG_QUALITY = 72
_HEAT_SIDE = 48  # of the canvas that heatmaps are drawn on, stretched by the browser


class GalleryWriter:
    """Writes the page picture by picture: if the command is stopped, the page so far opens.

    `references` has captions by people, by the pictures' file names without folders. Pictures with
    references show them, and can be sorted by `score`, the CIDEr-D of a text against its references.

    Raises:
        captioner.errors.UsageError: there is no such colour map.
        CaptionerError: the file cannot be written.
        ImageError: a picture has disappeared.
    """

    def __init__(
        self,
        path: Path,
        *,
        style: FigureStyle,
        references: Mapping[str, Sequence[str]] | None = None,
        score: Callable[[str, Sequence[str]], float] | None = None,
    ) -> None:
        self.path, self.style, self.score = path, style, score
        self.colormap = find_colormap(style)
        self.references = references or {}
        self._is_any_known = False
        self._has_head = False
        try:
            self._stream = path.open("w", encoding="utf-8", newline="\n")
        except OSError as error:
            raise self._error(error) from error

    def __enter__(self) -> "GalleryWriter":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            if self.references and self._has_head and not self._is_any_known:
                _logger.warning("%s: none of its pictures has the name of one with references", self.path)
            if self._has_head:
                self._stream.write("</main>\n</body>\n</html>\n")
            self._stream.close()
        except OSError as closing:
            raise self._error(closing) from closing

    def write(self, caption: AttendedCaption) -> None:
        """Add a picture with its caption and alternatives."""
        article = self._article(caption, caption.image(enough_px=FIGURE_PX))
        try:
            if not self._has_head:
                self._stream.write(self._head(caption))
                self._has_head = True
            self._stream.write(article)
            self._stream.flush()
        except OSError as error:
            raise self._error(error) from error

    def _error(self, error: OSError) -> CaptionerError:
        return CaptionerError(f"cannot write {self.path}: {error.strerror or error}")

    def _head(self, caption: AttendedCaption) -> str:
        """Everything before the pictures. All of them share one grid and its geometry."""
        page = files("captioner") / "figures" / "page"
        script = (page / "gallery.js").read_text(encoding="utf-8")
        css = (page / "gallery.css").read_text(
            encoding="utf-8"
        ) + f":root {{ --heat-share: {HEAT_SHARE}; }}\n"
        grid, is_smooth = caption.grid, self.style.overlay_style == "smooth"
        vertical, horizontal = (
            cells_to_pixels(count, grid, caption.preprocess.size_px, _HEAT_SIDE, is_smooth).round(4).tolist()
            for count in (grid.rows, grid.cols)
        )
        colours = np.round(255 * self.colormap(np.linspace(0, 1, 256))[:, :3]).astype(np.uint8)
        setting = {
            "rows": grid.rows,
            "cols": grid.cols,
            "vertical": vertical,
            "horizontal": horizontal,
            "colours": base64.b64encode(colours.tobytes()).decode(),
        }
        policy = (
            f"default-src 'none'; img-src data:; script-src '{_digest(script)}'; style-src '{_digest(css)}'; "
            "base-uri 'none'; form-action 'none'"
        )
        template = Template((page / "gallery.html").read_text(encoding="utf-8"))
        return template.substitute(
            policy=policy,
            css=css,
            script=script,
            setting=_in_script(setting),
            cider_option='<option value="cider">CIDEr, worst first</option>' if self.score else "",
        )

    def _article(self, caption: AttendedCaption, image: Image.Image) -> str:
        name = os.fsencode(caption.file).decode("utf-8", errors="replace")
        numbers = {"log-prob": caption.log_prob}
        references = self.references.get(Path(caption.file).name, ())
        if references:
            self._is_any_known = True
        if self.score and references:
            numbers["cider"] = self.score(caption.text, references)
        data = " ".join(f'data-{key}="{value:.4f}"' for key, value in numbers.items())
        shown = " · ".join(
            f"{label} {numbers[key]:{digits}}"
            for key, label, digits in (("log-prob", "log-probability", ".2f"), ("cider", "CIDEr", ".0f"))
            if key in numbers
        )
        return (
            f'<article class="picture" {data}>\n'
            f'<div class="frame"><div>{_thumbnail(image, caption.text)}'
            f'<canvas aria-hidden="true"></canvas></div></div>\n'
            f'<div class="text"><h2 class="file">{escape(name)}</h2>\n'
            f"{_caption_html('p', caption)}\n"
            f'<p class="where" aria-live="polite"></p>\n<p class="score">{shown}</p>\n'
            f"{_alternatives_html(caption.alternatives)}{_references_html(references)}</div>\n</article>\n"
        )


def _thumbnail(image: Image.Image, alternative: str) -> str:
    shown = image.copy()
    shown.thumbnail((_THUMBNAIL_PX, _THUMBNAIL_PX))
    stream = io.BytesIO()
    shown.save(stream, "JPEG", quality=_JPEG_QUALITY)
    data = base64.b64encode(stream.getvalue()).decode()
    width, height = shown.size
    return (
        f'<img src="data:image/jpeg;base64,{data}" width="{width}" height="{height}" loading="lazy" '
        f'alt="{escape(alternative)}">'
    )


def _caption_html(tag: str, caption: AttendedCaption) -> str:
    """The caption as text, with what the script needs to turn its words into buttons."""
    pieces, tail = caption.pieces()
    cut = escape(json.dumps([text for piece in pieces for text in piece] + [tail]))
    alphas = base64.b64encode(_levels(caption.alphas).tobytes()).decode()
    return f'<{tag} class="caption" data-pieces="{cut}" data-alphas="{alphas}">{escape(caption.text)}</{tag}>'


def _levels(alphas: Float[np.ndarray, "tokens rows cols"]) -> np.ndarray:
    """Attention as bytes: 255 is the largest value of any word and cell."""
    highest = float(alphas.max(initial=0.0)) or 1.0
    return np.round(255 * alphas / highest).astype(np.uint8)


def _alternatives_html(alternatives: Sequence[AttendedCaption]) -> str:
    if not alternatives:
        return ""
    rows = "".join(
        f'<li>{_caption_html("span", other)} <span class="score">{other.log_prob:.2f}</span></li>\n'
        for other in alternatives
    )
    plural = "captions" if len(alternatives) > 1 else "caption"
    return (
        f'<details class="more"><summary>{len(alternatives)} more {plural}, with log-probabilities'
        f"</summary>\n<ol>\n{rows}</ol></details>\n"
    )


def _references_html(references: Sequence[str]) -> str:
    if not references:
        return ""
    rows = "".join(f"<li>{escape(text)}</li>\n" for text in references)
    summary = f"<summary>{len(references)} references</summary>"
    return f'<details class="references">{summary}\n<ul>\n{rows}</ul></details>\n'


def _digest(text: str) -> str:
    """The hash that identifies an inline script or style in a content-security policy."""
    return f"sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}"


def _in_script(value: object) -> str:
    """JSON that cannot end its script element."""
    return json.dumps(value, separators=(",", ":")).replace("<", "\\u003c")

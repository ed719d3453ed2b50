"""One self-contained page of pictures with their captions, whose words light up where they looked.

The page is plain HTML that reads without its script, which is in `captioner/page`. It asks for nothing
from outside, and its content-security policy forbids it to.
"""

import base64
import hashlib
import io
import json
import logging
import os
from collections.abc import Mapping, Sequence
from html import escape
from importlib.resources import files
from pathlib import Path
from types import TracebackType

import numpy as np
from jaxtyping import Float
from PIL import Image

from captioner.captions import Caption
from captioner.cider import CiderD
from captioner.config import FigureStyle
from captioner.figures import HEAT_SHARE, colormap_of
from captioner.images import cells_to_pixels
from captioner.output import OutputError

_logger = logging.getLogger(__name__)

_THUMBNAIL_PX = 400  # the longer side
_JPEG_QUALITY = 72
_HEAT_SIDE = 48  # of the canvas that the heat is drawn on, which the browser stretches


class GalleryWriter:
    """Writes the page, a picture as it comes: if the command is stopped, what is there opens.

    `references` has what people wrote, by the pictures' file names without their folders. The pictures
    that have some show them, and can be sorted by CIDEr-D, for which all of `references` give the
    document frequencies.

    Raises:
        captioner.errors.UsageError: there is no such colour map.
        captioner.output.OutputError: the file cannot be written.
        captioner.images.ImageError: a picture has gone since.
    """

    def __init__(
        self, path: Path, *, style: FigureStyle, references: Mapping[str, Sequence[str]] | None = None
    ) -> None:
        self.path, self.style = path, style
        self.colormap = colormap_of(style)
        self.references = references or {}
        self._ciders = _Ciders(references) if references else None
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
                _logger.warning("%s: the references are of none of its pictures, by their names", self.path)
            if self._has_head:
                self._stream.write("</main>\n</body>\n</html>\n")
            self._stream.close()
        except OSError as closing:
            raise self._error(closing) from closing

    def write(self, caption: Caption) -> None:
        """Add a picture with its caption, and its alternatives as other captions."""
        article = self._article(caption, caption.image())
        try:
            if not self._has_head:
                self._stream.write(self._head(caption))
                self._has_head = True
            self._stream.write(article)
            self._stream.flush()
        except OSError as error:
            raise self._error(error) from error

    def _error(self, error: OSError) -> OutputError:
        return OutputError(f"cannot write {self.path}: {error.strerror or error}")

    def _head(self, caption: Caption) -> str:
        """All that comes before the pictures. One grid and its way to the picture serve all of them."""
        page = files("captioner") / "page"
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
        return f"""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="{policy}">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>Captions with attention</title>
<style>{css}</style>
<script type="application/json" id="setting">{_in_script(setting)}</script>
<script>{script}</script>
</head>
<body>
<header>
<h1>Captions with attention</h1>
<p class="help">Point at a word, tap it, or use the arrow keys: the picture lights up where it looked.</p>
<div class="controls">
<label>Filter <input type="search" id="filter" placeholder="words of captions or names"></label>
<label>Order <select id="order">
<option value="given">as given</option>
<option value="logProb">least likely first</option>
{'<option value="cider">CIDEr, worst first</option>' if self._ciders else ""}
</select></label>
<output id="count" for="filter"></output>
</div>
</header>
<main>
"""

    def _article(self, caption: Caption, image: Image.Image) -> str:
        name = os.fsencode(caption.file).decode("utf-8", errors="replace")
        numbers = {"log-prob": caption.log_prob}
        references = self.references.get(Path(caption.file).name, ())
        if self._ciders and references:
            self._is_any_known = True
            numbers["cider"] = self._ciders.score(caption.text, references)
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


class _Ciders:
    """CIDEr-D in percent, as papers and `captioner evaluate` give it, with document frequencies from all
    the references."""

    def __init__(self, references: Mapping[str, Sequence[str]]) -> None:
        from captioner.metrics import ptb_tokenize  # needs pycocoevalcap

        self._tokenize = ptb_tokenize
        self._scorer = CiderD([ptb_tokenize(text) for text in texts] for texts in references.values())

    def score(self, text: str, references: Sequence[str]) -> float:
        words = [self._tokenize(reference) for reference in references]
        return 100 * self._scorer.scores([self._tokenize(text)], words)[0]


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


def _caption_html(tag: str, caption: Caption) -> str:
    """The caption as text, with what the script needs to make buttons of its words."""
    pieces, tail = caption.pieces()
    cut = escape(json.dumps([text for piece in pieces for text in piece] + [tail]))
    alphas = base64.b64encode(_levels(caption.alphas).tobytes()).decode()
    return f'<{tag} class="caption" data-pieces="{cut}" data-alphas="{alphas}">{escape(caption.text)}</{tag}>'


def _levels(alphas: Float[np.ndarray, "tokens rows cols"]) -> np.ndarray:
    """Attention as bytes: 255 is the most that any word gives to a cell."""
    highest = float(alphas.max(initial=0.0)) or 1.0
    return np.round(255 * alphas / highest).astype(np.uint8)


def _alternatives_html(alternatives: Sequence[Caption]) -> str:
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
    """What a content-security policy knows an inline script or style by."""
    return f"sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}"


def _in_script(value: object) -> str:
    """JSON that cannot end the script element that it stands in."""
    return json.dumps(value, separators=(",", ":")).replace("<", "\\u003c")

"""Parts of the pages whose words show their attention: the gallery, and the page of the server.

Both have the same style and the same script (`page/`), and articles of the same form, which are readable
without the script. Their content-security policies forbid to load anything from elsewhere.
"""

import base64
import hashlib
import io
import json
import os
from collections.abc import Mapping, Sequence
from html import escape
from importlib.resources import files
from typing import Any

import numpy as np
from jaxtyping import Float
from PIL import Image

from captioner.config import GridConfig, PreprocessConfig
from captioner.figures.heatmap import HEAT_SHARE, AttendedCaption, find_colormap
from captioner.figures.style import FigureStyle
from captioner.images.geometry import cells_to_pixels

_THUMBNAIL_PX = 400  # the longer side
_JPEG_QUALITY = 72
_HEAT_SIDE = 48  # of the canvas that heatmaps are drawn on, stretched by the browser

_NUMBERS = (("log-prob", "log-probability", ".2f"), ("cider", "CIDEr", ".0f"))


def page_file(name: str) -> str:
    """A file of the package's folder `page`."""
    return (files("captioner") / "figures" / "page" / name).read_text(encoding="utf-8")


def page_css() -> str:
    """The style of all pages."""
    return f"{page_file('page.css')}:root {{ --heat-share: {HEAT_SHARE}; }}\n"


def attention_setting(grid: GridConfig, preprocess: PreprocessConfig, style: FigureStyle) -> str:
    """What the script needs to draw heatmaps as `captioner.images.geometry.heatmap` does, as JSON that cannot
    end its script element. Raises: captioner.errors.UsageError, if there is no such colour map."""
    is_smooth = style.overlay_style == "smooth"
    vertical, horizontal = (
        cells_to_pixels(count, grid, preprocess.size_px, _HEAT_SIDE, is_smooth).round(4).tolist()
        for count in (grid.rows, grid.cols)
    )
    colours = np.round(255 * find_colormap(style)(np.linspace(0, 1, 256))[:, :3]).astype(np.uint8)
    return _in_script(
        {
            "rows": grid.rows,
            "cols": grid.cols,
            "vertical": vertical,
            "horizontal": horizontal,
            "colours": base64.b64encode(colours.tobytes()).decode(),
        }
    )


def content_policy(*, script: str, css: str, **others: str) -> str:
    """A content-security policy that allows the inline script and style, and for `others` what is stated."""
    allowed = {
        "default-src": "'none'",
        "img-src": "data:",
        "script-src": f"'{_digest(script)}'",
        "style-src": f"'{_digest(css)}'",
        "base-uri": "'none'",
        "form-action": "'none'",
        **{name.replace("_", "-"): sources for name, sources in others.items()},
    }
    return "; ".join(f"{name} {sources}" for name, sources in allowed.items())


def picture_article(
    caption: AttendedCaption,
    image: Image.Image,
    *,
    numbers: Mapping[str, float],
    references: Sequence[str] = (),
) -> str:
    """A picture with its caption, the alternatives and captions by people. `numbers` are "log-prob" and
    "cider"."""
    name = os.fsencode(caption.file).decode("utf-8", errors="replace")
    data = " ".join(f'data-{key}="{value:.4f}"' for key, value in numbers.items())
    shown = " · ".join(
        f"{label} {numbers[key]:{digits}}" for key, label, digits in _NUMBERS if key in numbers
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


def _in_script(value: Any) -> str:
    """JSON that cannot end its script element."""
    return json.dumps(value, separators=(",", ":")).replace("<", "\\u003c")

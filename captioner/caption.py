"""Caption: words, their attention, and its figures."""

from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Float
from PIL import Image

from captioner.config import GridConfig, PreprocessConfig
from captioner.figures.style import DEFAULT_STYLE, FIGURE_PX, FigureStyle
from captioner.images.geometry import heatmap
from captioner.images.reading import load_image, load_opened
from captioner.images.sources import ImageSource

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from captioner.figures.matrix import AttentionMatrix, HasMatrix


@dataclass(frozen=True, kw_only=True)
class Caption:
    """A caption and the attention of each of its words.

    `picture` is what was captioned. `alphas[t, row, col]` is the attention on a cell of the grid when
    `tokens[t]` was chosen; each word's sum to one. They are the mean over heads of `head_alphas`.
    `log_prob` is the natural logarithm of the caption's probability, its end included. `grid` and
    `preprocess` locate the cells on the picture. `alternatives` are the next best captions, if more than
    one was asked for: of three two.
    """

    picture: ImageSource | Image.Image
    text: str
    tokens: tuple[str, ...]
    log_prob: float
    head_alphas: Float[np.ndarray, "tokens heads rows cols"] = field(repr=False)
    grid: GridConfig = field(repr=False)
    preprocess: PreprocessConfig = field(repr=False)
    alternatives: tuple["Caption", ...] = ()

    @property
    def file(self) -> str:
        """The picture's path as given; empty for a Pillow image."""
        return "" if isinstance(self.picture, Image.Image) else str(self.picture)

    @cached_property
    def alphas(self) -> Float[np.ndarray, "tokens rows cols"]:
        return self.head_alphas.mean(axis=1)

    def pieces(self) -> tuple[list[tuple[str, str]], str]:
        """The text split at its words: for each word the text before it and the word itself; and the rest.

        A word of `tokens` that the text does not contain is inserted after a space.
        """
        lower = self.text.lower()
        text = lower if len(lower) == len(self.text) else self.text
        pieces: list[tuple[str, str]] = []
        end = 0
        for token in self.tokens:
            start = text.find(token, end)
            if start < 0:
                pieces.append((" " if pieces else "", token))
            else:
                pieces.append((self.text[end:start], self.text[start : start + len(token)]))
                end = start + len(token)
        return pieces, self.text[end:]

    def image(self, *, enough_px: int | None = None) -> Image.Image:
        """The picture, RGB and upright, or a smaller one if its sides are far longer than `enough_px`.

        Raises: ImageError, if its file has disappeared.
        """
        if isinstance(self.picture, Image.Image):
            return load_opened(self.picture)
        return load_image(self.picture, enough_px=enough_px)

    def heatmap(
        self, word: int | str, image_size: tuple[int, int], *, is_smooth: bool = True
    ) -> Float[np.ndarray, "height width"]:
        """The attention of a word on a picture of (width, height) pixels, in attention per cell.

        `word` is an index into `tokens`, or the word itself (its first occurrence).

        Raises:
            ValueError: the caption has no such word.
        """
        if isinstance(word, str):
            if word not in self.tokens:
                raise ValueError(
                    f"the caption does not contain {word!r}; its words are {', '.join(self.tokens)}"
                )
            word = self.tokens.index(word)
        return heatmap(
            self.alphas[word],
            grid=self.grid,
            preprocess=self.preprocess,
            image_size=image_size,
            is_smooth=is_smooth,
        )

    def as_json(self, *, with_attention: bool) -> dict[str, Any]:
        """A caption of a file as plain values, under the names used in JSON lines and Parquet."""
        row = {"file": self.file, **self._fields(with_attention), "grid": [self.grid.rows, self.grid.cols]}
        if with_attention:
            row["alphas"] = row.pop("alphas")  # last: it is long
        if self.alternatives:
            row["alternatives"] = [other._fields(with_attention) for other in self.alternatives]
        return row

    def _fields(self, with_attention: bool) -> dict[str, Any]:
        found = {"caption": self.text, "tokens": self.tokens, "log_prob": round(self.log_prob, 4)}
        if with_attention:
            found["alphas"] = np.round(self.alphas.astype(np.float64), 6).tolist()
        return found

    def plot(self, *, style: FigureStyle = DEFAULT_STYLE) -> "Figure":
        """The matplotlib figure of `captioner.figures.overlay.draw_overlay`. Raises: ImageError."""
        from captioner.figures.overlay import draw_overlay

        return draw_overlay(self, self.image(enough_px=FIGURE_PX), style=style)

    def matrix(self) -> "AttentionMatrix":
        """Words by cells of the grid, row by row from the top left."""
        from captioner.figures.matrix import AttentionMatrix

        rows, cols = self.grid.rows, self.grid.cols
        return AttentionMatrix(
            title=self.text,
            rows=self.tokens,
            weights=self.alphas.reshape(len(self.tokens), rows * cols),
            groups=tuple((str(row + 1), cols) for row in range(rows)),
            positions="cells, by the rows of the grid",
        )

    def plot_matrix(self, *others: "HasMatrix", style: FigureStyle = DEFAULT_STYLE) -> "Figure":
        """Words by cells, beside other captions or a translation (`captioner.figures.matrix`)."""
        from captioner.figures.matrix import draw_matrices

        return draw_matrices([self, *others], style=style)

    def _repr_html_(self) -> str:
        """Notebooks show a caption as its figure, with the text as alternative."""
        from captioner.figures.files import figure_as_html

        return figure_as_html(self.plot(), alternative=self.text)

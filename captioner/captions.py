"""What a caption is: its words, their attention, and how it draws itself."""

from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import Float
from PIL import Image

from captioner.config import DEFAULT_STYLE, FigureStyle, GridConfig, PreprocessConfig
from captioner.images import ImageSource, heatmap, load_image, upright_rgb

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from captioner.matrix import AttentionMatrix, HasMatrix


@dataclass(frozen=True, kw_only=True)
class Caption:
    """A caption and what each of its words looked at.

    `picture` is what was captioned. `alphas[t, row, col]` is the attention on a cell of the grid when
    `tokens[t]` was chosen; each word's sum to one. They are the mean of `head_alphas`, which has each
    head's. `log_prob` is the natural logarithm of the caption's probability, its end included. `grid` and
    `preprocess` say where the cells lie on the picture. `alternatives` are the next captions, where more
    than one was asked for.
    """

    picture: ImageSource | Image.Image
    text: str
    tokens: tuple[str, ...]
    log_prob: float
    head_alphas: Float[np.ndarray, "tokens heads rows cols"]
    grid: GridConfig
    preprocess: PreprocessConfig
    alternatives: tuple["Caption", ...] = ()

    @property
    def file(self) -> str:
        """The picture's path as given; nothing for one that was no file."""
        return "" if isinstance(self.picture, Image.Image) else str(self.picture)

    @cached_property
    def alphas(self) -> Float[np.ndarray, "tokens rows cols"]:
        return self.head_alphas.mean(axis=1)

    def pieces(self) -> tuple[list[tuple[str, str]], str]:
        """The text cut at its words: for each the text before it and the word as it stands; and the rest.

        A word that does not stand in the text as it is in `tokens` is put in after a space.
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

    def image(self) -> Image.Image:
        """The picture, RGB and upright. Raises: ImageError, where its file has gone since."""
        if isinstance(self.picture, Image.Image):
            return upright_rgb(self.picture)
        return load_image(self.picture)

    def heatmap(
        self, word: int | str, image_size: tuple[int, int], *, is_smooth: bool = True
    ) -> Float[np.ndarray, "height width"]:
        """The attention of a word on a picture of (width, height) pixels, in attention per cell.

        `word` is a place in `tokens`, or the word itself, of which the first one counts.

        Raises:
            ValueError: the caption has no such word.
        """
        if isinstance(word, str):
            if word not in self.tokens:
                raise ValueError(f"the caption has no word {word!r}; it has: {', '.join(self.tokens)}")
            word = self.tokens.index(word)
        return heatmap(
            self.alphas[word],
            grid=self.grid,
            preprocess=self.preprocess,
            image_size=image_size,
            is_smooth=is_smooth,
        )

    def plot(self, *, style: FigureStyle = DEFAULT_STYLE) -> "Figure":
        """The matplotlib figure of `captioner.overlay.draw_overlay`. Raises: ImageError."""
        from captioner.overlay import draw_overlay

        return draw_overlay(self, self.image(), style=style)

    def matrix(self) -> "AttentionMatrix":
        """Words by cells, row by row of the grid from the top left."""
        from captioner.matrix import AttentionMatrix

        rows, cols = self.grid.rows, self.grid.cols
        return AttentionMatrix(
            title=self.text,
            rows=self.tokens,
            weights=self.alphas.reshape(len(self.tokens), rows * cols),
            groups=tuple((str(row + 1), cols) for row in range(rows)),
            places="cells, by the rows of the grid",
        )

    def plot_matrix(self, *others: "HasMatrix", style: FigureStyle = DEFAULT_STYLE) -> "Figure":
        """Words by cells, beside other captions of the same picture or a translation (`captioner.matrix`)."""
        from captioner.matrix import draw_matrices

        return draw_matrices([self, *others], style=style)

    def _repr_html_(self) -> str:
        """How a notebook shows a caption: its figure, with the caption as the text in its place."""
        from captioner.figures import figure_as_html

        return figure_as_html(self.plot(), alternative=self.text)

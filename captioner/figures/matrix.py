"""Attention matrix: words by positions, as a heatmap with margins.

The positions are the cells of the grid in reading order, or for a translation the words of the sentence
(Bahdanau et al. 2015, figure 3).
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import numpy as np
from jaxtyping import Float
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Colormap, Normalize
from matplotlib.figure import Figure

from captioner.figures.fonts import fonts_for
from captioner.figures.heatmap import find_colormap
from captioner.figures.style import DEFAULT_STYLE, FigureStyle, is_chosen

_ROW_IN, _MARGIN_IN = 0.17, 0.42
_LETTER_IN, _WORDS_IN = 0.066, 0.40  # of the column of words: per letter, and at least
_SMALL_LETTER_IN = 0.055  # of the names below
_BOLD_EM = 0.68  # the width of a letter of the title, in its size
_MATRIX_IN = 2.4  # least width of the heatmap; many words below it make it wider
_TOP_IN, _BOTTOM_IN = 0.30, 0.78
_WORD_PT, _SMALL_PT = 8.0, 6.5
_BAR_COLOUR = "0.45"


@dataclass(frozen=True, kw_only=True)
class AttentionMatrix:
    """The weight that each of `rows` gave to each position; a row's weights sum to one.

    `groups` names runs of positions, each with their number, such as the rows of a grid; `positions` says
    what they are.
    """

    title: str
    rows: tuple[str, ...]
    weights: Float[np.ndarray, "rows positions"]
    groups: tuple[tuple[str, int], ...]
    positions: str

    def choose(self, words: Sequence[str]) -> "AttentionMatrix":
        """The matrix with only the rows of these words; with all if none are given."""
        kept = [index for index, word in enumerate(self.rows) if is_chosen(word, words)]
        return AttentionMatrix(
            title=self.title,
            rows=tuple(self.rows[index] for index in kept),
            weights=self.weights[kept],
            groups=self.groups,
            positions=self.positions,
        )


@runtime_checkable
class HasMatrix(Protocol):
    """Anything with an attention matrix: a caption, or a translation."""

    def matrix(self) -> AttentionMatrix: ...


def perplexity(weights: Float[np.ndarray, "rows positions"]) -> Float[np.ndarray, " rows"]:
    """Over how many positions each row is spread: exp of its entropy, n for n equal weights."""
    logarithms = np.log(weights, out=np.zeros_like(weights), where=weights > 0)
    return np.exp(-(weights * logarithms).sum(axis=1))


def draw_matrices(given: Sequence[HasMatrix], *, style: FigureStyle = DEFAULT_STYLE) -> Figure:
    """Draw words by positions, one matrix or several side by side; those over the same kind of positions,
    such as the cells of a grid, share one scale.

    Above each heatmap is the sum of each position's attention over the drawn words, and to its right the
    perplexity of each word's attention: over how many positions it is spread.

    Raises:
        captioner.errors.UsageError: there is no such colour map.
    """
    matrices = [each.matrix().choose(style.words) for each in given]
    colormap = find_colormap(style)
    scales = {
        positions: _Scale.from_matrices([matrix for matrix in matrices if matrix.positions == positions])
        for positions in dict.fromkeys(matrix.positions for matrix in matrices)
    }
    most_rows = max(len(matrix.rows) for matrix in matrices)
    heat_height = _ROW_IN * max(most_rows, 1)
    longest = max((len(word) for matrix in matrices for word in matrix.rows), default=0)
    words_width = max(_LETTER_IN * longest + 0.1, _WORDS_IN)
    heat_width = max([_MATRIX_IN, *(_ROW_IN * len(matrix.groups) for matrix in matrices)])
    width = len(matrices) * (words_width + heat_width + _MARGIN_IN + 0.15)
    title_width_pt = 72 * (width / len(matrices) - 0.1)
    below = max(_names_height(matrix, heat_width) for matrix in matrices)
    height = _TOP_IN + _MARGIN_IN + heat_height + below + _BOTTOM_IN
    with fonts_for("".join(_texts(matrices))):
        figure = Figure(figsize=(width, height), facecolor="white")
        FigureCanvasAgg(figure)
        for number, matrix in enumerate(matrices):
            left = number * width / len(matrices) + words_width
            scale = scales[matrix.positions]
            rows_height = _ROW_IN * max(len(matrix.rows), 1)
            bottom = height - _TOP_IN - _MARGIN_IN - rows_height

            def axes_at(x: float, y: float, wide: float, high: float) -> Axes:
                return figure.add_axes((x / width, y / height, wide / width, high / height))

            centre = axes_at(left, bottom, heat_width, rows_height)
            _draw_heat(centre, matrix, scale.heat, colormap)
            if _names_height(matrix, heat_width):
                centre.tick_params(axis="x", labelrotation=90)
            _draw_sums(
                axes_at(left, bottom + rows_height + 0.03, heat_width, _MARGIN_IN - 0.06),
                matrix,
                scale.most_sum,
            )
            _draw_perplexity(
                axes_at(left + heat_width + 0.03, bottom, _MARGIN_IN - 0.06, rows_height), matrix
            )
            figure.text(
                (left - words_width + 0.06) / width,
                1 - 0.4 * _TOP_IN / height,
                matrix.title,
                fontsize=min(_WORD_PT, title_width_pt / (_BOLD_EM * max(len(matrix.title), 1))),
                fontweight="bold",
                va="center",
                parse_math=False,
            )
            if matrix.positions not in [earlier.positions for earlier in matrices[:number]]:
                _draw_scale(axes_at(left, 0.28, 1.2, 0.06), scale.heat, colormap)
    return figure


def _texts(matrices: Sequence[AttentionMatrix]) -> Iterator[str]:
    """What is written beside the matrices."""
    for matrix in matrices:
        yield matrix.title
        yield from matrix.rows
        yield from (name for name, _ in matrix.groups)


@dataclass(frozen=True)
class _Scale:
    """What comparable matrices share: colours, and the height of the sums."""

    heat: Normalize
    most_sum: float

    @classmethod
    def from_matrices(cls, matrices: Sequence[AttentionMatrix]) -> "_Scale":
        highest = max(float(matrix.weights.max(initial=0.0)) for matrix in matrices)
        most_sum = max(float(matrix.weights.sum(axis=0).max(initial=0.0)) for matrix in matrices)
        return cls(Normalize(0.0, highest or 1.0), most_sum)


def _names_height(matrix: AttentionMatrix, width: float) -> float:
    """The height in inches of the names below a heatmap if they have to be upright to fit, else 0."""
    longest = max((len(name) for name, _ in matrix.groups), default=0)
    fits = _SMALL_LETTER_IN * (longest + 1) * len(matrix.groups) <= width
    return 0.0 if fits else _SMALL_LETTER_IN * longest


def _draw_heat(axes: Axes, matrix: AttentionMatrix, scale: Normalize, colormap: Colormap) -> None:
    num_rows, num_positions = matrix.weights.shape
    if num_rows:
        axes.imshow(
            matrix.weights,
            aspect="auto",
            interpolation="nearest",
            norm=scale,
            cmap=colormap,
            extent=(0, num_positions, num_rows, 0),
        )
    axes.set_yticks(np.arange(num_rows) + 0.5)
    axes.set_yticklabels(matrix.rows, fontsize=_WORD_PT, parse_math=False)
    ends = np.cumsum([0, *(count for _, count in matrix.groups)])
    axes.set_xticks((ends[:-1] + ends[1:]) / 2)
    axes.set_xticklabels([name for name, _ in matrix.groups], fontsize=_SMALL_PT, parse_math=False)
    for end in ends[1:-1]:
        axes.axvline(end, color="white", linewidth=0.3, alpha=0.6)
    axes.set_xlabel(matrix.positions, fontsize=_SMALL_PT, labelpad=2)
    axes.tick_params(length=0, pad=3)
    axes.spines[:].set_visible(False)


def _draw_sums(axes: Axes, matrix: AttentionMatrix, highest: float) -> None:
    num_positions = matrix.weights.shape[1]
    axes.bar(np.arange(num_positions) + 0.5, matrix.weights.sum(axis=0), width=1.0, color=_BAR_COLOUR)
    axes.set_xlim(0, max(num_positions, 1))
    axes.set_ylim(0, highest or 1.0)
    axes.set_xticks([])
    axes.set_yticks([])
    axes.set_ylabel("sum", fontsize=_SMALL_PT, rotation=0, ha="right", va="center")
    axes.spines[:].set_visible(False)


def _draw_perplexity(axes: Axes, matrix: AttentionMatrix) -> None:
    perplexities = perplexity(matrix.weights)
    axes.barh(np.arange(len(perplexities)) + 0.5, perplexities, height=0.7, color=_BAR_COLOUR)
    axes.set_xlim(0, max(matrix.weights.shape[1], 1))
    axes.set_ylim(max(len(perplexities), 1), 0)
    axes.set_yticks([])
    axes.set_xticks([0, matrix.weights.shape[1]])
    axes.tick_params(labelsize=_SMALL_PT, length=2, pad=1)
    axes.set_title("perplexity", fontsize=_SMALL_PT, pad=3, loc="left")
    axes.spines[["top", "right", "left"]].set_visible(False)


def _draw_scale(axes: Axes, scale: Normalize, colormap: Colormap) -> None:
    bar = axes.figure.colorbar(ScalarMappable(scale, colormap), cax=axes, orientation="horizontal")
    bar.set_ticks([0.0, float(scale.vmax or 1.0)])
    bar.ax.xaxis.set_major_formatter("{x:.2g}")
    bar.ax.tick_params(labelsize=_SMALL_PT, length=2, pad=1)
    bar.outline.set_linewidth(0.4)
    bar.set_label("attention", fontsize=_SMALL_PT, labelpad=-5)

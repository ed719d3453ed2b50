import re
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pytest
from PIL import Image

from captioner.config import GridConfig, PreprocessConfig
from captioner.errors import UsageError
from captioner.figures.files import figure_as_html, save_figure
from captioner.figures.heatmap import blend, find_colormap
from captioner.figures.matrix import draw_matrices, perplexity
from captioner.figures.overlay import draw_overlay
from captioner.figures.style import FigureFormat, FigureStyle
from captioner.inference import Captioner
from captioner.translation.translator import Translation
from tests.conftest import make_caption, noise_picture

WORDS = ("a", "<dog>", "runs", "$5")


@pytest.mark.parametrize("colormap", ["inferno", "magma", "viridis", "cividis", "gray"])
def test_brighter_means_more_attention_also_when_printed_in_grey(colormap: str) -> None:
    colours = find_colormap(FigureStyle(colormap=colormap))(np.linspace(0, 1, 256))[:, :3]
    grey = colours @ (0.2126, 0.7152, 0.0722)
    assert (np.diff(grey) > -1e-3).all()
    assert grey[-1] - grey[0] > 0.5


def test_unknown_colour_map_is_reported() -> None:
    with pytest.raises(UsageError, match="no colour map 'infern'; try inferno"):
        find_colormap(FigureStyle(colormap="infern"))


def test_all_colour_in_a_blended_picture_is_attention() -> None:
    """Whatever the picture's colours are, blended with a grey map it is grey."""
    from matplotlib.colors import Normalize

    pixels = np.asarray(noise_picture(1))
    heat = np.random.default_rng(0).random(pixels.shape[:2])
    drawn = blend(pixels, heat, scale=Normalize(0, 1), colormap=find_colormap(FigureStyle(colormap="gray")))
    np.testing.assert_allclose(drawn[..., 0], drawn[..., 1], atol=1e-12)
    np.testing.assert_allclose(drawn[..., 0], drawn[..., 2], atol=1e-12)


def test_chosen_words_are_drawn_on_the_scale_of_all(
    even_grid: GridConfig, preprocess_config: PreprocessConfig
) -> None:
    caption = make_caption(WORDS, even_grid, preprocess_config)
    whole = draw_overlay(caption, noise_picture(0))
    chosen = draw_overlay(caption, noise_picture(0), style=FigureStyle(words=("runs", "cat")))
    assert [axis.get_title() for axis in chosen.axes if axis.images] == ["", "runs"]
    np.testing.assert_array_equal(chosen.axes[1].images[0].get_array(), whole.axes[3].images[0].get_array())


@pytest.mark.parametrize(("columns", "rows"), [(1, 5), (2, 3), (4, 2), (5, 1), (9, 1)])
def test_panels_have_the_requested_number_of_columns(
    columns: int, rows: int, even_grid: GridConfig, preprocess_config: PreprocessConfig
) -> None:
    figure = draw_overlay(
        make_caption(WORDS, even_grid, preprocess_config),
        noise_picture(0),
        style=FigureStyle(columns=columns),
    )
    corners = [axis.get_position() for axis in figure.axes if axis.images]
    assert len({round(corner.x0, 6) for corner in corners}) == min(columns, 5)
    assert len({round(corner.y0, 6) for corner in corners}) == rows


@pytest.mark.parametrize("columns", [2, 3, 5])
def test_words_are_legible_at_the_width_of_a_column(
    columns: int, even_grid: GridConfig, preprocess_config: PreprocessConfig
) -> None:
    """No wider than the column it is for, so that it is not shrunk, with words of 8 points or more."""
    figure = draw_overlay(
        make_caption(WORDS, even_grid, preprocess_config),
        noise_picture(0),
        style=FigureStyle(columns=columns),
    )
    assert figure.get_size_inches()[0] <= {2: 3.3, 3: 4.2, 5: 7.0}[columns]
    assert min(axis.title.get_fontsize() for axis in figure.axes if axis.images) >= 8


@pytest.mark.parametrize("kind", ["png", "svg", "pdf"])
def test_same_figure_gives_the_same_bytes(
    kind: FigureFormat, even_grid: GridConfig, preprocess_config: PreprocessConfig, tmp_path: Path
) -> None:
    caption = make_caption(WORDS, even_grid, preprocess_config)
    for name in ("one", "two"):
        figure = draw_overlay(caption, noise_picture(4))
        save_figure(figure, tmp_path / name, FigureStyle(), kind)
    assert (tmp_path / "one").read_bytes() == (tmp_path / "two").read_bytes()


def test_text_stays_text_in_svg_and_pdf(
    even_grid: GridConfig, preprocess_config: PreprocessConfig, tmp_path: Path
) -> None:
    figure = draw_overlay(make_caption(WORDS, even_grid, preprocess_config), noise_picture(0))
    save_figure(figure, tmp_path / "a.svg", FigureStyle(), "svg")
    texts = [
        element.text for element in ElementTree.parse(tmp_path / "a.svg").iter() if "text" in element.tag
    ]
    assert {*WORDS, " ".join(WORDS), "attention per cell"} <= set(texts)
    save_figure(figure, tmp_path / "a.pdf", FigureStyle(), "pdf")
    assert b"/CIDFontType2" in (tmp_path / "a.pdf").read_bytes()  # TrueType, not outlines


def test_png_has_the_requested_pixels_per_inch(
    even_grid: GridConfig, preprocess_config: PreprocessConfig, tmp_path: Path
) -> None:
    figure = draw_overlay(make_caption(WORDS, even_grid, preprocess_config), noise_picture(0))
    for dpi in (50, 100):
        save_figure(figure, tmp_path / "a.png", FigureStyle(dpi=dpi), "png")
        with Image.open(tmp_path / "a.png") as image:
            np.testing.assert_allclose(image.size, figure.get_size_inches() * dpi, atol=1)


def test_notebook_shows_the_figure_with_the_caption_as_alternative_text(captioner: Captioner) -> None:
    html = captioner.caption(noise_picture(2))._repr_html_()
    assert re.match(r'<img src="data:image/png;base64,[A-Za-z0-9+/=]{1000,}" alt="[a-z ]+"', html)


def test_caption_s_characters_cannot_end_the_html(
    even_grid: GridConfig, preprocess_config: PreprocessConfig
) -> None:
    figure = draw_overlay(make_caption(("a",), even_grid, preprocess_config), noise_picture(0))
    assert 'alt="&quot;&gt;&lt;b&gt;"' in figure_as_html(figure, alternative='"><b>')


def test_heatmap_of_a_word_is_found_by_the_word(captioner: Captioner) -> None:
    caption = captioner.caption(noise_picture(3))
    word = caption.tokens[-1]
    first = caption.tokens.index(word)
    np.testing.assert_array_equal(caption.heatmap(word, (30, 20)), caption.heatmap(first, (30, 20)))
    with pytest.raises(ValueError, match="the caption does not contain 'zebra'; its words are "):
        caption.heatmap("zebra", (30, 20))


def test_perplexity_counts_the_positions_that_are_attended_to_equally() -> None:
    weights = np.array([[1, 0, 0, 0], [0.5, 0, 0.5, 0], [0.25, 0.25, 0.25, 0.25]])
    np.testing.assert_allclose(perplexity(weights), [1, 2, 4])


def heatmap_axes(figure: Any) -> list[Any]:
    return [axis for axis in figure.axes if axis.images and axis.get_xlabel()]


def test_matrix_has_a_row_per_word_and_a_column_per_cell_in_reading_order(
    even_grid: GridConfig, preprocess_config: PreprocessConfig
) -> None:
    caption = make_caption(WORDS, even_grid, preprocess_config)
    (drawn,) = heatmap_axes(draw_matrices([caption]))
    np.testing.assert_array_equal(drawn.images[0].get_array(), caption.alphas.reshape(4, 9))
    assert [label.get_text() for label in drawn.get_yticklabels()] == list(WORDS)


def test_margins_are_sums_over_words_and_perplexities_over_cells(
    even_grid: GridConfig, preprocess_config: PreprocessConfig
) -> None:
    caption = make_caption(WORDS, even_grid, preprocess_config)
    figure = draw_matrices([caption])
    bars = [[(bar.get_width(), bar.get_height()) for bar in axis.patches] for axis in figure.axes]
    above, right = (bar for bar in bars if bar)
    np.testing.assert_allclose([height for _, height in above], caption.alphas.sum(axis=0).ravel())
    np.testing.assert_allclose([width for width, _ in right], perplexity(caption.alphas.reshape(4, 9)))


def test_two_captions_are_drawn_side_by_side_on_one_scale(
    even_grid: GridConfig, preprocess_config: PreprocessConfig
) -> None:
    sharp = np.zeros((2, 3, 3))
    sharp[:, 1, 1] = 1.0
    captions = [
        make_caption(("a", "dog"), even_grid, preprocess_config, sharp),
        make_caption(WORDS, even_grid, preprocess_config),
    ]
    left, right = heatmap_axes(captions[0].plot_matrix(captions[1]))
    assert left.images[0].norm.vmax == right.images[0].norm.vmax == 1.0
    assert left.get_position().x1 < right.get_position().x0
    assert left.get_position().y1 == pytest.approx(right.get_position().y1)


def test_matrix_of_a_caption_without_words(captioner: Captioner) -> None:
    (empty,) = captioner.attend(noise_picture(0), ["..."])
    assert not heatmap_axes(empty.plot_matrix())


def test_figures_too_large_to_draw_are_refused() -> None:
    with pytest.raises(ValueError, match="columns times dpi must be at most 40,000, not 72000"):
        FigureStyle(columns=30, dpi=2400)


def test_matrix_of_chosen_words_and_of_no_word() -> None:
    translation = Translation(
        sentence="",
        text="",
        sentence_words=("die", "Katze", "die"),
        words=("the", "cat", "the"),
        log_prob=0.0,
        alphas=np.eye(3),
    )
    assert translation.matrix().choose(["the"]).weights.tolist() == [[1, 0, 0], [0, 0, 1]]
    (drawn,) = [
        axis
        for axis in translation.plot(style=FigureStyle(words=("dog",))).axes
        if axis.get_xlabel() == "words of the sentence"
    ]
    assert not drawn.images

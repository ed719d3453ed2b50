from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from captioner.config import GridConfig, PreprocessConfig
from captioner.figures.files import save_figure
from captioner.figures.overlay import draw_overlay
from captioner.figures.style import FigureStyle
from tests.conftest import make_caption, noise_picture


def test_one_panel_per_word_with_the_word_as_title(
    even_grid: GridConfig, preprocess_config: PreprocessConfig
) -> None:
    caption = make_caption(("a", "$5", "dog"), even_grid, preprocess_config)
    figure = draw_overlay(caption, noise_picture(0))
    panels = [axis for axis in figure.axes if axis.images]
    assert [axis.get_title() for axis in panels] == ["", "a", "$5", "dog"]


@pytest.mark.parametrize("size", [(300, 100), (90, 400), (50, 50), (1, 1), (2000, 3)])
def test_panels_keep_the_picture_s_aspect_ratio(
    size: tuple[int, int], even_grid: GridConfig, preprocess_config: PreprocessConfig, tmp_path: Path
) -> None:
    figure = draw_overlay(make_caption(("a", "dog"), even_grid, preprocess_config), Image.new("RGB", size))
    save_figure(figure, tmp_path / "figure.png", FigureStyle(), "png")
    for axis in figure.axes[:3]:
        assert axis.get_aspect() == 1.0
        height, width = axis.images[0].get_array().shape[:2]
        assert (
            abs(width / height - size[0] / size[1]) <= max(width / height, 1) * 0.05
            or min(width, height) == 1
        )


def test_hot_cell_is_bright_only_in_its_own_panel_and_position(
    even_grid: GridConfig, preprocess_config: PreprocessConfig
) -> None:
    alphas = np.zeros((2, 3, 3))
    alphas[0, 0, 2] = alphas[1, 2, 0] = 1.0
    caption = make_caption(("one", "two"), even_grid, preprocess_config, alphas)
    figure = draw_overlay(caption, Image.new("RGB", (120, 60)), style=FigureStyle(overlay_style="cells"))
    one, two = (axis.images[0].get_array().sum(axis=2) for axis in figure.axes[1:3])
    assert np.argwhere(one > one.min()).min(axis=0).tolist() == [0, 80]
    assert np.argwhere(one > one.min()).max(axis=0).tolist() == [19, 119]
    assert np.argwhere(two > two.min()).min(axis=0).tolist() == [40, 0]


def test_all_panels_share_the_stated_scale(
    even_grid: GridConfig, preprocess_config: PreprocessConfig
) -> None:
    """A word with half the attention on a cell is less bright there than one with all of it."""
    alphas = np.zeros((2, 3, 3))
    alphas[0, 1, 1], alphas[1, 1, 1], alphas[1, 0, 0] = 1.0, 0.5, 0.5
    caption = make_caption(("sharp", "soft"), even_grid, preprocess_config, alphas)
    figure = draw_overlay(caption, Image.new("RGB", (60, 60)), style=FigureStyle(overlay_style="cells"))
    sharp, soft = (axis.images[0].get_array()[30, 30].sum() for axis in figure.axes[1:3])
    assert sharp > soft
    bar = figure.axes[-1]
    assert bar.get_xlim() == (0.0, 1.0)
    assert bar.get_xlabel() == "attention per cell"


def test_empty_caption_draws_the_picture_alone(
    even_grid: GridConfig, preprocess_config: PreprocessConfig
) -> None:
    figure = draw_overlay(make_caption((), even_grid, preprocess_config), noise_picture(0))
    assert len([axis for axis in figure.axes if axis.images]) == 1

"""Geometry between pictures, the CNN's square input and the grid of cells."""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, UInt8
from PIL import Image

from captioner.config import GridConfig, PreprocessConfig
from captioner.images.reading import load_image
from captioner.images.sources import ImageSource


@dataclass(frozen=True)
class Preprocess:
    """Turns a picture into the CNN's square input.

    The picture is squashed without a crop, so that all of it is captioned and a heatmap is scaled back
    by one factor per axis.
    """

    config: PreprocessConfig

    def __call__(self, image: Image.Image) -> UInt8[np.ndarray, "size size 3"]:
        """Squash an RGB picture of any size to the square input, which the encoder normalises.

        Along an axis that is at least twice as long, pixels are averaged first, which is twice as fast.
        """
        size, filter_ = self.config.size_px, Image.Resampling[self.config.interpolation.upper()]
        return np.asarray(image.resize((size, size), filter_, reducing_gap=1.0))

    def load(self, source: ImageSource) -> UInt8[np.ndarray, "size size 3"]:
        """Read a picture and prepare it. Raises: ImageError."""
        return self(load_image(source, enough_px=self.config.size_px))


def _centres_px(
    num_cells: int, grid: GridConfig, input_px: int, image_px: int
) -> Float[np.ndarray, " cells"]:
    """Where the cells' centres lie along one axis of the picture, in pixels from its edge."""
    centres = grid.offset_px + grid.stride_px * np.arange(num_cells) + 0.5
    return centres * (image_px / input_px)


def heatmap(
    alpha: Float[np.ndarray, "rows cols"],
    *,
    grid: GridConfig,
    preprocess: PreprocessConfig,
    image_size: tuple[int, int],
    is_smooth: bool = True,
) -> Float[np.ndarray, "height width"]:
    """Project one word's attention onto the original picture, at the picture's own size.

    `image_size` is (width, height) in pixels. With `is_smooth` a pixel gets the mean attention of the cells
    around it, each weighted by a Gaussian around its centre (`GridConfig.heatmap_std_px`).
    Without, it gets the attention of the cell with the nearest centre. Both are in attention per cell.
    """
    width, height = image_size
    vertical = cells_to_pixels(grid.rows, grid, preprocess.size_px, height, is_smooth)
    horizontal = cells_to_pixels(grid.cols, grid, preprocess.size_px, width, is_smooth)
    return vertical @ alpha @ horizontal.T


def cell_coverage(
    mask: Float[np.ndarray, "*regions height width"], *, grid: GridConfig, preprocess: PreprocessConfig
) -> Float[np.ndarray, "*regions rows cols"]:
    """The share of each cell that a mask over the picture covers; values of the mask are in [0, 1].

    A cell is the part of the picture that is closer to its centre than to any other's.
    """
    height, width = mask.shape[-2:]
    vertical = cells_to_pixels(grid.rows, grid, preprocess.size_px, height, is_smooth=False)
    horizontal = cells_to_pixels(grid.cols, grid, preprocess.size_px, width, is_smooth=False)
    areas = np.outer(vertical.sum(axis=0), horizontal.sum(axis=0))
    return (vertical.T @ mask @ horizontal) / np.maximum(areas, 1)  # a tiny picture has cells without pixels


def cells_to_pixels(
    num_cells: int, grid: GridConfig, input_px: int, image_px: int, is_smooth: bool
) -> Float[np.ndarray, "pixels cells"]:
    """Weights of the cells for each pixel along one axis; a pixel's weights sum to one."""
    pixels = np.arange(image_px) + 0.5
    centres = _centres_px(num_cells, grid, input_px, image_px)
    if not is_smooth:
        borders = (centres[:-1] + centres[1:]) / 2
        return np.eye(num_cells)[np.searchsorted(borders, pixels, side="right")]
    deviation = grid.heatmap_std_px * image_px / input_px
    exponent = -0.5 * ((pixels[:, None] - centres[None, :]) / deviation) ** 2
    weights = np.exp(exponent - exponent.max(axis=1, keepdims=True))
    return weights / weights.sum(axis=1, keepdims=True)

"""How a picture file becomes the CNN's input, and how a grid cell maps back to its pixels.

Pillow and numpy only: captioning without torch uses this module as it is.
"""

import io
import os
import struct
import zipfile
import zlib
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal, TypeAlias

import numpy as np
from jaxtyping import Float, UInt8
from PIL import Image

from captioner.config import GridConfig, PreprocessConfig
from captioner.errors import CaptionerError

MAX_PIXELS = 178_956_970
"""Pictures larger than this are refused: Pillow's own limit for a decompression bomb (0.5 GiB of RGB)."""

_WHITE = (255, 255, 255, 255)

# What Pillow's decoders are known to raise on files that are damaged or no pictures at all.
_DECODING_ERRORS = (
    *(OSError, EOFError, ValueError, TypeError, LookupError, ArithmeticError, AttributeError),
    *(RuntimeError, SyntaxError, struct.error, zlib.error, zipfile.BadZipFile),
)

_EXIF_ORIENTATION = 0x0112
_UPRIGHT_BY = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


class ImageError(CaptionerError):
    """A file that cannot be read as a picture: `file` is its name and `reason` says why, in one line."""

    def __init__(self, file: str, reason: str) -> None:
        super().__init__(f"{file}: {reason}")
        self.file = file
        self.reason = reason

    def __reduce__(self) -> tuple[type["ImageError"], tuple[str, str]]:
        """So that a worker process can hand it over."""
        return ImageError, (self.file, self.reason)


@dataclass(frozen=True, slots=True)
class ZipMember:
    """A picture inside a zip archive, which need not be unpacked."""

    archive: Path
    name: str

    def __str__(self) -> str:
        return f"{self.archive}/{self.name}"

    def open(self, mode: Literal["rb"] = "rb") -> Any:  # noqa: ARG002
        """A binary file to read from. Raises: OSError, zipfile.BadZipFile, KeyError (no such member)."""
        return _opened_archive(self.archive, os.getpid()).open(self.name)

    @property
    def checksum(self) -> int:
        """CRC-32 of the member's bytes, from the archive's index."""
        return _opened_archive(self.archive, os.getpid()).getinfo(self.name).CRC


@lru_cache(maxsize=64)
def _opened_archive(path: Path, process: int) -> zipfile.ZipFile:  # noqa: ARG001
    """An archive stays open; each process has its own, for the place in a file is shared by a fork."""
    return zipfile.ZipFile(path)


@dataclass(frozen=True, slots=True)
class PictureBytes:
    """A picture that is in memory already, under the name that it is told by."""

    name: str
    content: bytes = field(repr=False)

    def __str__(self) -> str:
        return self.name

    def open(self, mode: Literal["rb"] = "rb") -> Any:  # noqa: ARG002
        """A binary file to read from."""
        return io.BytesIO(self.content)


StoredPicture: TypeAlias = Path | ZipMember
"""A picture that can be read again and again: a file, or a member of a zip archive."""

ImageSource: TypeAlias = StoredPicture | PictureBytes
"""Where a picture's bytes are."""


def load_image(source: ImageSource, *, enough_px: int | None = None) -> Image.Image:
    """Read a picture as upright RGB, whatever its format, mode or EXIF orientation.

    An animation gives its first frame; transparent parts come out white; 16-bit and floating point
    values are scaled to 8 bits. Where `enough_px` says to which side the picture will be shrunk, a JPEG
    that is far larger is decoded at a half, a quarter or an eighth of its size, which is faster; its
    sides stay at least twice as long as that.

    Raises:
        ImageError: the file is missing, empty, truncated, too large or no picture.
    """
    try:
        if isinstance(source, Path) and not source.is_file():
            raise ImageError(str(source), "is not a file" if source.exists() else "no such file")
        with source.open("rb") as file:
            if not file.read(1):
                raise ImageError(str(source), "the file is empty")
            file.seek(0)
            with Image.open(file) as image:
                width, height = image.size
                if width * height > MAX_PIXELS:
                    raise ImageError(
                        str(source),
                        f"{width} x {height} pixels are over the {MAX_PIXELS:,} allowed; shrink it first",
                    )
                if enough_px is not None:
                    image.draft(image.mode, (2 * enough_px, 2 * enough_px))
                return upright_rgb(image)
    except Image.UnidentifiedImageError:
        raise ImageError(str(source), "not a picture in a format that Pillow reads") from None
    except Image.DecompressionBombError:
        raise ImageError(
            str(source), f"more pixels than the {MAX_PIXELS:,} allowed; shrink it first"
        ) from None
    except PermissionError:
        raise ImageError(str(source), "no permission to read it") from None
    except MemoryError:
        raise ImageError(str(source), "not enough memory to decode it") from None
    except _DECODING_ERRORS as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        raise ImageError(str(source), f"cannot be decoded ({reason})") from None


def upright_rgb(image: Image.Image) -> Image.Image:
    """A picture in any of Pillow's modes as RGB, turned as its EXIF orientation says."""
    # ImageOps.exif_transpose would also write the other tags anew, and fail where one of them is odd.
    transposition = _UPRIGHT_BY.get(image.getexif().get(_EXIF_ORIENTATION, 1))
    if transposition is not None:
        image = image.transpose(transposition)
    if image.mode.startswith("I") or image.mode == "F":
        image = _to_eight_bits(image)
    if image.has_transparency_data:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, _WHITE), image)
    return image.convert("RGB")


def _to_eight_bits(image: Image.Image) -> Image.Image:
    """Grey levels of more than 8 bits as 8 bits: 16-bit ones by their range, those of 32 bits, which
    have no customary range, as 8 or 16 bits where they fit, else by their own extremes."""
    levels = np.asarray(image, dtype=np.float64)
    levels = np.where(np.isfinite(levels), levels, 0.0)
    if image.mode == "I" and levels.min() >= 0 and levels.max() < 2**8:
        pass
    elif image.mode.startswith("I") and levels.min() >= 0 and levels.max() < 2**16:
        levels = levels / 257  # 65,535 becomes 255
    else:
        span = levels.max() - levels.min()
        levels = (levels - levels.min()) * (255 / span if span > 0 else 0.0)
    return Image.fromarray(np.round(levels).astype(np.uint8), mode="L")


@dataclass(frozen=True)
class Preprocess:
    """Turns a picture into the CNN's input, and knows the way back from the grid to the picture.

    The whole picture is squashed to the square input, without a crop, so that all of it is captioned
    and the way back is a scale for each axis.
    """

    config: PreprocessConfig

    def __call__(self, image: Image.Image) -> UInt8[np.ndarray, "size size 3"]:
        """RGB picture of any size to the square input, which the encoder normalises."""
        size = self.config.size_px
        return np.asarray(image.resize((size, size), Image.Resampling[self.config.interpolation.upper()]))

    def load(self, source: ImageSource) -> UInt8[np.ndarray, "size size 3"]:
        """Read a picture and prepare it. Raises: ImageError."""
        return self(load_image(source, enough_px=self.config.size_px))


def _centres_px(
    num_cells: int, grid: GridConfig, input_px: int, image_px: int
) -> Float[np.ndarray, " cells"]:
    """Where the cells' centres lie along one axis of the picture, in pixels from its edge."""
    centres = grid.offset_px + grid.stride_px * np.arange(num_cells) + 0.5
    return centres * (image_px / input_px)


def _borders_px(
    num_cells: int, grid: GridConfig, input_px: int, image_px: int
) -> Float[np.ndarray, " borders"]:
    """The edges between the cells along one axis: half-way between centres, and the picture's own."""
    centres = _centres_px(num_cells, grid, input_px, image_px)
    inner = (centres[:-1] + centres[1:]) / 2
    return np.clip(np.concatenate([[0], inner, [image_px]]), 0, image_px)


def cell_box(
    row: int, col: int, *, grid: GridConfig, preprocess: PreprocessConfig, image_size: tuple[int, int]
) -> tuple[float, float, float, float]:
    """The part of the original picture that is nearer to this cell's centre than to any other's.

    `image_size` is (width, height) in pixels; the box is (left, top, right, bottom) in pixels.
    """
    width, height = image_size
    x = _borders_px(grid.cols, grid, preprocess.size_px, width)
    y = _borders_px(grid.rows, grid, preprocess.size_px, height)
    return float(x[col]), float(y[row]), float(x[col + 1]), float(y[row + 1])


def heatmap(
    alpha: Float[np.ndarray, "rows cols"],
    *,
    grid: GridConfig,
    preprocess: PreprocessConfig,
    image_size: tuple[int, int],
    is_smooth: bool = True,
) -> Float[np.ndarray, "height width"]:
    """Project one word's attention onto the original picture, at the picture's own size.

    `image_size` is (width, height) in pixels. With `is_smooth` a pixel has the mean attention of the cells
    that see it, each weighted by a Gaussian around its centre, of the deviation that `grid` has. Else it
    has that of the cell whose centre is the nearest. Both are in attention per cell.
    """
    width, height = image_size
    vertical = cells_to_pixels(grid.rows, grid, preprocess.size_px, height, is_smooth)
    horizontal = cells_to_pixels(grid.cols, grid, preprocess.size_px, width, is_smooth)
    return vertical @ alpha @ horizontal.T


def cells_to_pixels(
    num_cells: int, grid: GridConfig, input_px: int, image_px: int, is_smooth: bool
) -> Float[np.ndarray, "pixels cells"]:
    """Weight of each cell for each pixel along one axis; a pixel's weights sum to one."""
    pixels = np.arange(image_px) + 0.5
    if not is_smooth:
        inner = _borders_px(num_cells, grid, input_px, image_px)[1:-1]
        return np.eye(num_cells)[np.searchsorted(inner, pixels, side="right")]
    centres = _centres_px(num_cells, grid, input_px, image_px)
    deviation = grid.field_or_default_px * image_px / input_px
    exponent = -0.5 * ((pixels[:, None] - centres[None, :]) / deviation) ** 2
    weights = np.exp(exponent - exponent.max(axis=1, keepdims=True))
    return weights / weights.sum(axis=1, keepdims=True)

"""Picture files to upright RGB images, with Pillow and numpy alone."""

import logging
import math
import re
import struct
import warnings
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, JpegImagePlugin, PngImagePlugin

from captioner.errors import CaptionerError, ImageError, one_line
from captioner.images.colour import to_srgb
from captioner.images.formats import is_raw, plugin_for
from captioner.images.sources import ImageSource

MAX_PIXELS = 178_956_970
"""More are not decoded: Pillow's own limit for a decompression bomb (0.5 GiB of RGB)."""

MAX_JPEG_PIXELS = 2**29
"""Of a JPEG that is decoded at a fraction of its size; phones and panoramas have up to half as many."""

_SHRINK_ABOVE = 2**25  # pixels: larger pictures are shrunk before they are converted, to save memory

_HEAD_BYTES = 16  # that tell the format
_JPEG_HEAD = b"\xff\xd8\xff"

# Pillow refuses texts of over a megabyte, which image generators write into PNGs; they are not kept.
PngImagePlugin.MAX_TEXT_CHUNK = PngImagePlugin.MAX_TEXT_MEMORY

_WHITE = (255, 255, 255, 255)
_ARCHIVES = (".zip", ".tar", ".tgz", ".gz", ".7z", ".rar")

# What Pillow's decoders are known to raise on damaged files and files that are not pictures.
_DECODING_ERRORS = (
    *(OSError, EOFError, ValueError, TypeError, LookupError, ArithmeticError, AttributeError),
    *(RuntimeError, SyntaxError, struct.error, zlib.error, zipfile.BadZipFile),
)

_EXIF_ORIENTATION = 0x0112
_PHOTOMETRIC = 262  # of TIFF
_UPRIGHT_BY = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


def quieten_pillow() -> None:
    """Pictures are either captioned as well as they can be read, or reported; Pillow need not warn."""
    logging.getLogger("PIL").setLevel(logging.ERROR)
    warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # load_image has its own limit
    warnings.filterwarnings("ignore", module=r"PIL\.")


def load_image(source: ImageSource, *, enough_px: int | None = None) -> Image.Image:
    """Read a picture as upright RGB, whatever its format, mode or EXIF orientation.

    Of an animation this is the first frame; transparent parts become white; 16-bit and floating point
    values are scaled to 8 bits; colours are converted to sRGB by the embedded profile. If the picture will be
    shrunk to a side of `enough_px`, a far larger JPEG is decoded at a half, a quarter or an eighth of its
    size, which is faster; its sides stay at least twice that long.

    Raises:
        ImageError: the file is missing, empty, truncated, too large or not a picture.
    """
    name = str(source)
    with translated_errors(name):
        if isinstance(source, Path) and not source.is_file():
            raise ImageError(name, _why_missing(source))
        if is_raw(name):
            raise ImageError(name, "camera raw cannot be read; export it as JPEG, PNG or TIFF")
        with source.open("rb") as file, _open(file, name) as image:
            size = image.size
            if enough_px is not None:
                image.draft(image.mode, (2 * enough_px, 2 * enough_px))
            _check_size(image, size, name)
            return upright_rgb(image, enough_px=enough_px)


def check_pixels(source: ImageSource, most: int) -> None:
    """Refuse a picture with more pixels than `most`, by its header alone, unless it is a JPEG that can be
    decoded at a fraction of its size. Raises: ImageError."""
    name = str(source)
    with translated_errors(name), source.open("rb") as file, _open(file, name) as image:
        is_draft = image.format == "JPEG" and not image.info.get("progressive")
        if math.prod(image.size) > most and not is_draft:
            raise _too_many_pixels(name, image.size, most)


def load_opened(image: Image.Image) -> Image.Image:
    """A picture that a program has opened with Pillow, as upright RGB. Raises: ImageError."""
    name = str(getattr(image, "filename", "") or "picture")
    with translated_errors(name):
        if not math.prod(image.size):
            raise ImageError(name, "it has no pixels")
        upright = upright_rgb(image)
        return upright.copy() if upright is image else upright  # which is the caller's to change


@contextmanager
def translated_errors(name: str) -> Iterator[None]:
    """Turn whatever shows that a picture cannot be read into an `ImageError` that names it."""
    try:
        yield
    except ImageError:
        raise
    except CaptionerError as error:
        raise ImageError(name, str(error)) from None
    except Image.UnidentifiedImageError:
        advice = "; unpack it first" if name.lower().endswith(_ARCHIVES) else ""
        raise ImageError(name, f"not a picture in a format that Pillow can read{advice}") from None
    except Image.DecompressionBombError:
        raise ImageError(
            name, f"it has more than the {MAX_PIXELS:,} pixels allowed; shrink it first"
        ) from None
    except PermissionError:
        raise ImageError(name, "no permission to read it") from None
    except MemoryError:
        raise ImageError(name, "not enough memory to decode it") from None
    except _DECODING_ERRORS as error:
        raise ImageError(name, f"damaged or truncated ({one_line(error)})") from None


def _why_missing(path: Path) -> str:
    if path.exists():
        return "is not a file"
    if re.match(r"[a-z][a-z0-9+.-]+:/", str(path), re.IGNORECASE):
        return "URLs are not fetched: download it first"
    return "no such file"


def _open(file: Any, name: str) -> Image.Image:
    """A picture that is not decoded yet. Raises: ImageError, and what Pillow raises."""
    head = file.read(_HEAD_BYTES)
    if not head:
        raise ImageError(name, "the file is empty")
    file.seek(0)
    if head.startswith(_JPEG_HEAD):  # Image.open would refuse a large one before it can be decoded smaller
        return JpegImagePlugin.jpeg_factory(file)
    plugin = plugin_for(head)
    if plugin is not None:
        plugin.load(name)
    return Image.open(file)


def _check_size(image: Image.Image, size: tuple[int, int], name: str) -> None:
    """Refuse what takes too much memory to decode; `size` is the picture's own, `image.size` may be less.

    Raises: ImageError.
    """
    # A progressive JPEG is held in memory at full size, whatever it is decoded to.
    is_draft = image.size != size and not image.info.get("progressive")
    most = MAX_JPEG_PIXELS if is_draft and math.prod(image.size) <= MAX_PIXELS else MAX_PIXELS
    if math.prod(size) > most:
        raise _too_many_pixels(name, size, most)


def _too_many_pixels(name: str, size: tuple[int, int], most: int) -> ImageError:
    return ImageError(name, f"{size[0]} x {size[1]} pixels exceed the {most:,} allowed; shrink it first")


def _shrunk(image: Image.Image, enough_px: int | None) -> Image.Image:
    """A very large picture at a fraction of its size, its sides at least twice `enough_px` long."""
    if (
        enough_px is None
        or math.prod(image.size) <= _SHRINK_ABOVE
        or image.mode not in ("RGB", "RGBA", "L", "CMYK")
    ):
        return image
    factor = min(image.size) // (2 * enough_px)
    return image.reduce(factor) if factor > 1 else image


def upright_rgb(image: Image.Image, *, enough_px: int | None = None) -> Image.Image:
    """Convert a picture of any Pillow mode to RGB in sRGB, and apply its EXIF orientation.

    A very large one is shrunk first, to sides at least twice `enough_px` long. The result may be the picture
    itself.
    """
    image.load()  # after which a TIFF is upright already
    transposition = _UPRIGHT_BY.get(_orientation(image))
    image = _shrunk(image, enough_px)
    if transposition is not None:
        # ImageOps.exif_transpose would also rewrite the other tags, and fail if one of them is malformed.
        image = image.transpose(transposition)
    if image.mode.startswith("I") or image.mode == "F":
        image = _to_eight_bits(image)
    if image.has_transparency_data:  # before colours change, because one of them may mean transparency
        image = image.convert("LA" if image.mode in ("1", "L", "LA") else "RGBA")
    image = to_srgb(image)
    if image.has_transparency_data:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, _WHITE), image)
    return image if image.mode == "RGB" else image.convert("RGB")  # which would copy it


def _orientation(image: Image.Image) -> int:
    """The EXIF orientation, 1 (upright) if there is none or the EXIF data are malformed."""
    try:
        return image.getexif().get(_EXIF_ORIENTATION, 1)
    except _DECODING_ERRORS:
        return 1


def _to_eight_bits(image: Image.Image) -> Image.Image:
    """Scale grey levels to 8 bits: 16-bit ones by their range; 32-bit ones, which have no customary range,
    as 8 or 16 bits if they fit, else by their own extremes."""
    raw = np.asarray(image)
    levels = raw.astype(np.float32)  # changed in place: the picture may be large
    np.nan_to_num(levels, copy=False, posinf=0.0, neginf=0.0)
    if image.mode == "I" and levels.min() >= 0 and levels.max() < 2**8:
        pass
    elif image.mode.startswith("I") and levels.min() >= 0 and levels.max() < 2**16:
        levels /= 257  # 65,535 becomes 255
    else:
        span = levels.max() - levels.min()
        levels -= levels.min()
        levels *= 255 / span if 0 < span < np.inf else 0.0
    eight = np.round(levels, out=levels).astype(np.uint8)
    if getattr(image, "tag_v2", {}).get(_PHOTOMETRIC) == 0:
        eight = 255 - eight  # white is zero
    grey = Image.fromarray(eight, mode="L")
    if isinstance(transparent := image.info.get("transparency"), int):
        grey.putalpha(Image.fromarray(np.where(raw == transparent, 0, 255).astype(np.uint8)))
    grey.info["icc_profile"] = image.info.get("icc_profile")
    return grey

"""Colours by a picture's embedded ICC profile, converted to sRGB, which the CNN was trained on."""

import io
from functools import lru_cache
from itertools import product
from typing import Any

from PIL import Image

_COLOUR_SPACE = {"RGB": "RGB ", "CMYK": "CMYK", "L": "GRAY"}
"""The colour spaces of profiles by Pillow's modes, as ICC.1 writes them."""

_SAME = 2
"""Levels by which the colours of a profile that is called sRGB may differ from it."""


def to_srgb(image: Image.Image) -> Image.Image:
    """Convert a picture to sRGB by its embedded ICC profile.

    It is returned as it is without a profile, with one that is sRGB itself, and with one that is damaged or
    belongs to another kind of picture. Modes other than RGB, RGBA, P, PA, L, LA and CMYK are left alone.
    """
    profile = image.info.get("icc_profile")
    if not isinstance(profile, bytes) or not profile:
        return image
    if image.mode in ("P", "PA"):
        image = image.convert("RGBA" if image.has_transparency_data else "RGB")
    mode = {"RGBA": "RGB", "LA": "L"}.get(image.mode, image.mode)
    transform = _transform(profile, mode) if mode in _COLOUR_SPACE else None
    if transform is None:
        return image
    converted: Image.Image = transform.apply(image.convert(mode))
    if image.mode in ("RGBA", "LA"):
        converted.putalpha(image.getchannel("A"))
    dropped = ("icc_profile", "transparency")  # what is transparent is in the alpha channel
    converted.info = {name: value for name, value in image.info.items() if name not in dropped}
    return converted


@lru_cache(maxsize=32)
def _transform(profile: bytes, mode: str) -> Any:
    """The conversion from a profile, or None if there is nothing to convert."""
    from PIL import ImageCms

    try:
        source = ImageCms.ImageCmsProfile(io.BytesIO(profile))
        if source.profile.xcolor_space != _COLOUR_SPACE[mode]:
            return None
        # Without lcms's cache of the last pixel, threads may share it.
        transform = ImageCms.buildTransform(
            source, ImageCms.createProfile("sRGB"), mode, "RGB", flags=ImageCms.Flags.NOCACHE
        )
        if mode == "RGB" and _largest_change(transform) <= _SAME:
            return None
    except (ImageCms.PyCMSError, OSError, ValueError, TypeError):
        return None
    return transform


def _largest_change(transform: Any) -> int:
    """By how many levels the conversion changes a colour, over a lattice of colours."""
    colours = list(product(range(0, 256, 51), repeat=3))
    lattice = Image.new("RGB", (len(colours), 1))
    lattice.putdata(colours)
    before, after = lattice.tobytes(), transform.apply(lattice).tobytes()
    return max(abs(old - new) for old, new in zip(before, after, strict=True))

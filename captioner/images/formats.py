"""Formats of pictures: the suffixes of files, and plugins for those that Pillow does not read by itself."""

import os
from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module
from typing import Any

from captioner.errors import ImageError

PILLOW_SUFFIXES = (
    *(".jpg", ".jpeg", ".jpe", ".jfif", ".mpo", ".png", ".apng", ".gif", ".webp", ".avif", ".avifs"),
    *(".jp2", ".j2k", ".jpc", ".jpf", ".jpx", ".j2c", ".bmp", ".dib", ".tif", ".tiff"),
    *(".ppm", ".pgm", ".pbm", ".pnm", ".pfm", ".tga", ".icb", ".vda", ".vst", ".ico", ".icns", ".cur"),
    *(".psd", ".qoi", ".sgi", ".rgb", ".rgba", ".bw", ".ras", ".pcx", ".dcx", ".dds", ".xbm", ".xpm"),
    *(".fli", ".flc", ".pcd", ".msp", ".fit", ".fits"),
)
"""Suffixes of what Pillow reads alone."""

RAW_SUFFIXES = (*(".cr2", ".cr3", ".nef", ".arw", ".dng", ".orf", ".rw2", ".raf", ".pef", ".srw"),)
"""Suffixes of what cameras store unprocessed. Of some, Pillow would read a thumbnail."""


@dataclass(frozen=True, kw_only=True)
class Plugin:
    """A package that teaches Pillow a format."""

    format_name: str
    suffixes: tuple[str, ...]
    is_format: Callable[[bytes], bool]
    """Whether a file starts like this format."""
    module: str
    register: str
    """Function of the module to call once, if importing it is not enough."""
    install: str

    def load(self, file: str) -> None:
        """Let Pillow read the format. Raises: ImageError, naming `file`, if the package is not installed."""
        try:
            module: Any = import_module(self.module)
        except ImportError:
            raise ImageError(
                file, f"{self.format_name} needs a plugin; install it with: {self.install}"
            ) from None
        if self.register:
            getattr(module, self.register)()


_HEIF_BRANDS = (b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"hevm", b"hevs", b"mif1", b"msf1")

PLUGINS = (
    Plugin(
        format_name="HEIC",
        suffixes=(".heic", ".heif", ".hif"),
        is_format=lambda head: head[4:8] == b"ftyp" and head[8:12] in _HEIF_BRANDS,
        module="pillow_heif",
        register="register_heif_opener",
        install="pip install 'captioner[heic]'",
    ),
    Plugin(
        format_name="JPEG XL",
        suffixes=(".jxl",),
        is_format=lambda head: head.startswith((b"\xff\x0a", b"\0\0\0\x0cJXL ")),
        module="pillow_jxl",
        register="",
        install="pip install 'captioner[jxl]'",
    ),
)

PICTURE_SUFFIXES = (*PILLOW_SUFFIXES, *(suffix for one in PLUGINS for suffix in one.suffixes), *RAW_SUFFIXES)
"""Suffixes of the files that count as pictures in folders and archives; one that cannot be read is reported.
A file given by name is tried whatever it is called."""


def has_picture_suffix(name: str) -> bool:
    return _suffix(name) in PICTURE_SUFFIXES


def is_raw(name: str) -> bool:
    return _suffix(name) in RAW_SUFFIXES


def _suffix(name: str) -> str:
    return os.path.splitext(name)[1].lower()


_HEADS = (b"\xff\xd8\xff", b"\x89PNG\r\n", b"GIF8", b"BM", b"II*\0", b"MM\0*", b"RIFF")


def is_picture(head: bytes) -> bool:
    """Whether a file that starts like this is a picture in a common format, rather than text."""
    return (head.startswith(_HEADS) and b"\0" in head[:64]) or plugin_for(head) is not None


def plugin_for(head: bytes) -> Plugin | None:
    """The plugin for a file that starts like this, if it needs one."""
    return next((plugin for plugin in PLUGINS if plugin.is_format(head)), None)

"""Which pictures the paths on a command line name."""

import os
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

from tqdm import tqdm

PICTURE_SUFFIXES = (
    *(".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".gif", ".webp", ".avif", ".jp2"),
    *(".bmp", ".dib", ".tif", ".tiff", ".ppm", ".pgm", ".pbm", ".pnm", ".tga", ".ico"),
)
"""What counts as a picture when a folder is walked; a file that is named is tried whatever its name."""

OVERLAY_STEM, MATRIX_STEM = ".attention", ".matrix"
"""Endings of the names of our own figures, which are passed over when a folder is walked."""


# A name with one of these in it would break a line or a column of text.
_ESCAPES = str.maketrans({"\t": "\\t", "\n": "\\n", "\r": "\\r"})


def on_one_line(text: str) -> str:
    """The text with tabs and line ends written as \\t, \\n and \\r."""
    return text.translate(_ESCAPES)


class Failures:
    """Tells of each picture that was passed over, in one line on standard error, and counts them."""

    def __init__(self) -> None:
        self.count = 0

    def tell(self, message: str) -> None:
        self.count += 1
        tqdm.write(f"captioner: {on_one_line(message)}", file=sys.stderr)


def named_pictures(paths: Sequence[str], *, is_recursive: bool, failures: Failures) -> Iterator[Path]:
    """The pictures that the paths name, in order; folders in the order of their names.

    "-" stands for the lines of standard input. A folder without pictures is told as a failure; whether
    a named file is a picture shows only when it is read.
    """
    for path in paths:
        if path == "-":
            for line in sys.stdin.buffer:  # in bytes: a name need not be UTF-8
                if name := os.fsdecode(line.rstrip(b"\r\n")):
                    yield from _pictures_at(name, is_recursive, failures)
        else:
            yield from _pictures_at(path, is_recursive, failures)


def _pictures_at(path: str, is_recursive: bool, failures: Failures) -> Iterator[Path]:
    if not os.path.isdir(path):
        yield Path(path)
        return
    found = 0
    for picture in _walk(path, is_recursive, failures):
        found += 1
        yield picture
    if not found:
        hint = "" if is_recursive else "; --recursive looks below it too"
        failures.tell(f"{path}: no pictures in this folder{hint}")


def _walk(folder: str, is_recursive: bool, failures: Failures) -> Iterator[Path]:
    def tell(error: OSError) -> None:
        failures.tell(f"{error.filename}: cannot be looked into ({error.strerror})")

    for top, subfolders, names in os.walk(folder, onerror=tell):
        subfolders[:] = sorted(filter(_is_visible, subfolders)) if is_recursive else []
        for name in sorted(filter(_is_visible, names)):
            if has_picture_suffix(name) and not is_our_figure(name):
                yield Path(top) / name


def _is_visible(name: str) -> bool:
    return not name.startswith(".")


def is_our_figure(name: str) -> bool:
    return name.endswith((f"{OVERLAY_STEM}.png", f"{MATRIX_STEM}.png"))


def has_picture_suffix(name: str) -> bool:
    return os.path.splitext(name)[1].lower() in PICTURE_SUFFIXES

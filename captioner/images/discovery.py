"""Discovery of the pictures that paths name."""

import codecs
import glob
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from captioner.errors import CaptionerError, reject_string
from captioner.images.formats import has_picture_suffix, is_picture

OVERLAY_STEM, MATRIX_STEM = ".attention", ".matrix"
"""Endings of the stems of captioner's own figures, which are skipped in folders."""

ANIMATION_COMMENT = b"captioner"
"""The comment in captioner's own animations, which may have any name; they are skipped in folders."""

HEAD_BYTES = 2_048
"""Enough of a GIF to find its comment, which follows a palette of at most 768 bytes."""


def find_pictures(
    paths: Sequence[str], *, is_recursive: bool, report: Callable[[str], None], is_null: bool = False
) -> Iterator[Path]:
    """The pictures that the paths name, in order; those of a folder in the order of their names.

    "-" stands for the lines of standard input, or with `is_null` for names that end in NUL. A pattern such as
    *.jpg, which some shells do not expand, stands for the files that it matches. A folder without pictures is
    reported; whether a named file is a picture shows when it is read.

    Raises:
        CaptionerError: standard input is a picture.
    """
    reject_string(paths, "paths")
    for path in paths:
        if path == "-":
            is_empty = True
            for name in _names_on_standard_input(is_null):
                is_empty = False
                yield from _pictures_at(name, is_recursive, report)
            if is_empty:
                report("standard input names no pictures")
        else:
            for name in _expanded(path):
                yield from _pictures_at(name, is_recursive, report)


def _expanded(path: str) -> list[str]:
    """The files that a pattern matches; a path that is no pattern, or that exists, is itself."""
    if os.path.lexists(path) or not glob.has_magic(path):
        return [path]
    folder, name = os.path.split(path)
    if os.path.isdir(folder):  # whose name may have brackets
        path = os.path.join(glob.escape(folder), name)
    return sorted(glob.glob(path)) or [path]


def _names_on_standard_input(is_null: bool) -> Iterator[str]:
    """In bytes, because a name need not be UTF-8. Raises: CaptionerError."""
    stream: Any = sys.stdin.buffer
    chunk = stream.read1(_CHUNK_BYTES)
    if is_picture(chunk):
        raise CaptionerError(
            "standard input is a picture, but - reads the names of pictures; give the file itself"
        )
    if chunk.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):  # as PowerShell writes lists
        yield from filter(None, (chunk + stream.read()).decode("utf-16", "replace").splitlines())
        return
    if b"\0" in chunk and not is_null:
        raise CaptionerError("standard input is no list of lines; if its names end in NUL, give --null")
    chunk, rest = chunk.removeprefix(codecs.BOM_UTF8), b""
    while chunk:
        *names, rest = (rest + chunk).split(b"\0" if is_null else b"\n")
        yield from filter(None, (_name(name, is_null) for name in names))
        chunk = stream.read1(_CHUNK_BYTES)
    yield from filter(None, [_name(rest, is_null)])


def _name(line: bytes, is_null: bool) -> str:
    return os.fsdecode(line if is_null else line.rstrip(b"\r\n"))


_CHUNK_BYTES = 2**16


def _pictures_at(path: str, is_recursive: bool, report: Callable[[str], None]) -> Iterator[Path]:
    if not os.path.isdir(path):
        yield Path(path)
        return
    found = 0

    def report_once(message: str) -> None:
        nonlocal found
        found += 1
        report(message)

    for picture in _walk(path, is_recursive, report_once):
        found += 1
        yield picture
    if not found:
        hint = "" if is_recursive else "; --recursive searches its subfolders too"
        report(f"{path}: no pictures in this folder{hint}")


def _walk(folder: str, is_recursive: bool, report: Callable[[str], None]) -> Iterator[Path]:
    for path in walk_files(folder, is_recursive=is_recursive, report=report):
        if has_picture_suffix(path.name) and not is_own_figure(path.name, partial(_head, path)):
            yield path


def walk_files(
    folder: str | Path, *, is_recursive: bool = True, report: Callable[[str], None] | None = None
) -> Iterator[Path]:
    """The files of a folder whose names do not start with a dot, in the order of their names.

    Links to folders are followed, unless they lead back to a folder that they are in. A folder that cannot
    be listed is reported.
    """

    def report_unreadable(error: OSError) -> None:
        if report is not None:
            report(f"{error.filename}: cannot list this folder ({error.strerror})")

    for top, subfolders, names in os.walk(folder, onerror=report_unreadable, followlinks=True):
        below = sorted(filter(_is_visible, subfolders)) if is_recursive else []
        subfolders[:] = [name for name in below if not _leads_back(top, name)]
        for name in sorted(filter(_is_visible, names)):
            yield Path(top) / name


def _leads_back(folder: str, name: str) -> bool:
    """Whether an entry of a folder is a link to the folder itself or to one on the way to it."""
    path = Path(folder).absolute() / name
    if not path.is_symlink():
        return False
    target = os.path.realpath(path)
    return any(os.path.realpath(above) == target for above in path.parents)


def _is_visible(name: str) -> bool:
    return not name.startswith(".")


def is_own_figure(name: str, read_head: Callable[[], bytes]) -> bool:
    """Whether a file is a figure drawn by captioner: by its name, or by the comment in a GIF.

    `read_head` gives the first `HEAD_BYTES` of the file, and is called for GIFs alone.
    """
    if name.endswith((f"{OVERLAY_STEM}.png", f"{MATRIX_STEM}.png")):
        return True
    # A comment extension (GIF89a, section 24): 21 FE, the length of the text, the text, 00.
    comment = b"\x21\xfe" + bytes([len(ANIMATION_COMMENT)]) + ANIMATION_COMMENT + b"\0"
    return name.lower().endswith(".gif") and comment in read_head()


def _head(path: Path) -> bytes:
    try:
        if not path.is_file():  # reading a pipe would wait
            return b""
        with path.open("rb") as file:
            return file.read(HEAD_BYTES)
    except OSError:
        return b""  # reading it as a picture will name the reason

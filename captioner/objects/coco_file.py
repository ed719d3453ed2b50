"""Annotation files in COCO's format: opening one, and finding pictures in it by name."""

import contextlib
import io
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from captioner.errors import CaptionerError

if TYPE_CHECKING:
    from pycocotools.coco import COCO

Value = TypeVar("Value")

_MALFORMED = (
    *(OSError, ValueError, LookupError, TypeError, AttributeError, AssertionError, RecursionError),
    ArithmeticError,
)


@contextlib.contextmanager
def reading(path: Path, content: str) -> Iterator[None]:
    """Turn whatever shows that a file is not in COCO's format into a `CaptionerError`."""
    try:
        yield
    except _MALFORMED as error:
        reason = f"{type(error).__name__}: {error}"
        raise CaptionerError(f"{path} is not a COCO file with {content} ({reason})") from None


def open_coco(path: Path, content: str) -> "COCO":
    """An annotation file, by pycocotools. Raises: CaptionerError."""
    from pycocotools.coco import COCO

    if not path.is_file():
        raise CaptionerError(f"{path} is missing; give an annotation file with {content}")
    with reading(path, content), contextlib.redirect_stdout(io.StringIO()):  # it prints its progress
        return COCO(path)


def by_file_name(path: Path, named: Iterable[tuple[str, Value]]) -> dict[str, Value]:
    """Values by file names without folders, because pictures may be stored elsewhere.

    Raises:
        CaptionerError: two share it; `path` is named.
    """
    found: dict[str, Value] = {}
    for file_name, value in named:
        name = Path(file_name).name
        if name in found:
            raise CaptionerError(f"{path} has two pictures named {name}, which cannot be distinguished")
        found[name] = value
    return found

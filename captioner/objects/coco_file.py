"""Annotation files in COCO's format: opening one, and finding pictures in it by name."""

import contextlib
import io
import json
import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import msgspec

from captioner.errors import CaptionerError

if TYPE_CHECKING:
    from pycocotools.coco import COCO

Value = TypeVar("Value")

_MALFORMED = (
    *(OSError, ValueError, LookupError, TypeError, AttributeError, AssertionError, RecursionError),
    ArithmeticError,
    msgspec.MsgspecError,  # in older versions no ValueError
)


@contextlib.contextmanager
def reading(path: Path, content: str) -> Iterator[None]:
    """Turn whatever shows that a file is not in COCO's format into a `CaptionerError`."""
    try:
        yield
    except _MALFORMED as error:
        reason = f"{type(error).__name__}: {error}"
        raise CaptionerError(f"{path} is not a COCO file with {content} ({reason})") from None


def read_coco_file(path: Path, content: str) -> tuple[list[dict[str, Any]], list[dict[str, Any]], Any]:
    """The images and the annotations of a file, and everything in it; ids are as in `plain_id`.

    Raises:
        CaptionerError: the file is missing, or has no lists of objects of these names.
    """
    if not path.is_file():
        raise CaptionerError(f"{path} is missing; give an annotation file with {content}")
    with reading(path, content):
        everything = json.loads(path.read_text(encoding="utf-8-sig"))
        images, annotations = list(everything["images"]), list(everything["annotations"])
        for entries, name in ((images, "id"), (annotations, "image_id")):
            for entry in entries:
                entry[f"raw_{name}"] = entry.get(name)
                entry[name] = plain_id(entry.get(name))
    return images, annotations, everything


def plain_id(value: Any) -> Any:
    """An id as COCO writes it: 7.0, "7" and "7.0" become 7. Other values stay."""
    if isinstance(value, str):
        text = value.strip()
        return int(text.partition(".")[0]) if _NUMBER.fullmatch(text) else text
    return int(value) if isinstance(value, float) and value.is_integer() else value


_NUMBER = re.compile(r"(?:0|[1-9][0-9]{0,17})(?:\.0+)?")  # "007" is another id than "7"


def open_coco(path: Path, content: str) -> "COCO":
    """An annotation file, by pycocotools; annotations need no ids of their own. Raises: CaptionerError."""
    from pycocotools.coco import COCO

    _, annotations, everything = read_coco_file(path, content)
    with reading(path, content), contextlib.redirect_stdout(io.StringIO()):  # it prints its progress
        for number, annotation in enumerate(annotations):
            annotation["id"] = number
        coco = COCO()
        coco.dataset = everything
        coco.createIndex()
        return coco


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

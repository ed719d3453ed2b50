"""Which columns of a table, or fields of an object, are the picture, its captions and its split."""

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from captioner.errors import abbreviate
from captioner.images.sources import ParquetCell

from . import CaptionerError

IMAGE_COLUMNS = (
    *(
        "image",
        "file_name",
        "filename",
        "image_path",
        "image_file",
        "image_name",
        "img",
        "img_path",
        "picture",
    ),
    *("photo", "filepath", "file_path", "path", "file"),
)
CAPTION_COLUMNS = (
    *("caption", "captions", "text", "texts", "description", "sentence", "sentences", "alt_text", "alt"),
    *("comment", "title", "raw"),
)
SPLIT_COLUMNS = ("split",)
_NUMBERED = re.compile(rf"(?:{'|'.join(CAPTION_COLUMNS)})(?:_?\d+)+")

PROBLEM = "\0problem"
"""The column that says what is wrong with a row."""


@dataclass(frozen=True, kw_only=True)
class Row:
    """A picture's name, or where it is inside a file, and captions of it. `problem` says what is wrong."""

    where: str
    image: str | ParquetCell = ""
    captions: tuple[str, ...] = ()
    split: str = ""
    problem: str = ""


@dataclass(frozen=True, kw_only=True)
class ColumnNames:
    """Columns by name, where the user gives them."""

    image: str | None = None
    caption: str | None = None


def plain_name(column: str) -> str:
    return column.strip().lower().replace(" ", "_").replace("-", "_")


@dataclass(frozen=True)
class Columns:
    image: str
    captions: tuple[str, ...]
    split: str | None

    @classmethod
    def find(cls, known: Sequence[str], path: Path, names: ColumnNames) -> "Columns":
        """Raises: CaptionerError, if a column is not there."""
        for chosen, flag in ((names.image, "--image-column"), (names.caption, "--caption-column")):
            if chosen is not None and chosen not in known:
                raise CaptionerError(f"{path} has no column {chosen} ({flag}); it has {_listed(known)}")
        by_name = {plain_name(column): column for column in known}

        def first(wanted: Sequence[str]) -> str | None:
            return next((by_name[name] for name in wanted if name in by_name), None)

        image = names.image or first(IMAGE_COLUMNS)
        caption = names.caption or first(CAPTION_COLUMNS)
        numbered = [column for name, column in by_name.items() if _NUMBERED.fullmatch(name)]
        captions = [caption, *numbered] if caption is not None else numbered
        if names.caption is not None:
            captions = [names.caption]
        for found, flag, wanted in (
            (image, "--image-column", IMAGE_COLUMNS),
            (captions, "--caption-column", CAPTION_COLUMNS),
        ):
            if not found and known:
                raise CaptionerError(
                    f"{path} has the columns {_listed(known)}; none is called {abbreviate(wanted, 4)}: "
                    f"name it with {flag}"
                )
        return cls(image or IMAGE_COLUMNS[0], tuple(captions) or CAPTION_COLUMNS[:1], first(SPLIT_COLUMNS))

    def row(self, where: str, cells: Mapping[str, Any]) -> Row:
        if PROBLEM in cells:
            return Row(where=where, problem=cells[PROBLEM])
        try:
            captions = tuple(self.captions_of(cells))
            image, split = _image(cells.get(self.image)), cells.get(self.split or "")
            if not image or not captions:
                return Row(where=where, problem="a row needs image and caption")
            if split is not None and not isinstance(split, str):
                raise ValueError(f"{self.split} must be text, not {split!r:.60}")
        except ValueError as error:
            return Row(where=where, problem=str(error))
        return Row(where=where, image=image, captions=captions, split=(split or "").strip().lower())

    def captions_of(self, cells: Mapping[str, Any]) -> Iterator[str]:
        """Raises: ValueError."""
        for column in self.captions:
            for text in _texts(cells.get(column), column):
                if text.strip() or len(self.captions) == 1:
                    yield text


def _listed(columns: Sequence[str]) -> str:
    """Names on one line, whatever characters they have."""
    return ", ".join(repr(column)[1:-1] for column in columns)


def captions_in(fields: Mapping[str, Any], where: str) -> tuple[str, ...]:
    """The captions among the fields of an object, by their names. Raises: CaptionerError, ValueError."""
    columns = Columns.find([IMAGE_COLUMNS[0], *fields], Path(where), ColumnNames())
    return tuple(columns.captions_of(fields))


def _texts(value: Any, column: str) -> Iterator[str]:
    """The captions in a value: a text, or a list of texts or of objects with one. Raises: ValueError."""
    if isinstance(value, str) and value.startswith("["):  # a list that was written into a cell
        with suppress(ValueError, RecursionError):
            value = json.loads(value)
    for one in value if isinstance(value, list | tuple) else [value]:
        if isinstance(one, Mapping):
            one = next((one[name] for name in CAPTION_COLUMNS if name in one), one)
        if one is not None and not isinstance(one, str):
            raise ValueError(f"{column} must be text, not {one!r:.60}")
        if one is not None:
            yield one


def _image(value: Any) -> str | ParquetCell | None:
    """Raises: ValueError."""
    if isinstance(value, Mapping):  # Hugging Face's feature
        value = value.get("path")
    if value is not None and not isinstance(value, str | ParquetCell):
        raise ValueError(f"image must be text, not {value!r:.60}")
    return value.strip() if isinstance(value, str) else value

"""Rows of captions in the files that people have.

.jsonl .ndjson   an object per line
.json            an array of objects, or an object of captions by picture
.csv .tsv .txt   columns with a header, separated by comma, semicolon, tab or bar, as UTF-8, UTF-16 or
                 Windows-1252
.parquet         columns; pictures by path, or inside, as in Hugging Face's data sets
"""

import csv
import io
import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from captioner.errors import abbreviate
from captioner.images.formats import has_picture_suffix
from captioner.images.sources import ParquetCell, parquet_file

from . import CaptionerError, decode_text, log_once
from .columns import CAPTION_COLUMNS, IMAGE_COLUMNS, PROBLEM, ColumnNames, Columns, Row, plain_name

TABLE_SUFFIXES = (".jsonl", ".ndjson", ".json", ".csv", ".tsv", ".txt", ".parquet")
_DELIMITERS = {",": "commas", ";": "semicolons", "\t": "tabs", "|": "bars"}

_Cells = tuple[str, Mapping[str, Any]]
"""Where a row is, and its values by column."""


def read_rows(path: Path, names: ColumnNames) -> Iterator[Row]:
    """The rows of a file. A row that is not valid says why.

    Raises:
        CaptionerError: the file is missing, damaged or in none of the formats, or has no columns for pictures
            and captions.
    """
    suffix = path.suffix.lower()
    if suffix not in TABLE_SUFFIXES:
        raise CaptionerError(
            f"{path} must end in {', '.join(TABLE_SUFFIXES)}, or be a folder or a tar archive"
        )
    if suffix == ".parquet":
        kind, rows = "Parquet", _parquet_rows(path, names)
    elif suffix in (".csv", ".tsv", ".txt"):
        kind, rows = _delimited_rows(path, names)
    else:
        kind, rows = _json_rows(path)
    known = dict.fromkeys(column for _, cells in rows for column in cells if column != PROBLEM)
    if not rows:
        raise CaptionerError(f"{path} has no rows")
    columns = Columns.find(list(known), path, names)
    log_once(f"{path}: {kind}; pictures in {columns.image}, captions in {abbreviate(columns.captions)}")
    return (columns.row(where, cells) for where, cells in rows)


def _read_text(path: Path) -> tuple[str, str]:
    """The text of a file, and its encoding unless that is UTF-8. Raises: CaptionerError."""
    try:
        return decode_text(path.read_bytes(), where=path)
    except FileNotFoundError:
        raise CaptionerError(f"{path} is missing; see --captions") from None
    except OSError as error:
        raise CaptionerError(f"cannot read {path}: {error}") from None


def _delimited_rows(path: Path, names: ColumnNames) -> tuple[str, list[_Cells]]:
    text, encoding = _read_text(path)
    lines = text.splitlines(keepends=True)
    first = next((number for number, line in enumerate(lines) if not _is_preamble(line)), len(lines))
    header = "".join(lines[first : first + 1])

    def fitness(delimiter: str) -> tuple[bool, int]:
        cells = [cell.strip() for cell in next(csv.reader([header], delimiter=delimiter), [])]
        try:
            Columns.find(cells, path, names)
        except CaptionerError:
            return False, len(cells)
        return True, len(cells)

    delimiter = max(_DELIMITERS, key=fitness)
    try:
        rows = _parse(path, lines, first, delimiter, csv.QUOTE_MINIMAL)
    except csv.Error:  # a quote that is part of a caption
        try:
            rows = _parse(path, lines, first, delimiter, csv.QUOTE_NONE)
        except csv.Error as error:
            raise CaptionerError(f"cannot read {path}: {error}") from None
    return f"columns separated by {_DELIMITERS[delimiter]}{encoding}", rows


def _is_preamble(line: str) -> bool:
    """A line before the header: a blank one, or Excel's sep=;"""
    return not line.strip() or line.lower().startswith("sep=")


def _parse(
    path: Path, lines: Sequence[str], first: int, delimiter: str, quoting: Literal[0, 3]
) -> list[_Cells]:
    """Raises: csv.Error, also if a quoted cell contains other rows."""
    text = io.StringIO("".join(lines[first:]), newline="")
    reader = csv.reader(
        text, delimiter=delimiter, skipinitialspace=True, quoting=quoting, strict=quoting == csv.QUOTE_MINIMAL
    )
    header = _distinct(next(reader, []))
    rows: list[_Cells] = []
    for cells in reader:
        where = f"{path}:{first + reader.line_num}"
        if not any(cells):
            continue
        if any(_is_row(line, delimiter) for cell in cells for line in cell.splitlines()[1:]):
            raise csv.Error(f"a quoted cell before line {first + reader.line_num} contains other rows")
        if any(cells[len(header) :]):
            unquoted = f"more cells than columns; quote captions that contain {_DELIMITERS[delimiter]}"
            rows.append((where, {PROBLEM: unquoted}))
        else:
            padded = [*cells, *[None] * len(header)]
            rows.append((where, dict(zip(header, padded, strict=False))))
    return rows


def _is_row(line: str, delimiter: str) -> bool:
    """Whether a line inside a quoted cell looks like a row that a quote has swallowed."""
    cells = [cell.strip(' "') for cell in line.split(delimiter)]
    return len(cells) > 1 and any(map(has_picture_suffix, cells))


def _distinct(header: Sequence[str]) -> list[str]:
    """The names of columns; of two that are called caption, the second is caption_2."""
    names: list[str] = []
    for name in map(str.strip, header):
        number, unique = 1, name
        while unique in names:
            number += 1
            unique = f"{name}_{number}"
        names.append(unique)
    return names


def _json_rows(path: Path) -> tuple[str, list[_Cells]]:
    text, encoding = _read_text(path)
    if path.suffix.lower() == ".json":
        try:
            content = json.loads(text)
        except (ValueError, RecursionError) as error:
            if "Extra data" not in str(error):  # that of a second line
                raise CaptionerError(f"{path}: not JSON ({error})") from None
        else:
            return f"JSON{encoding}", list(_entries(path, content))
    lines = (
        (f"{path}:{number}", line) for number, line in enumerate(text.split("\n"), start=1) if line.strip()
    )
    return f"JSON lines{encoding}", [(where, _object(line)) for where, line in lines]


def _entries(path: Path, content: Any) -> Iterator[_Cells]:
    """The rows of a JSON file. Raises: CaptionerError."""
    if isinstance(content, dict) and {"images", "annotations"} <= content.keys():
        raise CaptionerError(f"{path} has COCO's format; read it with the format coco; see docs/data.md")
    if isinstance(content, dict):
        for name, captions in content.items():
            yield f"{path}, {name}", {IMAGE_COLUMNS[0]: name, CAPTION_COLUMNS[0]: captions}
        return
    if not isinstance(content, list):
        raise CaptionerError(f"{path} must be an array of objects with image and caption")
    for number, entry in enumerate(content, start=1):
        if not isinstance(entry, dict):
            entry = {PROBLEM: f"expected an object, not {entry!r:.60}"}
        yield f"{path}, entry {number}", entry


def _object(line: str) -> dict[str, Any]:
    try:
        row = json.loads(line)
    except (ValueError, RecursionError) as error:
        return {PROBLEM: f"not JSON ({error})"}
    if not isinstance(row, dict):
        return {PROBLEM: f"expected an object with image and caption, not {line.strip()[:60]}"}
    return row


def _parquet_rows(path: Path, names: ColumnNames) -> list[_Cells]:
    """The rows of a Parquet file. Pictures that are inside stay there."""
    rows: list[_Cells] = []
    with parquet_file(path) as file:
        inside = _columns_with_bytes(file.schema_arrow, names.image)
        others = [name for name in file.schema_arrow.names if name not in inside]
        for group in range(file.num_row_groups):
            cells_of = file.read_row_group(group, columns=others).to_pylist()
            num_rows = file.metadata.row_group(group).num_rows
            for number, cells in enumerate(cells_of or [{}] * num_rows):
                pictures = {name: ParquetCell(path, group, number, name) for name in inside}
                rows.append((f"{path}#{len(rows)}", cells | pictures))
    return rows


def _columns_with_bytes(schema: Any, chosen: str | None) -> list[str]:
    """Columns of pictures as bytes, or as structs with the field bytes. The user may have `chosen` one."""
    import pyarrow as pa

    def is_inside(name: str) -> bool:
        kind = schema.field(name).type
        if pa.types.is_struct(kind):
            return kind.get_field_index("bytes") >= 0
        is_picture = name == chosen or plain_name(name) in IMAGE_COLUMNS
        return is_picture and (pa.types.is_binary(kind) or pa.types.is_large_binary(kind))

    return [name for name in schema.names if is_inside(name)]

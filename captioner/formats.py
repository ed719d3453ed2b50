"""Formats of files of captions: lines of text, JSON or CSV."""

import csv
import io
import json
import re
import unicodedata
from typing import Literal

from captioner.caption import Caption

OutputFormat = Literal["text", "jsonl", "csv", "exiftool"]

FORMAT_OF: dict[str, OutputFormat] = {".jsonl": "jsonl", ".ndjson": "jsonl", ".csv": "csv"}
"""The format of an output file by its suffix; other files are text."""

CSV_HEADERS: dict[OutputFormat, tuple[str, ...]] = {
    "csv": ("file", "caption", "log_prob"),
    "exiftool": ("SourceFile", "XMP-dc:Description"),
}
"""The columns of the formats that are CSV. exiftool writes those of the second into the pictures."""

_MAX_PATH_BYTES = 4096  # in Linux
_NAMED_ESCAPES = {"\t": "\\t", "\n": "\\n", "\r": "\\r"}
_NAMED_CHARACTERS = {"\\\\": "\\"} | {escape: character for character, escape in _NAMED_ESCAPES.items()}
_INVISIBLE = ("Cc", "Zl", "Zp")  # Unicode categories: control characters, line and paragraph separators
_BIDI = frozenset("\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069")  # can reorder a terminal's text


def escape_controls(text: str) -> str:
    """Text for one line of a terminal: control characters become \\t, \\n, \\r, \\x1b and the like."""
    return "".join(_escaped(character) if _is_control(character) else character for character in text)


def escape_name(text: str) -> str:
    """As `escape_controls`, with backslashes doubled, so that different names stay different."""
    return escape_controls(text.replace("\\", "\\\\"))


def unescape_name(name: str) -> str:
    """The reverse of `escape_name`."""
    return re.sub(r"\\(\\|t|n|r|x[0-9a-f]{2}|u[0-9a-f]{4})", _unescaped, name)


def _is_control(character: str) -> bool:
    return unicodedata.category(character) in _INVISIBLE or character in _BIDI


def _escaped(character: str) -> str:
    code = ord(character)
    return _NAMED_ESCAPES.get(character, f"\\x{code:02x}" if code < 256 else f"\\u{code:04x}")


def _unescaped(match: re.Match[str]) -> str:
    return _NAMED_CHARACTERS.get(match[0]) or chr(int(match[1][1:], 16))


def format_caption(caption: Caption, output_format: OutputFormat, *, with_attention: bool) -> str:
    """A line, its end included. Text and CSV have another line for each alternative, with log-probabilities;
    JSON has them in the same line, and only JSON can contain the attention."""
    captions = (caption, *caption.alternatives)
    file = format_name(caption.file, output_format)
    if output_format == "text":
        if not caption.alternatives:
            return f"{file}\t{escape_controls(caption.text)}\n"
        return "".join(f"{file}\t{escape_controls(one.text)}\t{one.log_prob:.4f}\n" for one in captions)
    if output_format == "csv":
        return "".join(
            csv_line((file, _defuse_formula(escape_controls(one.text)), f"{one.log_prob:.4f}"))
            for one in captions
        )
    if output_format == "exiftool":  # text as it is to be stored, of which a picture has one
        return csv_line((file, escape_controls(caption.text)))
    return json.dumps(caption.as_json(with_attention=with_attention)) + "\n"


def format_name(file: str, output_format: OutputFormat) -> str:
    """A picture's name as it appears in a line. exiftool must find the file by it."""
    if output_format == "jsonl" or (output_format == "exiftool" and not {"\n", "\r"} & set(file)):
        return file
    return _defuse_formula(escape_name(file)) if output_format == "csv" else escape_name(file)


def _defuse_formula(cell: str) -> str:
    """Prefix with an apostrophe, as is usual, text that a spreadsheet would take for a formula, and text that
    starts with an apostrophe, so that different names stay different."""
    return f"'{cell}" if cell.startswith(("=", "+", "-", "@", "'")) else cell


def undo_defusing(cell: str) -> str:
    """The reverse of `_defuse_formula`."""
    return cell.removeprefix("'")


def may_start(line: bytes, output_format: OutputFormat) -> bool:
    """Whether an incomplete first line of a file may be in this format."""
    if output_format == "text":
        return len(line) < _MAX_PATH_BYTES
    header = CSV_HEADERS.get(output_format)
    start = b'{"file": "' if header is None else csv_line(header).encode()
    return line.startswith(start) or start.startswith(line)


def name_in(line: str, output_format: OutputFormat) -> str:
    """The picture's name in a line, as `format_name` gives it.

    Raises: ValueError, LookupError, TypeError, if the line does not have this format.
    """
    if output_format == "jsonl":
        return str(json.loads(line)["file"])
    cells = line.rstrip("\n").split("\t") if output_format == "text" else next(csv.reader([line]))
    if len(cells) < 2:
        raise ValueError("it has no caption")
    return cells[0]


def csv_line(cells: tuple[str, ...]) -> str:
    line = io.StringIO()
    csv.writer(line, lineterminator="\n").writerow(cells)
    return line.getvalue()

"""How captions are written as lines of text, JSON or CSV."""

import csv
import io
import json
import sys
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np

from captioner.captions import Caption
from captioner.config import OutputFormat
from captioner.errors import CaptionerError
from captioner.paths import on_one_line

_LONGEST_PATH = 4096  # bytes, in Linux
CSV_HEADER = ("file", "caption", "log_prob")


class OutputError(CaptionerError):
    """A place that cannot be written to."""


class CaptionWriter:
    """Writes captions to a file or to standard output; names that are not UTF-8 keep their bytes.

    Each caption is handed over as it comes, so that what a killed process leaves is whole lines. With
    `is_resumed` it goes on after the captions that the file holds.

    Raises:
        OutputError: the place cannot be opened or written to, or what it holds is of another format.
        BrokenPipeError: who reads standard output has gone.
    """

    def __init__(
        self,
        output: Path | None,
        output_format: OutputFormat,
        *,
        with_attention: bool,
        is_resumed: bool = False,
    ) -> None:
        self.output, self.format, self.with_attention = output, output_format, with_attention
        self._done: frozenset[str] = frozenset()
        if output is None:
            if isinstance(sys.stdout, io.TextIOWrapper):
                sys.stdout.reconfigure(encoding="utf-8", errors="surrogateescape", newline="\n")
            self.stream = sys.stdout
        else:
            try:
                mode = "w"
                if is_resumed and output.exists():
                    mode, self._done = "a", _cut_to_whole(output, output_format)
                self.stream = output.open(mode, encoding="utf-8", errors="surrogateescape", newline="")
            except OSError as error:
                raise self._error(error) from error

    def __enter__(self) -> "CaptionWriter":
        if self.format == "csv" and not (self.output and self.output.stat().st_size):
            self._write(_csv_line(CSV_HEADER))
        return self

    def is_done(self, file: str) -> bool:
        """Whether the file that is gone on with had a caption of this picture."""
        return _name(file, self.format) in self._done

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            if self.output is not None:
                self.stream.close()
        except OSError as closing:
            raise self._error(closing) from closing

    def write(self, caption: Caption) -> None:
        self._write(format_caption(caption, self.format, with_attention=self.with_attention))

    def _write(self, text: str) -> None:
        try:
            self.stream.write(text)
            self.stream.flush()
        except BrokenPipeError:
            raise
        except OSError as error:
            raise self._error(error) from error

    def _error(self, error: OSError) -> OutputError:
        return OutputError(f"cannot write {self.output or 'standard output'}: {error.strerror or error}")


def format_caption(caption: Caption, output_format: OutputFormat, *, with_attention: bool) -> str:
    """A line, its end included. Text and CSV have a line more for each alternative, with log-probabilities;
    JSON has them in the one line, and only JSON can hold the attention."""
    captions = (caption, *caption.alternatives)
    file = _name(caption.file, output_format)
    if output_format == "text":
        if not caption.alternatives:
            return f"{file}\t{on_one_line(caption.text)}\n"
        return "".join(f"{file}\t{on_one_line(one.text)}\t{one.log_prob:.4f}\n" for one in captions)
    if output_format == "csv":
        return "".join(
            _csv_line((file, _harmless(on_one_line(one.text)), f"{one.log_prob:.4f}")) for one in captions
        )
    return json.dumps(caption_as_json(caption, with_attention=with_attention)) + "\n"


def caption_as_json(caption: Caption, *, with_attention: bool) -> dict[str, Any]:
    """All that there is to say of a caption, under the names that JSON lines have."""
    grid = [caption.grid.rows, caption.grid.cols]
    row = {"file": caption.file, **_as_json(caption), "grid": grid}
    if with_attention:
        row |= _attention_as_json(caption)
    if caption.alternatives:
        row["alternatives"] = [
            _as_json(one) | (_attention_as_json(one) if with_attention else {})
            for one in caption.alternatives
        ]
    return row


def _as_json(caption: Caption) -> dict[str, Any]:
    return {"caption": caption.text, "tokens": caption.tokens, "log_prob": round(caption.log_prob, 4)}


def _attention_as_json(caption: Caption) -> dict[str, Any]:
    return {"alphas": np.round(caption.alphas.astype(np.float64), 6).tolist()}


def _name(file: str, output_format: OutputFormat) -> str:
    """A picture's name as a line of the output has it."""
    if output_format == "jsonl":
        return file
    return _harmless(on_one_line(file)) if output_format == "csv" else on_one_line(file)


def _harmless(cell: str) -> str:
    """Text that a spreadsheet does not take for a formula: as is usual, it then begins with an apostrophe."""
    return f"'{cell}" if cell.startswith(("=", "+", "-", "@")) else cell


def _cut_to_whole(output: Path, output_format: OutputFormat) -> frozenset[str]:
    """The names of the pictures that a file has captions of; cuts off a line that is not whole.

    Raises: OSError; OutputError, where the file is of another format.
    """
    names = set()
    end = 0
    with output.open("r+b") as file:
        for number, line in enumerate(file):
            if not line.endswith(b"\n"):
                if number == 0 and not _may_begin(line, output_format):
                    raise OutputError(f"{output} is no {output_format} of ours; give another --output")
                break
            end += len(line)
            if number == 0 and output_format == "csv":
                if line != _csv_line(CSV_HEADER).encode():
                    raise OutputError(f"{output} is no csv of ours; give another --output")
                continue
            try:
                names.add(_name_in(line.decode(errors="surrogateescape"), output_format))
            except (ValueError, LookupError, TypeError, RecursionError, csv.Error) as error:
                raise OutputError(
                    f"line {number + 1} of {output} is no {output_format} of ours; give another --output"
                ) from error
        file.truncate(end)
    return frozenset(names)


def _may_begin(part: bytes, output_format: OutputFormat) -> bool:
    """Whether a file of a part of a line may be what was left of ours."""
    if output_format == "text":
        return len(part) < _LONGEST_PATH
    begin = _csv_line(CSV_HEADER).encode() if output_format == "csv" else b'{"file": "'
    return part.startswith(begin) or begin.startswith(part)


def _name_in(line: str, output_format: OutputFormat) -> str:
    """Raises: ValueError, LookupError, TypeError, where that is no line of ours."""
    if output_format == "jsonl":
        return str(json.loads(line)["file"])
    cells = line.rstrip("\n").split("\t") if output_format == "text" else next(csv.reader([line]))
    if len(cells) < 2:
        raise ValueError("has no caption")
    return cells[0]


def _csv_line(cells: tuple[str, ...]) -> str:
    line = io.StringIO()
    csv.writer(line, lineterminator="\n").writerow(cells)
    return line.getvalue()

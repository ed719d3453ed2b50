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

CSV_HEADER = ("file", "caption", "log_prob")


class OutputError(CaptionerError):
    """A place that cannot be written to."""


class CaptionWriter:
    """Writes captions to a file or to standard output; names that are not UTF-8 keep their bytes.

    Raises:
        OutputError: the place cannot be opened or written to.
        BrokenPipeError: who reads standard output has gone.
    """

    def __init__(self, output: Path | None, output_format: OutputFormat, *, with_attention: bool) -> None:
        self.output, self.format, self.with_attention = output, output_format, with_attention
        if output is None:
            if isinstance(sys.stdout, io.TextIOWrapper):
                sys.stdout.reconfigure(encoding="utf-8", errors="surrogateescape", newline="\n")
            self.stream = sys.stdout
        else:
            try:
                self.stream = output.open("w", encoding="utf-8", errors="surrogateescape", newline="")
            except OSError as error:
                raise self._error(error) from error

    def __enter__(self) -> "CaptionWriter":
        if self.format == "csv":
            self._write(_csv_line(CSV_HEADER))
        return self

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

    def flush(self) -> None:
        self._write("", is_flushed=True)

    def _write(self, text: str, *, is_flushed: bool = False) -> None:
        try:
            self.stream.write(text)
            if is_flushed:
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
    if output_format == "text":
        file = on_one_line(caption.file)
        if not caption.alternatives:
            return f"{file}\t{caption.text}\n"
        return "".join(f"{file}\t{one.text}\t{one.log_prob:.4f}\n" for one in captions)
    if output_format == "csv":
        return "".join(_csv_line((one.file, one.text, f"{one.log_prob:.4f}")) for one in captions)
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


def _csv_line(cells: tuple[str, ...]) -> str:
    line = io.StringIO()
    csv.writer(line, lineterminator="\n").writerow(cells)
    return line.getvalue()

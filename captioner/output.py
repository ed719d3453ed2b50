"""How a caption is written as a line of text, JSON or CSV."""

import csv
import io
import json
from typing import Literal

import numpy as np

from captioner.inference import Caption

OutputFormat = Literal["text", "jsonl", "csv"]

CSV_HEADER = ("file", "caption", "log_prob")

# A name with one of these in it would break a line or a column of the text format.
_ESCAPES = str.maketrans({"\t": "\\t", "\n": "\\n", "\r": "\\r"})


def header(output_format: OutputFormat) -> str:
    """What stands before the first caption."""
    return _csv_line(CSV_HEADER) if output_format == "csv" else ""


def format_caption(caption: Caption, output_format: OutputFormat, *, with_attention: bool) -> str:
    """One line, its end included. Only JSON can hold the attention."""
    if output_format == "text":
        return f"{caption.file.translate(_ESCAPES)}\t{caption.text}\n"
    if output_format == "csv":
        return _csv_line((caption.file, caption.text, f"{caption.log_prob:.4f}"))
    row = {
        "file": caption.file,
        "caption": caption.text,
        "tokens": caption.tokens,
        "log_prob": round(caption.log_prob, 4),
        "grid": [caption.grid.rows, caption.grid.cols],
    }
    if with_attention:
        row["alphas"] = np.round(caption.alphas.astype(np.float64), 6).tolist()
    return json.dumps(row) + "\n"


def _csv_line(cells: tuple[str, ...]) -> str:
    line = io.StringIO()
    csv.writer(line, lineterminator="\n").writerow(cells)
    return line.getvalue()

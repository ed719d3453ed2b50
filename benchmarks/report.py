"""What every benchmark does with its figures: a table of medians to read, and all of them as JSON."""

import json
import statistics
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

Figures = Mapping[str, Sequence[float]]
"""By what was measured, one figure for each repeat."""


def table(title: str, rows: Figures) -> str:
    """Markdown: the median, the least and the most of each row."""
    lines = [f"\n{title}\n", "| | median | least | most |", "|---|---:|---:|---:|"]
    for name, values in rows.items():
        figures = (statistics.median(values), min(values), max(values))
        lines.append(f"| {name} | {' | '.join(f'{figure:,.2f}' for figure in figures)} |")
    return "\n".join(lines) + "\n"


def report(measured: Mapping[str, Figures], json_out: Path | None) -> None:
    """Print one table each, and write all figures where that is wanted."""
    for title, rows in measured.items():
        sys.stdout.write(table(title, rows))
    if json_out is not None:
        json_out.write_text(json.dumps(measured, indent=1) + "\n")


def write_between(page: Path, first_mark: str, last_mark: str, text: str) -> None:
    """Put Markdown between two marks of a page, in place of what stood there. Raises: ValueError, if it lacks
    them."""
    before, first, rest = page.read_text().partition(first_mark)
    _, last, after = rest.partition(last_mark)
    if not (first and last):
        raise ValueError(f"{page} lacks the marks {first_mark} and {last_mark}")
    page.write_text(f"{before}{first}\n\n{text}\n{last}{after}")

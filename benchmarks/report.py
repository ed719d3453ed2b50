"""Reports of measurements: tables of medians, JSON files, sections of pages."""

import json
import statistics
import sys
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

Measurements = Mapping[str, Sequence[float]]
"""By what was measured, one value for each repeat."""


def table(title: str, rows: Measurements) -> str:
    """Markdown with the median, minimum and maximum of each row."""
    summary = {name: (statistics.median(values), min(values), max(values)) for name, values in rows.items()}
    cells = ([name, *(f"{value:,.2f}" for value in values)] for name, values in summary.items())
    return f"\n{title}\n\n{markdown(['', 'median', 'minimum', 'maximum'], cells)}"


def markdown(head: Sequence[str], rows: Iterable[Sequence[str]], *, num_names: int = 1) -> str:
    """A Markdown table; the columns after the first `num_names` contain numbers and are right-aligned."""
    lines = [
        f"|{'|'.join(f' {name} ' if name else ' ' for name in head)}|",
        "|" + "---|" * num_names + "---:|" * (len(head) - num_names),
        *(f"| {' | '.join(cells)} |" for cells in rows),
    ]
    return "\n".join(lines) + "\n"


def report(measured: Mapping[str, Measurements], json_out: Path | None) -> None:
    """Print a table for each group of measurements, and write all values to a file if one is given."""
    for title, rows in measured.items():
        sys.stdout.write(table(title, rows))
    if json_out is not None:
        json_out.write_text(json.dumps(measured, indent=1) + "\n")


def write_between(page: Path, begin_marker: str, end_marker: str, text: str) -> None:
    """Replace what a page has between two markers with Markdown.

    Raises:
        ValueError: the page does not contain the markers.
    """
    before, begin, rest = page.read_text().partition(begin_marker)
    _, end, after = rest.partition(end_marker)
    if not (begin and end):
        raise ValueError(f"{page} does not contain the markers {begin_marker} and {end_marker}")
    page.write_text(f"{before}{begin}\n\n{text}\n{end}{after}")

"""What every benchmark does with its figures: a table of medians to read, and all of them as JSON."""

import json
import statistics
import sys
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

Figures = Mapping[str, Sequence[float]]
"""By what was measured, one figure for each repeat."""


def table(title: str, rows: Figures) -> str:
    """Markdown: the median, the least and the most of each row."""
    figures = {name: (statistics.median(values), min(values), max(values)) for name, values in rows.items()}
    cells = ([name, *(f"{figure:,.2f}" for figure in found)] for name, found in figures.items())
    return f"\n{title}\n\n{markdown(['', 'median', 'least', 'most'], cells)}"


def markdown(head: Sequence[str], rows: Iterable[Sequence[str]], *, num_names: int = 1) -> str:
    """A Markdown table; after the first `num_names` columns it holds figures, which stand to the right."""
    lines = [
        f"|{'|'.join(f' {name} ' if name else ' ' for name in head)}|",
        "|" + "---|" * num_names + "---:|" * (len(head) - num_names),
        *(f"| {' | '.join(cells)} |" for cells in rows),
    ]
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

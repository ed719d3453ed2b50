"""How time and memory grow with the number of pictures.

    python benchmarks/growth.py --images train2017

`caption.py FOLDER --output FILE` over folders of 1,000, 10,000 and 100,000 links to the given pictures: until
the first line is written, in all, and the most memory that the process took.
"""

import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import tyro

sys.path.insert(0, str(Path(__file__).parent.parent))

from benchmarks.report import report

ROOT = Path(__file__).parent.parent


def caption_links(pictures: list[Path], count: int, extra: list[str]) -> dict[str, float]:
    """Figures of one run over so many links."""
    with tempfile.TemporaryDirectory() as folder:
        links, output = Path(folder) / "links", Path(folder) / "captions.tsv"
        links.mkdir()
        for number in range(count):
            (links / f"{number:07}.jpg").symlink_to(pictures[number % len(pictures)])
        command = [sys.executable, "caption.py", str(links), "--output", str(output), *extra]
        started, first_s = time.perf_counter(), None
        with subprocess.Popen(command, cwd=ROOT, stderr=subprocess.DEVNULL) as process:
            while process.poll() is None:
                if first_s is None and output.exists() and output.stat().st_size:
                    first_s = time.perf_counter() - started
                time.sleep(0.02)
        in_all_s = time.perf_counter() - started
        lines = output.read_text().splitlines()
    if process.returncode or len(lines) != count or first_s is None:
        sys.exit(f"growth.py: caption.py ended with {process.returncode} after {len(lines):,} lines")
    return {
        "first line, s": first_s,
        "in all, s": in_all_s,
        "pictures a second": count / in_all_s,
        # The largest of all children so far: runs are in ascending order.
        "most memory, MB": resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 2**10,
    }


def main(
    *,
    images: Path,
    counts: tuple[int, ...] = (1_000, 10_000, 100_000),
    options: str = "--beam-size 3 --batch-size 32",
    json_out: Path | None = None,
) -> None:
    """Measure and print one table each.

    Args:
        images: Folder of JPEGs.
        counts: Numbers of pictures.
        options: More options for caption.py.
        json_out: Write all figures to this file too.
    """
    pictures = sorted(path.resolve() for path in images.glob("*.jpg"))
    if not pictures:
        sys.exit(f"growth.py: {images} holds no JPEGs")
    measured = {
        f"{count:,} pictures": {
            name: [value] for name, value in caption_links(pictures, count, options.split()).items()
        }
        for count in sorted(counts)
    }
    report(measured, json_out)


if __name__ == "__main__":
    tyro.cli(main)

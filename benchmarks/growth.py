"""Time and memory of captioning by the number of pictures.

    python benchmarks/growth.py --images train2017

Runs `caption.py FOLDER --output FILE` on folders of 1,000, 10,000 and 100,000 links to the given pictures.
Measures the time to the first line, the total time, and the peak memory of the process.
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
    """The measurements of one run over `count` links."""
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
        total_s = time.perf_counter() - started
        lines = output.read_text().splitlines()
    if process.returncode or len(lines) != count or first_s is None:
        sys.exit(f"growth.py: caption.py exited with status {process.returncode} after {len(lines):,} lines")
    return {
        "time to first line, s": first_s,
        "total time, s": total_s,
        "pictures per second": count / total_s,
        # That of the largest child process so far, which is this one: runs are in ascending order.
        "peak memory, MB": resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 2**10,
    }


def main(
    *,
    images: Path,
    counts: tuple[int, ...] = (1_000, 10_000, 100_000),
    options: str = "--beam-size 3 --batch-size 32",
    json_out: Path | None = None,
) -> None:
    """Measure, and print a table for each number of pictures.

    Args:
        images: Folder of JPEGs.
        counts: Numbers of pictures.
        options: Further options of caption.py.
        json_out: Also write all values to this file.
    """
    pictures = sorted(path.resolve() for path in images.glob("*.jpg"))
    if not pictures:
        sys.exit(f"growth.py: {images} contains no JPEGs")
    measured = {
        f"{count:,} pictures": {
            name: [value] for name, value in caption_links(pictures, count, options.split()).items()
        }
        for count in sorted(counts)
    }
    report(measured, json_out)


if __name__ == "__main__":
    tyro.cli(main)

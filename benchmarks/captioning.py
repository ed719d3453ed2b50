"""How fast pictures are captioned: from JPEGs to text, beside what that cannot do without.

    python benchmarks/captioning.py --images train2017

For each backend and batch size: pictures a second from file to caption with a beam of 3; by the encoder
alone, on pictures that are ready (the floor); and JPEG decoding alone. Then how long the command takes for
one picture, as a whole process, beside `python -c "import torch"`. What is compared takes turns. Figures are
medians, with the least and the most.
"""

import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import tyro

sys.path.insert(0, str(Path(__file__).parent.parent))

from captioner.config import BackendName
from captioner.inference import Captioner
from captioner.loading import batches, loaded_batches

ROOT = Path(__file__).parent.parent
BATCH_SIZES = (1, 8, 32)
BACKENDS: tuple[BackendName, ...] = ("onnx", "torch")
BEAM_SIZE = 3

Figures = dict[str, list[float]]


def tasks(captioner: Captioner, paths: list[Path], batch_size: int) -> dict[str, Callable[[], None]]:
    """What is timed, each over all the pictures."""
    decoding = replace(captioner.config.decoding, beam_size=BEAM_SIZE)
    ready = [
        np.stack([captioner.preprocess.load(path) for path in batch]) for batch in batches(paths, batch_size)
    ]

    def decode() -> None:
        for _ in loaded_batches(paths, captioner.preprocess.load, batch_size=batch_size):
            pass

    def encode() -> None:
        for images in ready:
            captioner.backend.encode(images)

    def caption() -> None:
        for _ in captioner.caption_files(paths, batch_size=batch_size, decoding=decoding):
            pass

    return {"file to caption": caption, "encoder alone": encode, "JPEG decoding alone": decode}


def captioning_rows(paths: list[Path], repeats: int, threads: int | None) -> Figures:
    """Pictures a second, by backend, batch size and task."""
    rows: Figures = {}
    for batch_size in BATCH_SIZES:
        for backend in BACKENDS:
            captioner = Captioner.load(backend=backend, device="cpu", threads=threads)
            timed = tasks(captioner, paths, batch_size)
            for task in timed.values():
                task()  # warm up
            for _ in range(repeats):
                for name, task in timed.items():
                    started = time.perf_counter()
                    task()
                    rate = len(paths) / (time.perf_counter() - started)
                    rows.setdefault(f"{backend}, batch of {batch_size}: {name}", []).append(rate)
    return rows


def start_rows(picture: Path, repeats: int) -> Figures:
    """Seconds of whole processes."""
    commands = {
        "caption.py, onnx": ["caption.py", str(picture), "--backend", "onnx"],
        "caption.py, torch": ["caption.py", str(picture), "--backend", "torch"],
        "import torch": ["-c", "import torch"],
    }
    rows: Figures = {}
    for _ in range(repeats):
        for name, command in commands.items():
            started = time.perf_counter()
            subprocess.run([sys.executable, *command], cwd=ROOT, check=True, capture_output=True)
            rows.setdefault(name, []).append(time.perf_counter() - started)
    return rows


def table(title: str, rows: Figures) -> str:
    """Markdown, with medians first."""
    return "\n".join(_lines(title, rows))


def _lines(title: str, rows: Figures) -> Iterator[str]:
    yield from (f"\n{title}", "", "| | median | least | most |", "|---|---:|---:|---:|")
    for name, values in rows.items():
        cells = (f"{figure:.2f}" for figure in (statistics.median(values), min(values), max(values)))
        yield f"| {name} | {' | '.join(cells)} |"


def main(
    *,
    images: Path,
    num_pictures: int = 160,
    repeats: int = 5,
    threads: int | None = None,
    json_out: Path | None = None,
) -> None:
    """Measure and print one table each.

    Args:
        images: Folder of JPEGs.
        num_pictures: So many are captioned each time; the folder's are repeated.
        repeats: How often each figure is taken.
        threads: CPU threads of the model, by default one a core.
        json_out: Write all figures to this file too.
    """
    found = sorted(images.glob("*.jpg"))
    if not found:
        sys.exit(f"captioning.py: {images} holds no JPEGs")
    paths = (found * (num_pictures // len(found) + 1))[:num_pictures]
    measured = {
        "pictures a second": captioning_rows(paths, repeats, threads),
        "seconds of a whole process": start_rows(found[0].absolute(), repeats),
    }
    for title, rows in measured.items():
        sys.stdout.write(table(title, rows) + "\n")
    if json_out is not None:
        json_out.write_text(json.dumps(measured, indent=1) + "\n")


if __name__ == "__main__":
    tyro.cli(main)

"""How fast pictures are captioned: from JPEGs to text, beside what that cannot do without.

    python benchmarks/captioning.py --images train2017

For each way to run the model and each batch size: pictures a second from file to caption with a beam of 3; by
the encoder alone, on pictures that are ready, as many batches at once as in captioning (the floor); and
JPEG decoding alone. Then how long the command takes for one picture, as a whole process, beside
`python -c "import torch"`. What is compared takes turns. Figures are medians, with the least and the most.
"""

import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import tyro

sys.path.insert(0, str(Path(__file__).parent.parent))

from benchmarks.report import report
from captioner.backends.export import export_model
from captioner.checkpoint.folder import SHIPPED_MODEL
from captioner.images.prefetch import batches, map_in_threads, prefetch_batches
from captioner.inference import Captioner

ROOT = Path(__file__).parent.parent
BATCH_SIZES = (1, 8, 32)
BEAM_SIZE = 3


def tasks(captioner: Captioner, paths: list[Path], batch_size: int) -> dict[str, Callable[[], None]]:
    """What is timed, each over all the pictures."""
    decoding = replace(captioner.config.decoding, beam_size=BEAM_SIZE)
    ready = [
        np.stack([captioner.preprocess.load(path) for path in batch]) for batch in batches(paths, batch_size)
    ]

    def decode() -> None:
        for _ in prefetch_batches(paths, captioner.preprocess.load, batch_size=batch_size):
            pass

    def encode() -> None:
        at_once = captioner.backend.max_concurrent_batches
        for _ in map_in_threads(captioner.backend.encode, ready, num_threads=at_once, ahead=at_once):
            pass

    def caption() -> None:
        for _ in captioner.caption_files(paths, batch_size=batch_size, decoding=decoding):
            pass

    return {"file to caption": caption, "encoder alone": encode, "JPEG decoding alone": decode}


def captioning_rows(ways: dict[str, Captioner], paths: list[Path], repeats: int) -> dict[str, list[float]]:
    """Pictures a second, by way, batch size and task."""
    rows: dict[str, list[float]] = {}
    for batch_size in BATCH_SIZES:
        for way, captioner in ways.items():
            timed = tasks(captioner, paths, batch_size)
            for task in timed.values():
                task()  # warm up
            for _ in range(repeats):
                for name, task in timed.items():
                    started = time.perf_counter()
                    task()
                    rate = len(paths) / (time.perf_counter() - started)
                    rows.setdefault(f"{way}, batch of {batch_size}: {name}", []).append(rate)
    return rows


def start_rows(picture: Path, repeats: int) -> dict[str, list[float]]:
    """Seconds of whole processes."""
    commands = {
        "caption.py, onnx": ["caption.py", str(picture), "--backend", "onnx"],
        "caption.py, torch": ["caption.py", str(picture), "--backend", "torch"],
        "import torch": ["-c", "import torch"],
    }
    rows: dict[str, list[float]] = {}
    for _ in range(repeats):
        for name, command in commands.items():
            started = time.perf_counter()
            subprocess.run([sys.executable, *command], cwd=ROOT, check=True, capture_output=True)
            rows.setdefault(name, []).append(time.perf_counter() - started)
    return rows


def main(
    *,
    images: Path,
    num_pictures: int = 320,
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
    with tempfile.TemporaryDirectory() as folder:
        in_8_bits = Path(folder) / "int8"
        export_model(SHIPPED_MODEL, in_8_bits, int8=True)
        ways = {
            "onnx": Captioner.load(backend="onnx", device="cpu", threads=threads),
            "onnx, int8": Captioner.load(in_8_bits, backend="onnx", device="cpu", threads=threads),
            "torch": Captioner.load(backend="torch", device="cpu", threads=threads),
        }
        measured = {
            "pictures a second": captioning_rows(ways, paths, repeats),
            "seconds of a whole process": start_rows(found[0].absolute(), repeats),
        }
    report(measured, json_out)


if __name__ == "__main__":
    tyro.cli(main)

"""Speed of captioning, compared with its encoder and JPEG decoding alone.

    python benchmarks/captioning.py --images train2017
    python benchmarks/captioning.py --images train2017 --device cuda

For each backend of the device and batch size, pictures per second:

- from file to caption, with a beam size of 3;
- by the encoder alone, on pictures in memory, with as many concurrent batches as in captioning: an upper
  bound;
- by JPEG decoding alone.

Then the duration of the command for one picture, as a whole process, compared with
`python -c "import torch"`. Measurements are interleaved and repeated; the table has their median, minimum and
maximum.
"""

import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import tyro

sys.path.insert(0, str(Path(__file__).parent.parent))

from benchmarks.report import report
from captioner.config import BackendName, Device
from captioner.images.prefetch import batches, map_in_threads, prefetch_batches
from captioner.inference import Captioner

ROOT = Path(__file__).parent.parent
BATCH_SIZES = (1, 8, 32)
BEAM_SIZE = 3
CPU_BACKENDS: tuple[BackendName, ...] = ("openvino", "onnx", "torch")


def tasks(captioner: Captioner, paths: list[Path], batch_size: int) -> dict[str, Callable[[], None]]:
    """The functions that are timed, each over all pictures."""
    options = replace(captioner.config.decoding, beam_size=BEAM_SIZE)
    loaded = [
        np.stack([captioner.preprocess.load(path) for path in batch]) for batch in batches(paths, batch_size)
    ]

    def decode() -> None:
        for _ in prefetch_batches(paths, captioner.preprocess.load, batch_size=batch_size):
            pass

    def encode() -> None:
        concurrent = captioner.backend.max_concurrent_batches
        for _ in map_in_threads(captioner.backend.encode, loaded, num_threads=concurrent, ahead=concurrent):
            pass

    def caption() -> None:
        for _ in captioner.caption_files(paths, batch_size=batch_size, options=options):
            pass

    return {"file to caption": caption, "encoder alone": encode, "JPEG decoding alone": decode}


def captioning_rows(
    captioners: Mapping[BackendName, Captioner], paths: list[Path], repeats: int
) -> dict[str, list[float]]:
    """Pictures per second, by backend, batch size and task."""
    rows: dict[str, list[float]] = {}
    for batch_size in BATCH_SIZES:
        for backend, captioner in captioners.items():
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


def process_rows(picture: Path, backends: Sequence[BackendName], repeats: int) -> dict[str, list[float]]:
    """The duration of whole processes, in seconds."""
    commands = {f"caption.py, {name}": ["caption.py", str(picture), "--backend", name] for name in backends}
    commands["import torch"] = ["-c", "import torch"]
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
    device: Device = "cpu",
    threads: int | None = None,
    json_out: Path | None = None,
) -> None:
    """Measure, and print two tables.

    Args:
        images: Folder of JPEGs.
        num_pictures: Pictures captioned in each measurement; those of the folder are repeated as needed.
        repeats: Number of measurements.
        device: What runs the models.
        threads: CPU threads of the model, by default one per core.
        json_out: Also write all values to this file.
    """
    found = sorted(images.glob("*.jpg"))
    if not found:
        sys.exit(f"captioning.py: {images} contains no JPEGs")
    paths = (found * (num_pictures // len(found) + 1))[:num_pictures]
    backends = CPU_BACKENDS if device == "cpu" else ("torch",)
    captioners = {name: Captioner.load(backend=name, device=device, threads=threads) for name in backends}
    measured = {
        "pictures per second": captioning_rows(captioners, paths, repeats),
        "seconds per process": process_rows(found[0].absolute(), backends, repeats),
    }
    report(measured, json_out)


if __name__ == "__main__":
    tyro.cli(main)

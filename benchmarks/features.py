"""Speed of computing cached features: torch and what `train.py` uses.

    python benchmarks/features.py --images train2017

Pictures per second of an encoder on a CPU, from pixels in memory to annotations: by torch in batches of 32,
by torch one by one, and by the encoder's graph in a thread per core. Measurements are interleaved and
repeated; the table has their median, minimum and maximum. Exporting takes its seconds once per run.
"""

import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
import tyro

sys.path.insert(0, str(Path(__file__).parent.parent))

from benchmarks.report import report
from captioner.backends.batch_encoder import BatchEncoder, fast_batch_encoder, torch_batch_encoder
from captioner.backends.torch_backend import limit_threads
from captioner.images.geometry import Preprocess
from captioner.images.prefetch import batches, map_in_threads
from captioner.model.encoder import Encoder

BATCH_SIZE = 32


def main(
    *,
    images: Path,
    backbone: str = "tf_efficientnet_lite2",
    image_size: int = 320,
    num_pictures: int = 192,
    repeats: int = 5,
    json_out: Path | None = None,
) -> None:
    """Measure, and print two tables.

    Args:
        images: Folder of JPEGs.
        backbone: Name of a timm CNN; its weights are random, which does not affect the speed.
        image_size: Side of the CNN's input in pixels.
        num_pictures: Pictures encoded in each measurement; those of the folder are repeated as needed.
        repeats: Number of measurements.
        json_out: Also write all values to this file.
    """
    limit_threads()
    encoder = Encoder(backbone=backbone).eval()
    preprocess = Preprocess(encoder.preprocess_config(image_size))
    paths = sorted(images.glob("*.jpg"))
    if not paths:
        sys.exit(f"features.py: {images} contains no JPEGs")
    loaded = [preprocess.load(path) for path in (paths * (num_pictures // len(paths) + 1))[:num_pictures]]
    pixels = [np.stack(batch) for batch in batches(loaded, BATCH_SIZE)]
    started = time.perf_counter()
    graph = fast_batch_encoder(encoder, size_px=image_size, num_pictures=10**6)
    exporting = time.perf_counter() - started

    @torch.inference_mode()
    def in_batches() -> None:
        for batch in pixels:
            encoder.annotate(torch.tensor(batch))

    def by(runner: BatchEncoder) -> Callable[[], None]:
        def run() -> None:
            threads = runner.num_threads
            for _ in map_in_threads(runner.encode, pixels, num_threads=threads, ahead=threads):
                pass

        return run

    ways = {
        "torch, batches of 32": in_batches,
        "torch, one by one": by(torch_batch_encoder(encoder)),
        "the graph, a batch per thread": by(graph),
    }
    rates: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(repeats):
        for name, way in ways.items():
            started = time.perf_counter()
            way()
            rates[name].append(num_pictures / (time.perf_counter() - started))
    first = rates["torch, batches of 32"]
    ratios = {
        f"{name} / torch, batches of 32": [ours / theirs for ours, theirs in zip(values, first, strict=True)]
        for name, values in rates.items()
        if values is not first
    }
    report({"pictures per second": rates, "ratios": ratios, "seconds": {"exporting": [exporting]}}, json_out)


if __name__ == "__main__":
    tyro.cli(main)

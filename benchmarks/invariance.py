"""Invariance of captions to batch size, order and threads.

    python benchmarks/invariance.py --images Flicker8k_Dataset

Captions all pictures of a folder in batches of 8, and again in other ways. Counts the captions that differ,
and measures the largest differences between log-probabilities and between attention weights.
"""

import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import tyro

sys.path.insert(0, str(Path(__file__).parent.parent))

from benchmarks.report import report
from captioner.caption import Caption
from captioner.checkpoint.folder import SHIPPED_MODEL
from captioner.config import BackendName
from captioner.errors import ImageError
from captioner.inference import Captioner


def caption_all(captioner: Captioner, paths: Sequence[Path], batch_size: int) -> dict[str, Caption]:
    """Captions by file."""
    captions = {}
    for batch in captioner.caption_files(paths, batch_size=batch_size):
        for caption in batch:
            if isinstance(caption, ImageError):
                sys.exit(f"invariance.py: {caption}")
            captions[caption.file] = caption
    return captions


def differences(one: dict[str, Caption], other: dict[str, Caption]) -> dict[str, list[float]]:
    """The number of captions that differ, and the largest differences between the others."""
    same = [name for name in one if one[name].tokens == other[name].tokens]
    return {
        "captions": [len(one)],
        "different captions": [len(one) - len(same)],
        "largest difference in log-probability, 1e-6": [
            1e6 * max(abs(one[name].log_prob - other[name].log_prob) for name in same)
        ],
        "largest difference in attention, 1e-6": [
            1e6 * max(float(np.abs(one[name].alphas - other[name].alphas).max()) for name in same)
        ],
    }


def main(
    *,
    images: Path,
    names: Path | None = None,
    model: Path = SHIPPED_MODEL,
    backend: BackendName = "onnx",
    json_out: Path | None = None,
) -> None:
    """Measure, and print a table for each comparison.

    Args:
        images: Folder of JPEGs.
        names: File with the names of the JPEGs to caption, one per line; by default all are captioned.
        model: Model folder.
        backend: What runs the model.
        json_out: Also write all values to this file.
    """
    chosen = None if names is None else set(names.read_text().split())
    paths = [path for path in sorted(images.glob("*.jpg")) if chosen is None or path.name in chosen]
    if not paths:
        sys.exit(f"invariance.py: {images} contains none of the pictures")

    def load(threads: int) -> Captioner:
        return Captioner.load(model, backend=backend, device="cpu", threads=threads)

    expected = caption_all(load(1), paths, 8)
    measured = {
        "batches of 1": differences(expected, caption_all(load(1), paths, 1)),
        "batches of 32, in reverse order": differences(expected, caption_all(load(1), paths[::-1], 32)),
        "two threads": differences(expected, caption_all(load(2), paths, 8)),
        "repeated": differences(expected, caption_all(load(1), paths, 8)),
    }
    report(measured, json_out)


if __name__ == "__main__":
    tyro.cli(main)

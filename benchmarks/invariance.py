"""That captions do not depend on how they are computed: on the batch, the order, the threads.

    python benchmarks/invariance.py --images Flicker8k_Dataset

Captions of all pictures of a folder in batches of 8, and then computed otherwise: how many are worded
otherwise, and the largest differences of their log-probabilities and attention.
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
    captions = {}
    for batch in captioner.caption_files(paths, batch_size=batch_size):
        for caption in batch:
            if isinstance(caption, ImageError):
                sys.exit(f"invariance.py: {caption}")
            captions[caption.file] = caption
    return captions


def difference(one: dict[str, Caption], other: dict[str, Caption]) -> dict[str, list[float]]:
    same = [name for name in one if one[name].tokens == other[name].tokens]
    return {
        "captions": [len(one)],
        "worded otherwise": [len(one) - len(same)],
        "largest difference of log-probabilities, in millionths": [
            1e6 * max(abs(one[name].log_prob - other[name].log_prob) for name in same)
        ],
        "largest difference of attention, in millionths": [
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
    """Measure and print a table each.

    Args:
        images: Folder of JPEGs.
        names: File with the names of those to take, one a line; else all are.
        model: Model folder.
        backend: What computes it.
        json_out: Write all figures to this file too.
    """
    wanted = None if names is None else set(names.read_text().split())
    paths = [path for path in sorted(images.glob("*.jpg")) if wanted is None or path.name in wanted]
    if not paths:
        sys.exit(f"invariance.py: {images} holds none of the pictures")

    def load(threads: int) -> Captioner:
        return Captioner.load(model, backend=backend, device="cpu", threads=threads)

    expected = caption_all(load(1), paths, 8)
    measured = {
        "alone": difference(expected, caption_all(load(1), paths, 1)),
        "batches of 32, backwards": difference(expected, caption_all(load(1), paths[::-1], 32)),
        "in two threads": difference(expected, caption_all(load(2), paths, 8)),
        "once more": difference(expected, caption_all(load(1), paths, 8)),
    }
    report(measured, json_out)


if __name__ == "__main__":
    tyro.cli(main)

"""How many pictures are decoded ahead of the CNN that waits for them."""

import os
from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

import numpy as np
from jaxtyping import Float32

from captioner.images import ImageError, ImageSource, Preprocess, load_image

Item = TypeVar("Item")


def prepared_batches(
    sources: Iterable[ImageSource], preprocess: Preprocess, *, batch_size: int
) -> Iterator[list[tuple[ImageSource, "Float32[np.ndarray, '3 size size'] | ImageError"]]]:
    """Read and prepare pictures in threads, in order, at most one batch ahead.

    Pillow lets go of the interpreter while it decodes, so threads suffice. A picture that cannot be
    read comes out as its `ImageError`, in its place.
    """

    def prepare(source: ImageSource) -> "np.ndarray | ImageError":
        try:
            return preprocess(load_image(source))
        except ImageError as error:
            return error

    with ThreadPoolExecutor(max_workers=os.cpu_count()) as pool:
        waiting: deque[list[tuple[ImageSource, Future[np.ndarray | ImageError]]]] = deque()
        for batch in batches(sources, batch_size):
            waiting.append([(source, pool.submit(prepare, source)) for source in batch])
            if len(waiting) > 1:
                yield [(source, future.result()) for source, future in waiting.popleft()]
        for submitted in waiting:
            yield [(source, future.result()) for source, future in submitted]


def batches(items: Iterable[Item], batch_size: int) -> Iterator[list[Item]]:
    """Split into lists of `batch_size`, the last one shorter (itertools.batched of Python 3.12)."""
    if batch_size < 1:
        raise ValueError(f"batch_size must be at least 1, not {batch_size}")
    batch: list[Item] = []
    for item in items:
        batch.append(item)
        if len(batch) == batch_size:
            yield batch
            batch = []
    if batch:
        yield batch

"""How many pictures are decoded ahead of the CNN that waits for them."""

import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

from captioner.images import ImageError, ImageSource

Item = TypeVar("Item")
Loaded = TypeVar("Loaded")


def loaded_batches(
    sources: Iterable[ImageSource], load: Callable[[ImageSource], Loaded], *, batch_size: int
) -> Iterator[list[tuple[ImageSource, Loaded | ImageError]]]:
    """Call `load` on each source in threads, in order, at most one batch ahead.

    Pillow lets go of the interpreter while it decodes, so threads suffice. A picture that cannot be
    read comes out as its `ImageError`, in its place.
    """

    def load_or_tell(source: ImageSource) -> Loaded | ImageError:
        try:
            return load(source)
        except ImageError as error:
            return error

    with ThreadPoolExecutor(max_workers=os.cpu_count()) as pool:
        waiting: deque[list[tuple[ImageSource, Future[Loaded | ImageError]]]] = deque()
        for batch in batches(sources, batch_size):
            waiting.append([(source, pool.submit(load_or_tell, source)) for source in batch])
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

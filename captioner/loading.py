"""Work in threads, in order and a bounded number of steps ahead: pictures decoded while a CNN runs."""

import os
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing
from typing import TypeVar

from captioner.images import ImageError, ImageSource

Item = TypeVar("Item")
Source = TypeVar("Source", bound=ImageSource)
Loaded = TypeVar("Loaded")
Result = TypeVar("Result")


def loaded_batches(
    sources: Iterable[Source],
    load: Callable[[Source], Loaded],
    *,
    batch_size: int,
    num_threads: int | None = None,
) -> Iterator[list[tuple[Source, Loaded | ImageError]]]:
    """Call `load` on each source in threads, by default one a core, in order and one batch ahead.

    Pillow lets go of the interpreter while it decodes, so threads suffice. A picture that cannot be
    read comes out as its `ImageError`, in its place.
    """

    def load_or_tell(source: Source) -> tuple[Source, Loaded | ImageError]:
        try:
            return source, load(source)
        except ImageError as error:
            return source, error

    loaded = mapped(load_or_tell, sources, num_threads=num_threads or num_cores(), ahead=batch_size)
    with closing(loaded):
        yield from batches(loaded, batch_size)


def mapped(
    function: Callable[[Item], Result], items: Iterable[Item], *, num_threads: int, ahead: int
) -> Generator[Result, None, None]:
    """Like map, in threads: results in order, so many items ahead of the one that is given out.

    What has not begun when the results are no longer wanted is left undone.
    """
    waiting: deque[Future[Result]] = deque()
    with ThreadPoolExecutor(num_threads) as pool:
        try:
            for item in items:
                waiting.append(pool.submit(function, item))
                if len(waiting) > ahead:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        finally:
            for future in waiting:
                future.cancel()


def num_cores() -> int:
    """How many cores this process may use, where the system tells; else how many there are."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


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

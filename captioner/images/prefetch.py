"""Bounded prefetching in threads: pictures decode while the CNN runs."""

import math
import os
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing, suppress
from pathlib import Path
from typing import TypeVar

from captioner.errors import ImageError
from captioner.images.sources import ImageSource

Item = TypeVar("Item")
Source = TypeVar("Source", bound=ImageSource)
Loaded = TypeVar("Loaded")
Result = TypeVar("Result")

CGROUPS, OWN_CGROUP = Path("/sys/fs/cgroup"), Path("/proc/self/cgroup")


def prefetch_batches(
    sources: Iterable[Source],
    load: Callable[[Source], Loaded],
    *,
    batch_size: int,
    num_threads: int | None = None,
) -> Iterator[list[tuple[Source, Loaded | ImageError]]]:
    """Call `load` on each source in threads, by default one per core, in order and one batch ahead.

    Pillow releases the interpreter lock while it decodes, so threads suffice. A picture that cannot be
    read yields its `ImageError` instead.
    """

    def load_or_error(source: Source) -> tuple[Source, Loaded | ImageError]:
        try:
            return source, load(source)
        except ImageError as error:
            return source, error

    loaded = map_in_threads(
        load_or_error, sources, num_threads=num_threads or available_cores(), ahead=batch_size
    )
    with closing(loaded):
        yield from batches(loaded, batch_size)


def map_in_threads(
    function: Callable[[Item], Result], items: Iterable[Item], *, num_threads: int, ahead: int
) -> Generator[Result, None, None]:
    """Like map, but in threads: results in order, computed up to `ahead` items in advance.

    Items whose turn has not come when the results are no longer wanted are not computed. With one thread
    and `ahead` at most 1, each item is mapped when its result is asked for.
    """
    if num_threads == 1 and ahead <= 1:
        yield from map(function, items)
        return
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


def available_cores() -> int:
    """Cores this process may use: those it is bound to, and no more than its container's CPU limit.

    joblib's cpu_count answers the same but takes a third of a second to import.
    """
    has_affinity = hasattr(os, "sched_getaffinity")
    cores = len(os.sched_getaffinity(0)) if has_affinity else os.cpu_count() or 1
    return max(math.ceil(min(cores, _container_limit())), 1)


def _container_limit() -> float:
    """The CPU limit of this process's cgroup and of those above it, in cores (versions 2 and 1)."""
    limit = math.inf
    with suppress(OSError):
        for line in OWN_CGROUP.read_text().splitlines():
            _, controllers, path = line.split(":", 2)
            if controllers and "cpu" not in controllers.split(","):
                continue
            root = CGROUPS / controllers if controllers else CGROUPS
            own = root / path.lstrip("/")
            # Inside a container the path may be the host's; its limits are then at the root.
            for folder in (own, *own.parents):
                if folder == root or root in folder.parents:
                    limit = min(limit, _limit_of(folder))
    return limit


def _limit_of(cgroup: Path) -> float:
    with suppress(OSError, ValueError):
        quota, period = (cgroup / "cpu.max").read_text().split()
        return math.inf if quota == "max" else int(quota) / int(period)
    with suppress(OSError, ValueError):
        quota_us = int((cgroup / "cpu.cfs_quota_us").read_text())
        return math.inf if quota_us <= 0 else quota_us / int((cgroup / "cpu.cfs_period_us").read_text())
    return math.inf


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

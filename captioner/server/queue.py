"""Requests that wait together are captioned together."""

import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Generic, TypeVar

from captioner.config import DecodingOptions

Picture = TypeVar("Picture")
Result = TypeVar("Result")


@dataclass(frozen=True, eq=False)  # pictures are arrays, which have no truth value when compared
class _Request(Generic[Picture, Result]):
    picture: Picture
    options: DecodingOptions
    future: "Future[Result]" = field(default_factory=Future)


class BatchQueue(Generic[Picture, Result]):
    """Threads that take waiting requests in batches, those with the same options as the one that came first.

    A request waits for others at most `wait_s`, and only if its batch is not full. If a batch fails, each of
    its requests is tried alone, so that none fails because of another's picture.
    """

    def __init__(
        self,
        caption: Callable[[Sequence[Picture], DecodingOptions], Sequence[Result]],
        *,
        batch_size: int,
        num_threads: int,
        wait_s: float,
        on_batch: Callable[[int], None] = lambda _: None,
    ) -> None:
        """`caption` computes a batch; `on_batch` is told the size of each."""
        self._caption, self._on_batch = caption, on_batch
        self._batch_size, self._wait_s = batch_size, wait_s
        self._waiting: deque[_Request[Picture, Result]] = deque()
        self._changed = threading.Condition()
        self._is_closed = False
        self._threads = [threading.Thread(target=self._work, daemon=True) for _ in range(num_threads)]
        for thread in self._threads:
            thread.start()

    def submit(self, picture: Picture, options: DecodingOptions) -> "Future[Result]":
        """Add a request. Raises: RuntimeError, if the queue is closed."""
        request: _Request[Picture, Result] = _Request(picture, options)
        with self._changed:
            if self._is_closed:
                raise RuntimeError("the queue is closed")
            self._waiting.append(request)
            self._changed.notify_all()
        return request.future

    @property
    def is_alive(self) -> bool:
        return all(thread.is_alive() for thread in self._threads)

    def close(self, *, timeout_s: float | None = None) -> None:
        """Finish what waits, and end the threads; or give up after `timeout_s`."""
        with self._changed:
            self._is_closed = True
            self._changed.notify_all()
        deadline = None if timeout_s is None else time.monotonic() + timeout_s
        for thread in self._threads:
            thread.join(None if deadline is None else max(deadline - time.monotonic(), 0))

    def _work(self) -> None:
        while taken := self._take():
            # From here on a request cannot be cancelled, whether or not its client is still there.
            batch = [request for request in taken if request.future.set_running_or_notify_cancel()]
            if not batch:
                continue
            self._on_batch(len(batch))
            try:
                results = self._caption([request.picture for request in batch], batch[0].options)
                if len(results) != len(batch):
                    raise ValueError(f"{len(batch)} pictures have {len(results)} results")
            except Exception as error:
                self._try_alone(batch, error)
            else:
                for request, result in zip(batch, results, strict=True):
                    request.future.set_result(result)

    def _try_alone(self, batch: "list[_Request[Picture, Result]]", error: Exception) -> None:
        if len(batch) == 1:
            batch[0].future.set_exception(error)
            return
        for request in batch:
            try:
                (result,) = self._caption([request.picture], request.options)
            except Exception as own:  # noqa: PERF203 (each may fail)
                request.future.set_exception(own)
            else:
                request.future.set_result(result)

    def _take(self) -> "list[_Request[Picture, Result]]":
        """The next batch, once there is one; empty when the queue is closed and nothing waits."""
        with self._changed:
            while True:
                while not self._waiting and not self._is_closed:
                    self._changed.wait()
                deadline = time.monotonic() + self._wait_s
                while not self._is_closed and 0 < len(self._next()) < self._batch_size:
                    left = deadline - time.monotonic()
                    if left <= 0 or not self._changed.wait(left):
                        break
                batch = self._next()
                for request in batch:
                    self._waiting.remove(request)
                if batch or self._is_closed:  # else another thread has taken them
                    return batch

    def _next(self) -> "list[_Request[Picture, Result]]":
        if not self._waiting:
            return []
        options = self._waiting[0].options
        return [request for request in self._waiting if request.options == options][: self._batch_size]

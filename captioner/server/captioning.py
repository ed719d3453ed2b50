"""From a request to the caption of its picture."""

import asyncio
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, TypeVar

from fastapi import Request
from starlette.datastructures import UploadFile

from captioner.caption import Caption
from captioner.config import DecodingOptions
from captioner.errors import CaptionerError, ImageError
from captioner.figures.page import picture_article
from captioner.figures.style import FIGURE_PX
from captioner.images.prefetch import available_cores
from captioner.images.reading import check_pixels
from captioner.images.sources import PictureBytes
from captioner.inference import Captioner, Prepared
from captioner.server.guard import Limits, RefusedError
from captioner.server.metrics import Metrics
from captioner.server.queue import BatchQueue

_RETRY_S = 1
_MOST_PIXELS = 64_000_000  # decoded pictures are in memory, one per thread
_CLOSE_S = 1.0  # for what uvicorn has not waited for

Answer = TypeVar("Answer")


@dataclass(frozen=True, kw_only=True)
class Service:
    """How requests are served: at most `max_open` at a time, in batches that wait at most `wait_s`."""

    limits: Limits
    max_open: int
    batch_size: int
    wait_s: float


class Captioning:
    """Takes requests, at most so many at a time; forms batches of them."""

    def __init__(self, captioner: Captioner, service: Service, metrics: Metrics) -> None:
        self._captioner, self._max_open, self._metrics = captioner, service.max_open, metrics
        self._num_open = 0
        self._pool = ThreadPoolExecutor(captioner.threads or available_cores())  # decodes pictures
        self._queue: BatchQueue[Prepared, Caption | ImageError] = BatchQueue(
            self._caption_batch,
            batch_size=service.batch_size,
            num_threads=captioner.backend.max_concurrent_batches,
            wait_s=service.wait_s,
            on_batch=metrics.batch_size.observe,
        )

    @property
    def is_alive(self) -> bool:
        return self._queue.is_alive

    def close(self) -> None:
        self._pool.shutdown(wait=False, cancel_futures=True)
        self._queue.close(timeout_s=_CLOSE_S)

    async def respond(
        self, request: Request, options: DecodingOptions, form: Callable[[Caption], Answer]
    ) -> Answer:
        """Caption the picture in a request; the answer is what `form` makes of the caption.

        Raises: RefusedError.
        """
        with self._opened():
            picture = await _picture_in(request)
            loop = asyncio.get_running_loop()
            try:
                prepared = await loop.run_in_executor(self._pool, self._prepare, picture)
                found = await asyncio.wrap_future(self._queue.submit((picture, prepared), options))
                assert isinstance(found, Caption)
                return await loop.run_in_executor(self._pool, form, found)
            except CaptionerError as error:
                raise RefusedError(400, str(error)) from None

    def _prepare(self, picture: PictureBytes) -> Any:
        check_pixels(picture, _MOST_PIXELS)
        return self._captioner.prepare(picture)

    @contextmanager
    def _opened(self) -> Iterator[None]:
        """Raises: RefusedError, at once, if too many requests are under way."""
        if self._num_open >= self._max_open:
            reason = f"{self._max_open} requests are under way; try again"
            raise RefusedError(503, reason, {"Retry-After": str(_RETRY_S)})
        self._num_open += 1
        self._metrics.open.set(self._num_open)
        try:
            yield
        finally:
            self._num_open -= 1
            self._metrics.open.set(self._num_open)

    def _caption_batch(
        self, batch: Sequence[Prepared], options: DecodingOptions
    ) -> Sequence[Caption | ImageError]:
        return self._captioner.caption_prepared(batch, options, numbers=[0] * len(batch))


async def _picture_in(request: Request) -> PictureBytes:
    """The picture in a request's body. Raises: RefusedError."""
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    name, content = "picture", b""
    if kind == "multipart/form-data":
        try:
            async with request.form(max_files=1, max_fields=8) as form:
                uploads = [value for value in form.values() if isinstance(value, UploadFile)]
                if uploads:
                    name, content = uploads[0].filename or name, await uploads[0].read()
        except (UnicodeError, LookupError):
            raise RefusedError(400, "the form's charset makes no sense") from None
    else:
        content = await request.body()
    if not content:
        raise RefusedError(
            400, "the request has no picture: send its file as the body, or as a file of a form"
        )
    return PictureBytes(name.encode("utf-8", "replace").decode(), content)


def as_article(caption: Caption) -> str:
    return picture_article(
        caption, caption.image(enough_px=FIGURE_PX), numbers={"log-prob": caption.log_prob}
    )

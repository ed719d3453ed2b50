"""The web application: captions over HTTP, and a page to try them on."""

import asyncio
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, fields, replace
from html import escape
from pathlib import Path
from string import Template
from typing import Annotated, Any, TypeVar, cast, get_type_hints

from fastapi import FastAPI, Query, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import HTMLResponse, JSONResponse, PlainTextResponse, Response
from fastapi_offline import FastAPIOffline
from msgspec import Meta
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram
from prometheus_client.exposition import CONTENT_TYPE_LATEST, generate_latest
from pydantic import BaseModel, ConfigDict, Field, create_model
from starlette.datastructures import UploadFile
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect

from captioner import __version__
from captioner.caption import Caption
from captioner.checkpoint.description import describe
from captioner.config import DecodingOptions, bounds_of
from captioner.errors import CaptionerError, ImageError
from captioner.field_docs import field_docs
from captioner.figures.page import (
    attention_setting,
    content_policy,
    page_css,
    page_file,
    picture_article,
)
from captioner.figures.style import FIGURE_PX, FigureStyle
from captioner.images.prefetch import available_cores
from captioner.images.reading import check_pixels
from captioner.images.sources import PictureBytes
from captioner.inference import Captioner, Prepared
from captioner.server.guard import INTERNAL_ERROR, Guard, Limits, RefusedError
from captioner.server.queue import BatchQueue

_RETRY_S = 1
# A search of a thousand hypotheses, or for a thousand words, would keep everyone else waiting.
_MOST_HYPOTHESES, _MOST_WORDS = 32, 100
_MOST_REQUIRED = 4
_MOST_PIXELS = 64_000_000  # decoded pictures are in memory, one per thread
_CLOSE_S = 1.0  # for what uvicorn has not waited for
_CLIENT_GONE = 499  # as nginx logs it

Answer = TypeVar("Answer")
_PICTURE_BODY = {
    "required": True,
    "content": {
        "image/*": {"schema": {"type": "string", "format": "binary"}},
        "multipart/form-data": {
            "schema": {
                "type": "object",
                "properties": {"file": {"type": "string", "format": "binary"}},
                "required": ["file"],
            }
        },
    },
}


@dataclass(frozen=True, kw_only=True)
class Service:
    """How requests are served: at most `max_open` at a time, in batches that wait at most `wait_s`."""

    limits: Limits
    max_open: int
    batch_size: int
    wait_s: float


def create_app(captioner: Captioner, service: Service, *, folder: Path, name: str) -> Guard:
    """The application that serves a model, by the name that clients see, and describes its folder."""
    metrics = _Metrics()
    captioning = _Captioning(captioner, service, metrics)

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        yield
        await asyncio.to_thread(captioning.close)

    app = FastAPIOffline(
        title="captioner", version=__version__, lifespan=lifespan, redoc_url=None, favicon_url=None
    )
    app.add_exception_handler(RefusedError, _refused)
    app.add_exception_handler(RequestValidationError, _invalid)
    app.add_exception_handler(HTTPException, _http_error)
    app.add_exception_handler(ClientDisconnect, _gone)
    app.add_exception_handler(Exception, _failed)
    page, policy = _page(captioner, has_token=service.limits.token is not None)
    described = {"name": name, **_described(folder)}
    query_model = _query_model()

    @app.post(
        "/v1/captions",
        summary="Caption a picture",
        openapi_extra={"requestBody": _PICTURE_BODY},
        responses={
            200: {
                "content": {"text/html": {}},
                "description": "As a line of --format jsonl --with-attention",
            },
            400: {"description": "No picture, or options that make no sense"},
            413: {"description": "Too large"},
            503: {"description": "Too many requests are waiting; see Retry-After"},
        },
    )
    async def caption(
        request: Request,
        query: Annotated[query_model, Query()],  # type: ignore[valid-type]
    ) -> Response:
        """The body is the picture's file, or a form with one file.

        With `Accept: text/html` the answer is a part of a page, which shows the picture.
        """
        asked = cast(BaseModel, query).model_dump(exclude_none=True)
        with_attention = asked.pop("with_attention")
        options = _changed(captioner.config.decoding, asked)
        if "text/html" in request.headers.get("accept", ""):
            return HTMLResponse(await captioning.respond(request, options, _article))
        return JSONResponse(
            await captioning.respond(
                request, options, lambda found: found.as_json(with_attention=with_attention)
            )
        )

    @app.get("/v1/models", summary="The model that is served")
    async def models() -> dict[str, list[dict[str, str]]]:
        return {"models": [described]}

    @app.get("/healthz", summary="Whether the server is up")
    async def health() -> dict[str, str]:
        if not captioning.is_alive:
            raise RefusedError(500, "a thread has ended; restart the server")
        return {"status": "ok"}

    @app.get("/metrics", summary="Metrics for Prometheus", response_class=PlainTextResponse)
    async def prometheus() -> Response:
        return Response(generate_latest(metrics.registry), media_type=CONTENT_TYPE_LATEST)

    @app.get("/", include_in_schema=False)
    async def start() -> HTMLResponse:
        return HTMLResponse(page, headers={"Content-Security-Policy": policy})

    return Guard(app, limits=service.limits, observe=metrics.observe)


class _Metrics:
    """Counts for Prometheus, of one application."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self.requests = Counter("captioner_requests", "Requests", ["path", "status"], registry=self.registry)
        self.seconds = Histogram(
            "captioner_request_seconds", "Seconds of requests for captions", registry=self.registry
        )
        self.batch_size = Histogram(
            "captioner_batch_size",
            "Pictures captioned together",
            buckets=(1, 2, 4, 8, 16, 32, 64, 128),
            registry=self.registry,
        )
        self.open = Gauge(
            "captioner_open_requests", "Requests for captions under way", registry=self.registry
        )

    def observe(self, path: str, status: int, seconds: float) -> None:
        known = path if path in ("/", "/v1/captions", "/v1/models", "/healthz", "/metrics") else "other"
        self.requests.labels(known, str(status)).inc()
        if path == "/v1/captions":
            self.seconds.observe(seconds)


class _Captioning:
    """From a request to its caption."""

    def __init__(self, captioner: Captioner, service: Service, metrics: _Metrics) -> None:
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


def _article(caption: Caption) -> str:
    return picture_article(
        caption, caption.image(enough_px=FIGURE_PX), numbers={"log-prob": caption.log_prob}
    )


def _page(captioner: Captioner, *, has_token: bool) -> tuple[str, str]:
    """The page and its content-security policy."""
    css = page_css() + page_file("server.css")
    script = page_file("attention.js") + page_file("server.js")
    decoding, config = captioner.config.decoding, captioner.config
    page = Template(page_file("server.html")).substitute(
        css=css,
        script=script,
        setting=attention_setting(config.grid, config.preprocess, FigureStyle()),
        beam_size=escape(str(decoding.beam_size)),
        most=_MOST_HYPOTHESES,
        token_hidden="" if has_token else "hidden",
    )
    return page, content_policy(script=script, css=css, connect_src="'self'") + "; frame-ancestors 'none'"


def _described(folder: Path) -> dict[str, str]:
    """What `captioner info` prints, but for the folder's place on this machine."""
    found: dict[str, str] = {}
    for name, value in describe(folder):
        if name != "folder":
            found[name] = f"{found[name]}; {value}" if name in found else value
    return found


def _query_model() -> type[BaseModel]:
    """Decoding options as parameters of a query: all may be left out, others are refused."""
    hints, docs, bounds = (
        get_type_hints(DecodingOptions),
        field_docs(DecodingOptions),
        bounds_of(DecodingOptions),
    )
    made: dict[str, Any] = {}
    for setting in fields(DecodingOptions):
        hint = hints[setting.name]
        hint = list[str] if setting.name == "must_include" else hint
        made[setting.name] = (
            hint | None,
            Field(None, description=docs.get(setting.name), **_range_of(bounds.get(setting.name))),
        )
    made["with_attention"] = (
        bool,
        Field(default=True, description="Add each word's attention over the grid."),
    )
    return create_model("DecodingQuery", __config__=ConfigDict(extra="forbid"), **made)


def _range_of(bounds: Meta | None) -> dict[str, Any]:
    stated = {} if bounds is None else {name: getattr(bounds, name) for name in ("ge", "gt", "le", "lt")}
    return {name: value for name, value in stated.items() if value is not None}


def _changed(own: DecodingOptions, asked: Mapping[str, Any]) -> DecodingOptions:
    """The model's options with those changed that a request names. Raises: RefusedError."""
    if "must_include" in asked:
        asked = {**asked, "must_include": tuple(asked["must_include"])}
    try:
        options = replace(own, **asked)
    except ValueError as error:
        raise RefusedError(400, str(error)) from None
    if options.search_width > _MOST_HYPOTHESES:
        raise RefusedError(400, f"beam_size and num_captions may be at most {_MOST_HYPOTHESES} here")
    if len(options.must_include) > _MOST_REQUIRED:  # each has as many hypotheses of its own
        raise RefusedError(400, f"must_include may have at most {_MOST_REQUIRED} words here")
    if options.max_words > max(_MOST_WORDS, own.max_words):
        raise RefusedError(400, f"max_words may be at most {_MOST_WORDS} here")
    return options


async def _refused(_: Request, error: Exception) -> Response:
    assert isinstance(error, RefusedError)
    return error.response()


async def _invalid(_: Request, error: Exception) -> Response:
    assert isinstance(error, RequestValidationError)
    reasons = [f"{'.'.join(map(str, one['loc'][1:]))}: {one['msg']}" for one in error.errors()]
    return RefusedError(400, "; ".join(reasons)).response()


async def _http_error(_: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    return RefusedError(error.status_code, str(error.detail), error.headers).response()


async def _gone(_: Request, __: Exception) -> Response:
    return Response(status_code=_CLIENT_GONE)


async def _failed(_: Request, __: Exception) -> Response:
    return INTERNAL_ERROR.response()

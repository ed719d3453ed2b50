"""The web application: captions over HTTP, and a page to try them on."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from html import escape
from pathlib import Path
from string import Template
from typing import Annotated, cast

from fastapi import FastAPI, Query, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import HTMLResponse, JSONResponse, PlainTextResponse, Response
from fastapi_offline import FastAPIOffline
from prometheus_client.exposition import CONTENT_TYPE_LATEST, generate_latest
from pydantic import BaseModel
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect

from captioner import __version__
from captioner.checkpoint.description import describe
from captioner.figures.page import attention_setting, content_policy, page_css, page_file
from captioner.figures.style import FigureStyle
from captioner.inference import Captioner
from captioner.server.captioning import Captioning, Service, as_article
from captioner.server.guard import INTERNAL_ERROR, Guard, RefusedError
from captioner.server.metrics import Metrics
from captioner.server.query import MOST_HYPOTHESES, changed_by, make_query_model

_CLIENT_GONE = 499  # as nginx logs it
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


def create_app(captioner: Captioner, service: Service, *, folder: Path, name: str) -> Guard:
    """The application that serves a model, by the name that clients see, and describes its folder."""
    metrics = Metrics()
    captioning = Captioning(captioner, service, metrics)

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
    query_model = make_query_model()

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
        options = changed_by(captioner.config.decoding, asked)
        if "text/html" in request.headers.get("accept", ""):
            return HTMLResponse(await captioning.respond(request, options, as_article))
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
        most=MOST_HYPOTHESES,
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


async def _refused(_: Request, error: Exception) -> Response:
    assert isinstance(error, RefusedError)
    return error.response()


async def _invalid(_: Request, error: Exception) -> Response:
    assert isinstance(error, RequestValidationError)
    reasons = [
        f"{'.'.join(map(str, one['loc'][1:]))}: "
        + ("there is no such option" if one["type"] == "extra_forbidden" else one["msg"])
        for one in error.errors()
    ]
    return RefusedError(400, "; ".join(reasons)).response()


async def _http_error(_: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    return RefusedError(error.status_code, str(error.detail), error.headers).response()


async def _gone(_: Request, __: Exception) -> Response:
    return Response(status_code=_CLIENT_GONE)


async def _failed(_: Request, __: Exception) -> Response:
    return INTERNAL_ERROR.response()

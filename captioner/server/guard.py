"""What every request passes: limits on its body, who may ask, an id, a line in the log, and metrics."""

import asyncio
import hmac
import logging
import time
import uuid
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from urllib.parse import urlsplit

from starlette.datastructures import Headers, MutableHeaders
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

_logger = logging.getLogger("captioner.server")

LOCAL_NAMES = ("127.0.0.1", "localhost", "::1")

_PROTECTED = ("/v1/", "/metrics")
"""Paths that need the token, if there is one; the page asks for it."""

_MOST_CHARACTERS = 500  # of what a client sent, in an error or in the log
_DRAIN_S = 2.0
"""Time in which the rest of a refused body is read and dropped; else most clients would see a connection that
is reset instead of the answer."""

_HEADERS = {
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cache-Control": "no-store",
}


class RefusedError(Exception):
    """A request is refused: the status, a line for the client, and further headers."""

    def __init__(self, status: int, reason: str, headers: Mapping[str, str] | None = None) -> None:
        super().__init__(reason)
        self.status, self.reason, self.headers = status, reason, dict(headers or {})

    def response(self) -> JSONResponse:
        """The reason may quote what the client sent: it becomes one line of bounded length."""
        return JSONResponse({"error": _printable(self.reason)}, self.status, self.headers)


_ENDING = RefusedError(503, "the server is ending", {"Retry-After": "5"})
INTERNAL_ERROR = RefusedError(500, "internal error; the server's log says more under this request's id")


@dataclass(frozen=True, kw_only=True)
class Limits:
    """`token` is what clients must send, None for no token; `names` are the names of the server that clients
    may call it by, None for any."""

    max_body_bytes: int
    body_timeout_s: float
    token: str | None = None
    names: tuple[str, ...] | None = LOCAL_NAMES


class Guard:
    """ASGI middleware around the whole application.

    A body that is too large is refused by its stated length, or once that many bytes have come; one that
    does not come in time is refused too. Pages of other sites may not use the server: their requests are
    known by their origin, and by a name of the server that is not its own (DNS rebinding).
    """

    def __init__(self, app: ASGIApp, *, limits: Limits, observe: Callable[[str, int, float], None]) -> None:
        """`observe` is told the path, the status and the seconds of each request."""
        self.app, self.limits, self.observe = app, limits, observe

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        started, request_id = time.perf_counter(), uuid.uuid4().hex[:12]
        body = _Body(receive, self.limits, is_announced="expect" in Headers(scope=scope))
        status = 0

        async def send_marked(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                headers = MutableHeaders(scope=message)
                for name, value in {**_HEADERS, "X-Request-ID": request_id}.items():
                    headers.setdefault(name, value)
                if is_unread():
                    headers["Connection"] = "close"
            is_last = message["type"] == "http.response.body" and not message.get("more_body", False)
            if is_last and is_unread():
                await send({**message, "more_body": True})
                await body.drain()
                message = {"type": "http.response.body", "body": b""}
            await send(message)

        def is_unread() -> bool:
            return not body.is_whole and _has_body(scope)

        try:
            self._admit(scope)
            body.check_length(scope)
            await self.app(scope, body.receive, send_marked)
        except RefusedError as refused:
            if status == 0:
                await refused.response()(scope, receive, send_marked)
        except asyncio.CancelledError:  # by uvicorn, when the server ends
            if status == 0:
                await _ENDING.response()(scope, receive, send_marked)
        except Exception:
            _logger.exception("id=%s failed", request_id)
            if status == 0:
                await INTERNAL_ERROR.response()(scope, receive, send_marked)
        seconds = time.perf_counter() - started
        self.observe(scope["path"], status, seconds)
        _logger.info(
            "id=%s method=%s path=%s status=%d bytes=%d ms=%.0f",
            *(
                request_id,
                scope["method"],
                _printable(scope["path"]).replace(" ", "?"),
                status,
                body.num_bytes,
                1e3 * seconds,
            ),
        )

    def _admit(self, scope: Scope) -> None:
        """Raises: RefusedError."""
        headers = Headers(scope=scope)
        host, origin = headers.get("host", ""), headers.get("origin")
        names = self.limits.names
        if names is not None and _host_name(host) not in names:
            raise RefusedError(421, "this is not a name of this server; see captioner serve --name")
        is_foreign = origin is not None and origin.partition("://")[2] != host
        is_link = scope["method"] == "GET" and headers.get("sec-fetch-mode") == "navigate"
        if is_foreign or (headers.get("sec-fetch-site") in ("cross-site", "same-site") and not is_link):
            raise RefusedError(403, "pages of other sites may not use this server")
        token = self.limits.token
        if token is not None and scope["path"].startswith(_PROTECTED):
            scheme, _, given = headers.get("authorization", "").partition(" ")
            is_right = hmac.compare_digest(given.strip().encode("latin-1"), token.encode())
            if scheme.lower() != "bearer" or not is_right:
                raise RefusedError(
                    401, "send the token: Authorization: Bearer TOKEN", {"WWW-Authenticate": "Bearer"}
                )


class _Body:
    """A request's body, which must be small enough and come in time."""

    def __init__(self, receive: Receive, limits: Limits, *, is_announced: bool) -> None:
        """`is_announced` if the client sends its body only when it is told to (Expect: 100-continue)."""
        self._receive, self._limits, self._is_announced = receive, limits, is_announced
        self._deadline = time.monotonic() + limits.body_timeout_s
        self.num_bytes = 0
        self.is_whole = False

    def check_length(self, scope: Scope) -> None:
        """Raises: RefusedError."""
        stated = Headers(scope=scope).get("content-length", "")
        if stated.isdecimal() and int(stated) > self._limits.max_body_bytes:
            raise self._too_large()

    async def receive(self) -> Message:
        """Raises: RefusedError."""
        if self.is_whole:  # what comes now is that the client has gone
            return await self._receive()
        try:
            message = await asyncio.wait_for(self._next(), max(self._deadline - time.monotonic(), 0))
        except asyncio.TimeoutError:
            limit = f"{self._limits.body_timeout_s:g} s"
            raise RefusedError(408, f"the request did not arrive within {limit}") from None
        self.num_bytes += len(message.get("body", b""))
        if self.num_bytes > self._limits.max_body_bytes:
            raise self._too_large()
        return message

    async def drain(self) -> None:
        """Read and drop the rest, unless it takes too long."""
        if self._is_announced:
            return
        with suppress(asyncio.TimeoutError, OSError):
            await asyncio.wait_for(self._drop(), _DRAIN_S)

    async def _drop(self) -> None:
        while not self.is_whole:
            await self._next()

    async def _next(self) -> Message:
        message = await self._receive()
        self.is_whole = message["type"] != "http.request" or not message.get("more_body", False)
        return message

    def _too_large(self) -> RefusedError:
        limit = self._limits.max_body_bytes / 1e6
        return RefusedError(413, f"the request is larger than the {limit:g} MB allowed")


def _has_body(scope: Scope) -> bool:
    headers = Headers(scope=scope)
    return "transfer-encoding" in headers or headers.get("content-length", "0") != "0"


def _host_name(host: str) -> str | None:
    try:
        if "@" in host:
            return None
        return urlsplit(f"//{host}").hostname
    except ValueError:
        return None


def _printable(text: str) -> str:
    return "".join(one if one.isprintable() else "?" for one in text[:_MOST_CHARACTERS])

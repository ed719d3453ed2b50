"""The server's process: its socket, slow connections, and its end."""

import asyncio
import logging
import os
import signal
import socket
import sys
from contextlib import suppress
from typing import Any, NoReturn

import uvicorn
from uvicorn.protocols.http.h11_impl import H11Protocol

from captioner.errors import CaptionerError
from captioner.server.guard import Guard

_END_TIMEOUT_S = 8  # after SIGTERM, for what is under way
_MOST_CONNECTIONS, _BACKLOG = 1_000, 1_000


def bind(host: str, port: int) -> socket.socket:
    """A socket that listens there; port 0 is any free one. Raises: CaptionerError."""
    try:
        family, *_, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        listening = socket.socket(family, socket.SOCK_STREAM)
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listening.bind(address)
        listening.listen(_BACKLOG)  # who connects before the server is ready waits
    except (OSError, OverflowError) as error:
        raise CaptionerError(f"cannot listen on {host} port {port}: {error}") from error
    return listening


def serve(app: Guard, listening: socket.socket, *, timeout_s: float) -> NoReturn:
    """Serve until SIGTERM or Ctrl-C, then finish what is under way and end the process.

    A connection is closed if the head of a request does not come within `timeout_s`, and likewise if an
    answer is not read.
    """
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s", stream=sys.stderr)
    logging.getLogger("uvicorn").setLevel(logging.WARNING)
    logging.getLogger("asyncio").setLevel(logging.CRITICAL)  # connections that clients reset
    config = uvicorn.Config(
        app,
        http=type("TimedProtocol", (_Protocol,), {"timeout_s": timeout_s}),
        loop="asyncio",
        ws="none",
        log_config=None,
        access_log=False,
        server_header=False,
        proxy_headers=False,
        limit_concurrency=_MOST_CONNECTIONS,
        timeout_graceful_shutdown=_END_TIMEOUT_S,
    )
    signal.signal(signal.SIGTERM, lambda *_: None)  # uvicorn raises it again once it has ended
    with suppress(KeyboardInterrupt):
        uvicorn.Server(config).run(sockets=[listening])
    for stream in (sys.stdout, sys.stderr):
        stream.flush()
    os._exit(0)  # threads that still decode or search are not waited for


class _Protocol(H11Protocol):
    """Closes connections whose request's head does not come in time, and those that do not read answers."""

    timeout_s: float
    _timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: Any) -> None:
        super().connection_made(transport)
        self._watch()

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        self._watch()

    def connection_lost(self, exc: Exception | None) -> None:
        self._stop()
        super().connection_lost(exc)

    def on_response_complete(self) -> None:
        super().on_response_complete()
        if self._timer is None:
            self._watch()

    def pause_writing(self) -> None:
        """The client does not read what it asked for."""
        super().pause_writing()
        if self._timer is None:
            self._timer = self.loop.call_later(self.timeout_s, self.transport.abort)

    def resume_writing(self) -> None:
        super().resume_writing()
        self._stop()
        self._watch()

    def _watch(self) -> None:
        is_waiting = self.cycle is None or self.cycle.response_complete
        if not is_waiting and not self.flow.write_paused:
            self._stop()
        elif self._timer is None:
            self._timer = self.loop.call_later(self.timeout_s, self.transport.abort)

    def _stop(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

"""The command `captioner serve`."""

import os
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from msgspec import Meta

from captioner.bounds import Bounded, Positive
from captioner.checkpoint.names import public_name
from captioner.cli.options import arg, check_batch_size, checked, flags, model_folder
from captioner.config import ModelOptions

_TOKEN_VARIABLE = "CAPTIONER_TOKEN"


@dataclass(frozen=True, kw_only=True)
class ServerOptions(Bounded):
    """The server's port and limits."""

    port: Annotated[int, Meta(ge=0, le=65_535)] = 8000
    """Port to listen on; 0 for any that is free."""
    max_mb: Annotated[float, Meta(gt=0, le=1_000)] = 20.0
    """Largest request, in megabytes."""
    timeout: Positive = 30.0
    """Seconds in which a request must have arrived."""
    queue: Annotated[int, Meta(ge=1, le=10_000)] = 128
    """Requests under way at a time; further ones are answered 503 at once."""
    batch_wait: Annotated[float, Meta(ge=0, le=1_000)] = 5.0
    """Milliseconds that a request waits for others to be captioned with."""


if TYPE_CHECKING:
    MachineFlags = ModelOptions
    ServerFlags = ServerOptions
else:
    MachineFlags = flags(ModelOptions, ("device", "backend", "threads"))
    ServerFlags = flags(ServerOptions)


@dataclass(frozen=True, kw_only=True)
class ServeCommand:
    """Serve captions over HTTP, and a page to try them on in a browser.

    POST a picture to /v1/captions; /docs has the interface. Without --host only this machine can connect.
    """

    host: Annotated[str, arg("ADDRESS", "127.0.0.1")] = "127.0.0.1"
    """Address to listen on; 0.0.0.0 for all networks."""
    model: Annotated[Path | None, arg("MODEL", "the model that ships with captioner")] = None
    """Model: a folder, the name of one that ships, or hf://OWNER/NAME[@REVISION] on the Hugging Face Hub."""
    token: Annotated[str | None, arg("TOKEN", f"${_TOKEN_VARIABLE}, else none")] = None
    """What clients must send as Authorization: Bearer TOKEN."""
    name: Annotated[tuple[str, ...], arg("NAME...", "those of this machine; any with another --host")] = ()
    """Names by which clients may call the server, as behind a proxy."""
    batch_size: Annotated[int | None, arg("INT", "8, on a GPU 128")] = None
    """Largest batch."""
    server: ServerFlags = field(default_factory=ServerFlags)
    hardware: MachineFlags = field(default_factory=MachineFlags)

    def run(self) -> int:
        """Serve until SIGTERM or Ctrl-C."""
        check_batch_size(self.batch_size)
        options: ServerOptions = checked(ServerOptions, vars(self.server))
        from captioner.images.reading import quieten_pillow
        from captioner.inference import Captioner
        from captioner.server.app import create_app
        from captioner.server.captioning import Service
        from captioner.server.guard import LOCAL_NAMES, Limits
        from captioner.server.run import bind, serve

        folder = model_folder(self.model)
        machine: ModelOptions = checked(ModelOptions, {"model": folder, **vars(self.hardware)})
        quieten_pillow()
        listening = bind(self.host, options.port)
        captioner = Captioner.from_options(machine)
        is_local = self.host in LOCAL_NAMES
        token = self.token or os.environ.get(_TOKEN_VARIABLE) or None
        limits = Limits(
            max_body_bytes=int(options.max_mb * 1e6),
            body_timeout_s=options.timeout,
            token=token,
            names=(*LOCAL_NAMES, *self.name) if is_local or self.name else None,
        )
        service = Service(
            limits=limits,
            max_open=options.queue,
            batch_size=self.batch_size or captioner.backend.batch_size,
            wait_s=options.batch_wait / 1000,
        )
        if not is_local:
            who = "whoever has the token" if token else "anyone"
            sys.stderr.write(f"captioner: {who} who can reach {self.host} may use this server\n")
        shown = f"[{self.host}]" if ":" in self.host else self.host
        sys.stderr.write(f"captioner: http://{shown}:{listening.getsockname()[1]}/\n")
        sys.stderr.flush()
        app = create_app(captioner, service, folder=folder, name=public_name(self.model, folder))
        serve(app, listening, timeout_s=options.timeout)

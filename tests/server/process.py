"""`captioner serve` as a process of its own, and a client."""

import http.client
import json
import os
import re
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.conftest import ROOT


@dataclass
class Answer:
    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.body)


class Server:
    """`captioner serve` in a process of its own, on a free port."""

    def __init__(self, log: Path, *flags: str, **environment: str) -> None:
        self.log = log
        command = [sys.executable, "-m", "captioner", "serve", "--port", "0", "--backend", "onnx", *flags]
        with log.open("wb") as stderr:
            self.process = subprocess.Popen(
                command, cwd=ROOT, stderr=stderr, env={**os.environ, **environment}
            )
        self.port = self._wait_for_port()

    def _wait_for_port(self) -> int:
        deadline = time.monotonic() + 60
        while time.monotonic() < deadline and self.process.poll() is None:
            if match := re.search(r"http://\S+:(\d+)/\n", self.log.read_text()):
                return int(match[1])
            time.sleep(0.05)
        self.process.kill()
        self.process.wait()
        raise AssertionError(self.log.read_text())

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.port}/"

    def ask(
        self,
        path: str,
        body: bytes | None = None,
        *,
        method: str | None = None,
        headers: dict[str, str] | None = None,
    ) -> Answer:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=60)
        try:
            connection.request(method or ("GET" if body is None else "POST"), path, body, headers or {})
            answer = connection.getresponse()
            return Answer(answer.status, dict(answer.getheaders()), answer.read())
        finally:
            connection.close()

    def caption(self, picture: bytes, query: str = "") -> Answer:
        return self.ask(f"/v1/captions?{query}", picture, headers={"Content-Type": "image/jpeg"})

    def end(self) -> int:
        """Send SIGTERM, and wait."""
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(20)

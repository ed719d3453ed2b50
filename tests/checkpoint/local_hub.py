"""A small server on this machine that speaks those routes of the Hugging Face Hub that models need."""

import base64
import hashlib
import json
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread
from urllib.parse import unquote, urlsplit

Files = dict[str, bytes]


@dataclass
class LocalHub:
    """Repositories by name, each with the files of its commits; "main" is the last one."""

    address: str = ""
    commits: dict[str, dict[str, Files]] = field(default_factory=dict)
    requests: list[str] = field(default_factory=list)

    def commit(self, repository: str, files: Files) -> str:
        """Add a commit to a repository; returns its id."""
        commits = self.commits.setdefault(repository, {})
        commit = hashlib.sha1(f"{repository} {len(commits)}".encode()).hexdigest()
        commits[commit] = files
        return commit

    def find(self, repository: str, revision: str) -> str | None:
        commits = self.commits.get(repository, {})
        if revision == "main" and commits:
            return list(commits)[-1]
        return revision if revision in commits else None


@contextmanager
def serve_hub() -> Iterator[LocalHub]:
    hub = LocalHub()

    class Handler(BaseHTTPRequestHandler):
        def log_message(self, *_: object) -> None:
            pass

        def do_GET(self) -> None:
            self._read()

        def do_HEAD(self) -> None:
            self._read()

        def _read(self) -> None:
            path = unquote(urlsplit(self.path).path)
            hub.requests.append(f"{self.command} {path}")
            if match := re.fullmatch(r"/api/models/([^/]+/[^/]+)(?:/revision/(.+))?", path):
                self._info(match[1], match[2] or "main")
            elif match := re.fullmatch(r"/api/models/([^/]+/[^/]+)/tree/([^/]+)(?:/.*)?", path):
                commit = hub.find(match[1], match[2])
                files = hub.commits[match[1]][commit] if commit else {}
                tree = [
                    {"type": "file", "path": name, "size": len(content), "oid": _oid(content)}
                    for name, content in files.items()
                ]
                self._json(tree)
            elif match := re.fullmatch(r"/([^/]+/[^/]+)/resolve/([^/]+)/(.+)", path):
                self._file(*match.groups())
            else:
                self._refuse(404, "EntryNotFound")

        def _info(self, repository: str, revision: str) -> None:
            commit = hub.find(repository, revision)
            if repository not in hub.commits:
                self._refuse(404, "RepoNotFound")
            elif commit is None:
                self._refuse(404, "RevisionNotFound")
            else:
                names = [{"rfilename": name} for name in hub.commits[repository][commit]]
                info = {"id": repository, "sha": commit, "siblings": names, "private": False}
                self._json({"modelId": repository, **info})

        def _file(self, repository: str, revision: str, name: str) -> None:
            commit = hub.find(repository, revision)
            content = hub.commits.get(repository, {}).get(commit or "", {}).get(name)
            if commit is None or content is None:
                self._refuse(404, "EntryNotFound")
                return
            self._answer(200, content, {"ETag": f'"{_oid(content)}"', "X-Repo-Commit": commit})

        def do_POST(self) -> None:
            path = unquote(urlsplit(self.path).path)
            hub.requests.append(f"POST {path}")
            body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
            if path == "/api/validate-yaml":
                self._json({"errors": [], "warnings": []})
            elif "Authorization" not in self.headers:
                self._refuse(401, "Unauthorized")
            elif path == "/api/repos/create":
                asked = json.loads(body)
                name = (
                    f"{asked['organization']}/{asked['name']}" if "organization" in asked else asked["name"]
                )
                if name not in hub.commits:
                    hub.commit(name, {".gitattributes": b""})
                self._json({"url": f"{hub.address}/{name}", "name": name, "id": name})
            elif path.startswith("/api/models/") and "/preupload/" in path:
                files = json.loads(body)["files"]
                modes = [
                    {"path": one["path"], "uploadMode": "regular", "shouldIgnore": False} for one in files
                ]
                self._json({"files": modes})
            elif match := re.fullmatch(r"/api/models/([^/]+/[^/]+)/commit/main", path):
                lines = [json.loads(line) for line in body.splitlines() if line]
                files = {
                    line["value"]["path"]: base64.b64decode(line["value"]["content"])
                    for line in lines
                    if line["key"] == "file"
                }
                gone = {line["value"]["path"] for line in lines if line["key"] == "deletedFile"}
                before = hub.commits[match[1]].get(hub.find(match[1], "main") or "", {})
                kept = {name: content for name, content in before.items() if name not in gone}
                commit = hub.commit(match[1], kept | files)
                address = f"{hub.address}/{match[1]}/commit/{commit}"
                self._json({"success": True, "commitOid": commit, "commitUrl": address})
            else:
                self._refuse(404, "EntryNotFound")

        def _json(self, content: object) -> None:
            self._answer(200, json.dumps(content).encode(), {"Content-Type": "application/json"})

        def _refuse(self, status: int, code: str) -> None:
            self._answer(status, b"{}", {"X-Error-Code": code, "X-Error-Message": code})

        def _answer(self, status: int, content: bytes, headers: dict[str, str]) -> None:
            self.send_response(status)
            for name, value in headers.items():
                self.send_header(name, value)
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(content)

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        hub.address = f"http://127.0.0.1:{server.server_port}"
        Thread(target=server.serve_forever, daemon=True).start()
        try:
            yield hub
        finally:
            server.shutdown()


def _oid(content: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()

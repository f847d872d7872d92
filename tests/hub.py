"""A small Hugging Face hub on this machine, so that tests run the real client against it."""

import hashlib
import json
import re
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Literal
from urllib.parse import unquote, urlsplit

SHA = "0123456789abcdef0123456789abcdef01234567"
Kind = Literal["models", "datasets"]


class FakeHub:
    """Serves repositories from memory, on a port that stays the same while it is stopped."""

    def __init__(self) -> None:
        self.repositories: dict[tuple[str, str], dict[str, bytes]] = {}
        self.commits: dict[tuple[str, str], str] = {}
        self.gated: set[str] = set()
        self.requests: list[str] = []
        self._port = 0
        self.start()

    @property
    def url(self) -> str:
        """What HF_ENDPOINT is set to."""
        return f"http://127.0.0.1:{self._port}"

    def add(
        self,
        kind: Kind,
        name: str,
        files: dict[str, bytes],
        *,
        gated: bool = False,
        commit: str = SHA,
    ) -> None:
        """Publish ``files`` as the repository ``name``; "main" and ``commit`` name them, and no
        other revision does."""
        self.repositories[kind, name] = files
        self.commits[kind, name] = commit
        if gated:
            self.gated.add(name)

    def reset(self) -> None:
        """Forget every repository, and be reachable."""
        self.repositories.clear()
        self.commits.clear()
        self.gated.clear()
        self.requests.clear()
        if self._server is None:
            self.start()

    def start(self) -> None:
        """Listen again, at the same address."""
        hub = self

        class Handler(_Handler):
            def reply(self) -> None:
                hub.requests.append(self.path)
                hub.serve(self)

        server = ThreadingHTTPServer(("127.0.0.1", self._port), Handler)
        self._server: ThreadingHTTPServer | None = server
        self._port = server.server_address[1]
        threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True).start()

    def stop(self) -> None:
        """Refuse connections, as a machine without a network does."""
        assert self._server is not None
        self._server.shutdown()
        self._server.server_close()
        self._server = None

    def serve(self, request: "_Handler") -> None:
        """Answer one request as the hub would."""
        path = unquote(urlsplit(request.path).path)
        asked = re.fullmatch(
            r"/(?:api/(?P<kind>models|datasets)/|(?P<set>datasets/)?)(?P<name>[^/]+/[^/]+)"
            r"(?:/(?P<what>revision|tree|resolve|paths-info)/(?P<rev>[^/]+)/?(?P<file>.*))?",
            path,
        )
        if asked is None:
            return request.send(404, {"X-Error-Code": "EntryNotFound"})
        kind = asked["kind"] or ("datasets" if asked["set"] else "models")
        files = self.repositories.get((kind, asked["name"]))
        if files is None:
            return request.send(404, {"X-Error-Code": "RepoNotFound"})
        commit = self.commits[kind, asked["name"]]
        if asked["rev"] not in (None, "main", commit):
            return request.send(404, {"X-Error-Code": "RevisionNotFound"})
        if asked["what"] == "resolve":
            if asked["name"] in self.gated and asked["file"] != "README.md":  # cards are public
                return request.send(403, {"X-Error-Code": "GatedRepo"})
            body = files.get(asked["file"])
            if body is None:
                headers = {"X-Error-Code": "EntryNotFound", "X-Repo-Commit": commit}
                return request.send(404, headers)
            etag = f'"{hashlib.sha1(body).hexdigest()}"'
            return request.send(200, {"ETag": etag, "X-Repo-Commit": commit}, body)
        if asked["what"] == "tree":
            listed = _folder(files, asked["file"])
            return (
                request.send_json(listed)
                if listed
                else request.send(404, {"X-Error-Code": "EntryNotFound"})
            )
        if asked["what"] == "paths-info":
            wanted = request.form()
            return request.send_json([_entry(n, body) for n, body in files.items() if n in wanted])
        siblings = [{"rfilename": name} for name in files]
        return request.send_json(
            {"id": asked["name"], "sha": commit, "siblings": siblings, "private": False, "tags": []}
        )


def _entry(name: str, body: bytes) -> dict[str, object]:
    oid = hashlib.sha1(body).hexdigest()
    return {"type": "file", "path": name, "size": len(body), "oid": oid}


def _folder(files: dict[str, bytes], folder: str) -> list[dict[str, object]]:
    """What lies in a folder, itself: files, and the folders below it by name."""
    start = f"{folder}/" if folder else ""
    found: dict[str, dict[str, object]] = {}
    for name, body in files.items():
        if name.startswith(start):
            head, below, _ = name.removeprefix(start).partition("/")
            path = start + head
            found[path] = (
                {"type": "directory", "path": path, "size": 0, "oid": "0" * 40}
                if below
                else _entry(name, body)
            )
    return [*found.values()]


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.0"  # no connection outlives its reply, or stop() would not cut it

    def reply(self) -> None:
        raise NotImplementedError

    def do_GET(self) -> None:
        self.reply()

    def do_HEAD(self) -> None:
        self.reply()

    def do_POST(self) -> None:
        self.body = self.rfile.read(int(self.headers.get("Content-Length", 0))).decode()
        self.reply()

    def form(self) -> list[str]:
        """The paths that a POST asks about."""
        paths = json.loads(self.body)["paths"]
        return [paths] if isinstance(paths, str) else list(paths)

    def send_json(self, value: object) -> None:
        """200 with ``value``."""
        self.send(200, {"Content-Type": "application/json"}, json.dumps(value).encode())

    def send(self, status: int, headers: dict[str, str], body: bytes = b"") -> None:
        """A whole response."""
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:
        pass

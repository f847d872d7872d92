"""HTTP calls to a vLLM server: every one has a time limit, and all of them can be cut off."""

from __future__ import annotations

import json
import socket
import threading
from http.client import HTTPConnection, HTTPException, HTTPSConnection
from typing import Any
from urllib.parse import urlsplit

from tpcli.errors import RunFailedError, UsageError

CONNECT_SECONDS = 10.0
"""A server that does not accept a connection within this time is taken for dead."""


class RefusedError(Exception):
    """The server answered, with an HTTP error. ``status`` is its code."""

    def __init__(self, path: str, status: int, text: str) -> None:
        super().__init__(f"{path} answered {status}: {text}")
        self.status = status


class Calls:
    """Calls to one server, from any thread. Proxies are not used: the server is one's own."""

    def __init__(self, url: str, timeout: float) -> None:
        """Nothing is sent yet.

        Args:
            url: where the server listens: "http://host:8000".
            timeout: seconds that an answer may take.
        """
        self.url, self.timeout = url.rstrip("/"), timeout
        parts = urlsplit(self.url)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise UsageError(
                f"{url} is not the address of a server", hint="for instance http://localhost:8000"
            )
        self._kind = HTTPSConnection if parts.scheme == "https" else HTTPConnection
        self._place = (parts.hostname, parts.port)
        self._prefix = parts.path
        self._lock = threading.Lock()
        self._open: set[socket.socket] = set()
        self._is_cut = False

    def get(self, path: str) -> Any:
        """The JSON that ``path`` answers with. Errors are those of ``post``."""
        return self._call("GET", path, None)

    def post(self, path: str, body: dict[str, Any] | None = None) -> Any:
        """Send JSON; the JSON of the answer, None where it is empty.

        Raises:
            RefusedError: the server answered with an error.
            RunFailedError: there is no server, it died meanwhile, or it took too long.
        """
        return self._call("POST", path, body or {})

    def cut(self) -> None:
        """Break off every call under way, for good: each raises RunFailedError in its thread.

        The server gives up what nobody waits for any more.
        """
        with self._lock:
            self._is_cut = True
            for connection in self._open:
                _shut(connection)

    def _call(self, verb: str, path: str, body: dict[str, Any] | None) -> Any:
        host, port = self._place
        connection = self._kind(host, port, timeout=min(CONNECT_SECONDS, self.timeout))
        try:
            connection.connect()
            connection.sock.settimeout(self.timeout)
            return self._exchange(connection, verb, path, body)
        except TimeoutError as error:
            raise RunFailedError(
                f"the vLLM server at {self.url} did not answer {path} within {self.timeout:g} s",
                hint="see its log; a longer timeout may be needed for long responses",
            ) from error
        except (OSError, HTTPException, ValueError) as error:
            raise RunFailedError(
                f"the vLLM server at {self.url} is gone ({path}: {reason(error)})",
                hint="see its log and start it again; `tpcli resume` goes on from the last "
                "checkpoint",
            ) from error
        finally:
            connection.close()

    def _exchange(
        self, connection: HTTPConnection, verb: str, path: str, body: dict[str, Any] | None
    ) -> Any:
        wire = connection.sock
        with self._lock:
            if self._is_cut:
                raise ConnectionAbortedError("cut off")
            self._open.add(wire)
        try:
            sent = None if body is None else json.dumps(body).encode()
            connection.request(
                verb, self._prefix + path, sent, {"Content-Type": "application/json"}
            )
            response = connection.getresponse()
            text = response.read().decode(errors="replace")
        finally:
            with self._lock:
                self._open.discard(wire)
        if response.status != 200:
            raise RefusedError(path, response.status, " ".join(text.split())[:300])
        return json.loads(text) if text.strip() else None


def _shut(wire: socket.socket) -> None:
    try:
        wire.shutdown(socket.SHUT_RDWR)
    except OSError:
        return  # the other side was faster


def reason(error: Exception) -> str:
    """An error in one line."""
    return (str(error) or type(error).__name__).splitlines()[0]

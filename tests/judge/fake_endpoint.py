"""A real HTTP server on this machine that answers as a test says: well, wrongly, slowly, seldom or not at all."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, BinaryIO

import pytest

# The package `openai` waits so long before it repeats a call.
_NO_WAIT = {"retry-after-ms": "1"}


@dataclass
class Reply:
    """What the server sends back; `hang` says nothing until the test is over, `drop` closes the connection, `endless`
    sends its first bytes, and then the others again and again while somebody listens."""

    status: int = 200
    body: Any = None
    headers: dict[str, str] = field(default_factory=dict)
    hang: bool = False
    drop: bool = False
    endless: tuple[bytes, bytes] | None = None


def said(text: Any, finish: str = "stop") -> Reply:
    """A chat completion."""
    return Reply(body={"choices": [{"message": {"role": "assistant", "content": text}, "finish_reason": finish}]})


def failed(status: int, headers: dict[str, str] | None = None, **error: Any) -> Reply:
    return Reply(status, {"error": error}, headers or {})


def leave_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """No proxy between a test and its own server, no key, and no pause before the package `openai` repeats a call."""
    monkeypatch.setenv("no_proxy", "*")
    for name in ("OPENAI_API_KEY", "OPENAI_BASE_URL"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr("openai._base_client.MAX_RETRY_DELAY", 0.001, raising=False)


@dataclass
class Request:
    user: str
    body: dict[str, Any]
    headers: dict[str, str]
    path: str


Answering = Callable[[Request, int], Reply]
"""Given a request and how many came before it."""


class FakeEndpoint:
    def __init__(self, answering: Answering) -> None:
        self.answering = answering
        self.requests: list[Request] = []
        self._lock = threading.Lock()
        self._over = threading.Event()
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), self._handler())
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
        self._thread.start()

    @property
    def base_url(self) -> str:
        return f"http://127.0.0.1:{self._server.server_port}/v1"

    @property
    def users(self) -> list[str]:
        return [request.user for request in self.requests]

    def close(self) -> None:
        self._over.set()
        self._server.shutdown()
        self._server.server_close()

    def _send_endlessly(self, to: BinaryIO, first: bytes, again: bytes) -> None:
        with suppress(OSError):
            to.write(first)
            while not self._over.wait(0 if len(again) > 1000 else 0.005):
                to.write(again)

    def _handler(outer) -> type[BaseHTTPRequestHandler]:  # noqa: N805
        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                request = Request(
                    body["messages"][-1]["content"], body, {k.title(): v for k, v in self.headers.items()}, self.path
                )
                with outer._lock:
                    before = len(outer.requests)
                    outer.requests.append(request)
                reply = outer.answering(request, before)
                if reply.hang:
                    outer._over.wait()
                if reply.endless:
                    outer._send_endlessly(self.wfile, *reply.endless)
                if reply.hang or reply.drop or reply.endless:
                    self.close_connection = True
                    return
                content = reply.body if isinstance(reply.body, bytes) else json.dumps(reply.body).encode()
                self.send_response(reply.status)
                for name, value in {"Content-Length": str(len(content)), **_NO_WAIT, **reply.headers}.items():
                    self.send_header(name, value)
                self.end_headers()
                self.wfile.write(content)

            def log_message(self, *args: Any) -> None:
                pass

        return Handler


@contextmanager
def serving(answering: Answering) -> Iterator[FakeEndpoint]:
    endpoint = FakeEndpoint(answering)
    try:
        yield endpoint
    finally:
        endpoint.close()

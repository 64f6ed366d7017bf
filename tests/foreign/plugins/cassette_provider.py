"""A plugin for a suite with recorded cassettes: its requests go to Headgate, and the cassettes answer Headgate.

Where VCR would have answered a request itself, the request is sent to the gateway instead, over the client's own
transport. The gateway's provider is a server in this process that looks the answer up in the cassette of the test that
runs, with the suite's own matchers. So a test passes if what reached the provider is what was recorded, and what came
back down is as good as the recording. Requests to other hosts than the API's are VCR's, as always.

Runs in the foreign environment and imports nothing of ours.
"""

from __future__ import annotations

import json
import os
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

import vcr.stubs.httpx_stubs as stubs
from vcr.errors import UnhandledHTTPRequestError
from vcr.request import Request

if TYPE_CHECKING:
    from collections.abc import Callable

GATEWAY = urlsplit(os.environ["FOREIGN_GATEWAY"])
PROVIDER = int(os.environ["FOREIGN_PROVIDER_PORT"])
API = {"api.openai.com": "/v1", "chatgpt.com": "/backend-api/codex"}
"""Hosts that are the API, and what stands before the paths it shares."""
_now: dict[str, Any] = {}


def pytest_configure() -> None:
    """Replace what VCR puts into the clients, and serve."""
    stubs.vcr_handle_request = _instead_of(stubs.vcr_handle_request)
    stubs.vcr_handle_async_request = _instead_of(stubs.vcr_handle_async_request)
    server = ThreadingHTTPServer(("127.0.0.1", PROVIDER), _Provider)
    server.daemon_threads = True
    threading.Thread(target=server.serve_forever, daemon=True).start()


def _instead_of(make: Callable[..., Any]) -> Callable[..., Any]:
    """Takes a handler's place, sync or async: both hand the request on to the transport's own."""

    def make_ours(cassette: Any, real: Callable[..., Any], library: Any) -> Callable[..., Any]:
        from_cassette = make(cassette, real, library)

        def handle(self: Any, request: Any) -> Any:
            below = API.get(request.url.host)
            if below is None or not request.url.path.startswith(below):
                return from_cassette(self, request)
            _now["cassette"] = cassette
            path = b"/v1" + request.url.raw_path.removeprefix(below.encode())
            request.url = request.url.copy_with(scheme="http", host=GATEWAY.hostname, port=GATEWAY.port, raw_path=path)
            # Clients are kept from test to test, but each test has a loop of its own, and connections belong to one.
            request.headers.update({"host": GATEWAY.netloc, "connection": "close"})
            return real(self, request)

        return handle

    return make_ours


class _Provider(BaseHTTPRequestHandler):
    """Answers from the cassette of the moment."""

    protocol_version = "HTTP/1.1"

    def do_POST(self) -> None:
        """Any request; the recordings know only this method."""
        body = self.rfile.read(int(self.headers["content-length"]))
        try:
            answer = self._recorded(body)
        except UnhandledHTTPRequestError as error:
            message = {"error": {"message": f"not in the cassette: {error}", "type": "x", "param": None, "code": None}}
            self._send(400, json.dumps(message).encode())
            return
        content = answer["body"]["string"]
        self._send(answer["status"]["code"], content.encode() if isinstance(content, str) else content)

    def _recorded(self, body: bytes) -> Any:
        """The answer to this body, or to what it was before a stream's usage was asked for (docs/endpoints.md)."""
        cassette = _now["cassette"]
        try:
            return cassette.play_response(self._request(body))
        except UnhandledHTTPRequestError:
            asked = json.loads(body)
            if not isinstance(asked, dict) or asked.pop("stream_options", None) != {"include_usage": True}:
                raise
            return cassette.play_response(self._request(json.dumps(asked).encode()))

    def _request(self, body: bytes) -> Any:
        return Request(self.command, f"http://provider{self.path}", body, dict(self.headers))

    def _send(self, status: int, body: bytes) -> None:
        """The recordings have no fields left; what kind a body is shows in its beginning."""
        kind = "text/event-stream" if body.startswith((b"event:", b"data:")) else "application/json"
        self.send_response(status)
        self.send_header("content-type", kind)
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        """Nothing."""

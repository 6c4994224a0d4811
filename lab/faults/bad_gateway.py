"""An HTTP proxy in front of Label Studio, as a company's gateway is, that can be told to misbehave: for `bench faults`.

What always holds: it listens on a free port of 127.0.0.1; outside of its modes every request and answer is passed on as
it is. The modes:

    500    an error, and nothing is passed on
    502    passed on and done, but the answer is an error
    slow   passed on; the answer comes 1 to 20 s late
    half   passed on; the answer breaks off halfway
    late   what changes something is answered 504 at once, and is passed on and done some seconds later
"""

import random
import sys
import threading
import time
from contextlib import suppress
from http.client import HTTPConnection, HTTPException
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

_HOP_BY_HOP = {"connection", "content-length", "transfer-encoding", "keep-alive"}


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    block_on_close = False

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that was killed breaks its connection off: part of the game, and no traceback."""
        if not isinstance(sys.exception(), ConnectionError):
            super().handle_error(request, client_address)


class BadGateway:
    """The proxy, from its start until `stop`."""

    def __init__(self) -> None:
        gateway = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def log_message(self, format: str, *args: Any) -> None:
                pass

            def do_GET(self) -> None:
                gateway.handle(self)

            do_POST = do_DELETE = do_PATCH = do_GET  # noqa: N815

        self._upstream = ("127.0.0.1", 0)
        self._mode, self._share, self._rng = "", 0.0, random.Random(0)
        self._server = _Server(("127.0.0.1", 0), Handler)
        threading.Thread(target=self._server.serve_forever, daemon=True).start()

    def to(self, url: str) -> str:
        """Our address, from now on in front of that one."""
        host, port = url.removeprefix("http://").split(":")
        self._upstream = (host, int(port))
        return f"http://127.0.0.1:{self._server.server_port}"

    def misbehave(self, mode: str, share: float, seed: int) -> None:
        """Answers that share of the next requests, drawn from a seed, in one of the modes; "" is none."""
        self._rng = random.Random(seed)
        self._mode, self._share = mode, share

    def stop(self) -> None:
        self._server.shutdown()
        self._server.server_close()

    def handle(self, request: BaseHTTPRequestHandler) -> None:
        """Answers one request."""
        mode = self._mode if self._rng.random() < self._share else ""
        body = request.rfile.read(int(request.headers.get("Content-Length") or 0))
        if mode == "500":
            return self._answer(request, 500, [], b'{"detail": "internal error"}')
        if mode == "late" and request.command != "GET":
            asked = [request.command, request.path, body, dict(request.headers)]
            threading.Timer(self._rng.uniform(2.0, 6.0), self._pass_on, asked).start()
            return self._answer(request, 504, [], b"<html>Gateway Timeout</html>")
        connection = HTTPConnection(*self._upstream, timeout=120)
        headers = {name: value for name, value in request.headers.items() if name.lower() not in ("connection",)}
        try:
            connection.request(request.command, request.path, body, headers)
            answer = connection.getresponse()
            content = answer.read()
        except (OSError, HTTPException):
            return self._answer(request, 502, [], b"<html>Bad Gateway</html>")
        finally:
            connection.close()
        if mode == "502":
            return self._answer(request, 502, [], b"<html>Bad Gateway</html>")
        if mode == "slow":
            time.sleep(self._rng.uniform(1.0, 20.0))
        kept = [(name, value) for name, value in answer.getheaders() if name.lower() not in _HOP_BY_HOP]
        return self._answer(request, answer.status, kept, content, half=mode == "half")

    def _pass_on(self, command: str, path: str, body: bytes, headers: dict[str, str]) -> None:
        """What a server does whose client has given up."""
        connection = HTTPConnection(*self._upstream, timeout=120)
        with suppress(OSError, HTTPException):
            connection.request(command, path, body, headers)
            connection.getresponse().read()
        connection.close()

    def _answer(
        self,
        request: BaseHTTPRequestHandler,
        status: int,
        headers: list[tuple[str, str]],
        content: bytes,
        half: bool = False,
    ) -> None:
        with suppress(OSError):  # the client has given up
            request.send_response_only(status)
            for name, value in headers:
                request.send_header(name, value)
            request.send_header("Content-Length", str(len(content)))
            request.end_headers()
            request.wfile.write(content[: len(content) // 2] if half else content)
            request.wfile.flush()
        if half:
            request.close_connection = True

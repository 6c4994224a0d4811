"""Clients of the web process that send half a request and wait, for as long as they are let."""

import selectors
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from urllib.parse import urlsplit

HALVES = (
    b"POST /predict HTTP/1.1\r\nHost: 127.0.0.1\r\nX-Slow: ",
    b"GET /hea",
    b"POST /predict HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: 1000000\r\n\r\n{",
    b"GET /health HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\nGET /hea",
)
"""What they send, in turn; then a byte each second."""


@contextmanager
def slow_clients(url: str, count: int) -> Iterator[None]:
    """So many of them, each made anew where it is cut off, until the block ends.

    Args:
        url: The web process.
        count: At the same time.
    """
    parts = urlsplit(url)
    over = threading.Event()
    thread = threading.Thread(target=_keep, args=(str(parts.hostname), int(parts.port or 80), count, over))
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()


def _keep(host: str, port: int, count: int, over: threading.Event) -> None:
    made = 0
    with selectors.DefaultSelector() as selector:
        while not over.is_set():
            while len(selector.get_map()) < count:
                try:
                    client = socket.create_connection((host, port), timeout=2)
                except OSError:
                    break
                with suppress(OSError):
                    client.sendall(HALVES[made % len(HALVES)])
                made += 1
                client.setblocking(False)
                selector.register(client, selectors.EVENT_READ)
            for key, _ in selector.select(0.2):
                _look(selector, key.fileobj)  # type: ignore[arg-type]
            if int(time.monotonic() * 5) % 5 == 0:
                for key in list(selector.get_map().values()):
                    with suppress(OSError):
                        key.fileobj.send(b"a")  # type: ignore[union-attr]
        for key in list(selector.get_map().values()):
            key.fileobj.close()  # type: ignore[union-attr]


def _look(selector: selectors.BaseSelector, client: socket.socket) -> None:
    """Takes an answer, or the end."""
    try:
        if client.recv(1 << 16):
            return
    except BlockingIOError:
        return
    except OSError:
        pass
    selector.unregister(client)
    client.close()

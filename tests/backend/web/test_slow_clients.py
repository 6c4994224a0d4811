"""Clients that send slowly, or not to the end, against the real server: the others are answered all the same."""

import socket
import time
from collections.abc import Iterator
from contextlib import suppress

import pytest
import requests

from backend.web.patient import BODY_SECONDS, HEAD_SECONDS, MOST_HALF_OPEN, MOST_HEAD_BYTES
from tests.backend.backend_helpers import Backend, wait_until

PASSWORD = ("label", "studio")


@pytest.fixture
def port(backend: Backend) -> int:
    backend.serve(LASAGNA_BASIC_AUTH=":".join(PASSWORD))
    return int(backend.port)


@pytest.fixture
def slow(port: int) -> Iterator["Slow"]:
    clients = Slow(port)
    yield clients
    clients.close()


class Slow:
    """Connections that send something and then wait."""

    def __init__(self, port: int) -> None:
        self._port = port
        self.open: list[socket.socket] = []

    def send(self, data: bytes, count: int = 1) -> list[socket.socket]:
        made = []
        for _ in range(count):
            made.append(socket.create_connection(("127.0.0.1", self._port), timeout=5))
            made[-1].sendall(data)
        self.open += made
        return made

    def close(self) -> None:
        for each in self.open:
            each.close()


def is_closed(client: socket.socket) -> bool:
    """Whether the server has closed a connection; what it sent before is read away."""
    client.setblocking(False)
    try:
        while client.recv(65536):
            pass
    except BlockingIOError:
        return False
    except OSError:
        return True
    return True


def health(port: int) -> float:
    began = time.monotonic()
    assert requests.get(f"http://127.0.0.1:{port}/health", timeout=5).status_code == 200
    return time.monotonic() - began


HALVES = {
    "nothing": b"",
    "half a line": b"POST /predi",
    "half a head": b"POST /predict HTTP/1.1\r\nHost: 127.0.0.1\r\n",
    "a body without a password": b"POST /predict HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: 1000000\r\n\r\n{",
    "a chunk without a password": (
        b"POST /webhook HTTP/1.1\r\nHost: 127.0.0.1\r\nTransfer-Encoding: chunked\r\n\r\nffff\r\n{"
    ),
    "a request and a half": b"GET /health HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\nGET /health HT",
}


@pytest.mark.slow
@pytest.mark.parametrize("half", HALVES.values(), ids=HALVES)
def test_half_sent_requests_hold_nobody_up(slow: Slow, port: int, half: bytes) -> None:
    health(port)
    clients = slow.send(half, 60)
    took = [health(port) for _ in range(10)]
    assert max(took) < 1.0
    wait_until(lambda: all(map(is_closed, clients)), HEAD_SECONDS + 10, "the end of the slow clients")


@pytest.mark.slow
def test_drops_keep_no_connection_alive(slow: Slow, port: int) -> None:
    """A byte a second, for ever."""
    [client] = slow.send(b"GET /health HTTP/1.1\r\nX-Slow: ")
    began = time.monotonic()
    with suppress(OSError):
        while time.monotonic() - began < HEAD_SECONDS + 20:
            client.sendall(b"a")
            time.sleep(1)
    assert time.monotonic() - began < HEAD_SECONDS + 10


def test_an_address_has_so_many_half_open_connections(slow: Slow, port: int) -> None:
    clients = slow.send(b"GET /hea", MOST_HALF_OPEN + 5)
    wait_until(lambda: sum(map(is_closed, clients)) == 5, 5, "the end of the oldest")
    assert all(map(is_closed, clients[:5]))


def test_a_flood_of_clients_that_trickle_ends_nothing(slow: Slow, port: int) -> None:
    """What is dropped to make room may have sent a byte in the same moment."""
    for _ in range(4):
        clients = slow.send(b"GET /hea", 2 * MOST_HALF_OPEN)
        for client in clients * 3:
            with suppress(OSError):
                client.sendall(b"l")
        assert health(port) < 5.0


def test_a_head_that_does_not_end_is_cut_off(slow: Slow, port: int) -> None:
    [client] = slow.send(b"GET /health HTTP/1.1\r\nX-Long: ")
    with suppress(OSError):
        client.sendall(b"a" * (MOST_HEAD_BYTES + 1))
    wait_until(lambda: is_closed(client), 5, "the end")


@pytest.mark.slow
def test_a_body_comes_at_its_rate_or_not_at_all(slow: Slow, port: int) -> None:
    """With the password: what is slow but steady is read; what stands still is cut off, and the thread is free."""
    head = b"POST /setup HTTP/1.1\r\nHost: 127.0.0.1\r\nAuthorization: Basic bGFiZWw6c3R1ZGlv\r\n"
    head += b"Content-Type: application/json\r\nContent-Length: "
    [steady] = slow.send(head + b"400000\r\n\r\n")
    still = slow.send(head + b"400000\r\n\r\n{", 20)
    began = time.monotonic()
    for _ in range(8):
        steady.sendall(b" " * 50_000)
        time.sleep(0.2)
    answer = steady.recv(65536)
    assert answer.startswith(b"HTTP/1.1 400 ")  # blanks are no JSON
    wait_until(lambda: all(map(is_closed, still)), BODY_SECONDS + 10, "the end of those that stand still")
    assert time.monotonic() - began > BODY_SECONDS - 2
    assert health(port) < 1.0


def test_the_name_of_a_script_is_not_taken_from_a_stranger(port: int) -> None:
    answer = requests.get(f"http://127.0.0.1:{port}/health", headers={"SCRIPT_NAME": "/elsewhere"}, timeout=5)
    assert answer.status_code == 200


@pytest.mark.slow
def test_requests_after_one_another_and_in_pieces_are_answered(slow: Slow, port: int) -> None:
    [client] = slow.send(b"GET /hea")
    for piece in (b"lth HTTP/1.1\r\n", b"Host: 127.0.0.1\r\n", b"\r\n"):
        time.sleep(0.1)
        client.sendall(piece)
    assert client.recv(65536).startswith(b"HTTP/1.1 200")
    both = b"GET /health HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n"
    client.sendall(both + both)
    time.sleep(0.5)
    assert client.recv(1 << 20).count(b"HTTP/1.1 200") == 2


def test_an_endless_action_is_refused_and_kept_nowhere(port: int, backend: Backend) -> None:
    body = {"action": "A" * 20_000_000, "project": {"id": 3}}
    answer = requests.post(f"http://127.0.0.1:{port}/webhook", json=body, auth=PASSWORD, timeout=20)
    assert answer.status_code == 400
    assert len(answer.content) < 1000

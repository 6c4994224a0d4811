"""gunicorn's worker of threads, with which a slow client holds no thread before it has sent a whole head.

What always holds:

- A connection waits in the loop of the process, without a thread, until the head of its request is there: at most
  `HEAD_SECONDS`, `MOST_HALF_OPEN` of one address and `MOST_WAITING` in all; of more, the oldest are closed. The bytes
  stay in the kernel meanwhile (MSG_PEEK; SO_RCVLOWAT wakes the loop only when there are more).
- `/health` has threads of its own, so it is answered while all others wait.
- A body has to come at `BODY_RATE`, after `BODY_SECONDS` of patience, and an answer has to be taken in
  `ANSWER_SECONDS`; whoever is slower is cut off. Who has no credentials is answered before a body is read
  (`backend.web.guards`), and the connection is closed.

Why this and no other server: waitress reads whole bodies, of a gigabyte, before anybody is asked for a password, and
takes whoever sends a byte a minute for alive; gevent's worker would have every library here patched; a proxy in front
is one more service for everybody who types `lasagna serve`. Over TLS, which `lasagna serve` does not speak, this is
gunicorn's own worker.
"""

import errno
import json
import re
import socket
import time
from collections import Counter
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from functools import partial
from selectors import EVENT_READ
from typing import Any

from gunicorn.http.errors import ConfigurationProblem
from gunicorn.workers.gthread import TConn, ThreadWorker

HEAD_SECONDS = 10.0
MOST_HEAD_BYTES = 32 * 1024
MOST_HALF_OPEN, MOST_WAITING = 64, 500
BODY_SECONDS, BODY_RATE = 20.0, 100_000.0
"""Seconds until the first bytes must have come at this many bytes per second."""
ANSWER_SECONDS, LEAVING_SECONDS, UNREAD_SECONDS = 60.0, 2.0, 0.05
_HEALTH = re.compile(rb"(GET|HEAD) /(health)?[? ]")
_END_OF_HEAD = b"\r\n\r\n"


class _Socket(socket.socket):
    """A connection that is cut off where it is too slow."""

    due = 0.0

    def begin(self) -> None:
        """A request begins."""
        self.due = time.monotonic() + BODY_SECONDS

    def recv(self, size: int, flags: int = 0) -> bytes:
        if flags & socket.MSG_PEEK:
            return super().recv(size, flags)
        left = self.due - time.monotonic()
        if left <= 0:
            raise ConnectionResetError(errno.ECONNRESET, "the request comes too slowly")
        self.settimeout(left)
        try:
            data = super().recv(size, flags)
        except TimeoutError as error:
            raise ConnectionResetError(errno.ECONNRESET, "the request comes too slowly") from error
        self.due += len(data) / BODY_RATE
        return data

    def discard(self) -> int:
        """Forgets what has come, of a connection without blocking; how many bytes that were."""
        return len(super().recv(1 << 16))

    def sendall(self, data: Any, flags: int = 0) -> None:
        self.settimeout(ANSWER_SECONDS)
        try:
            super().sendall(data, flags)
        except TimeoutError as error:
            raise BrokenPipeError(errno.EPIPE, "the answer is not taken") from error


class PatientWorker(ThreadWorker):
    """The worker class of our server: `--worker-class backend.web.patient.PatientWorker` for gunicorn."""

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self._waiting: dict[TConn, float] = {}  # in the order of their deadlines
        self._leaving: dict[TConn, float] = {}

    def init_process(self) -> None:
        """Begins, with two threads that nothing but `/health` takes: others may all wait for Redis."""
        self._for_health = ThreadPoolExecutor(max_workers=2, thread_name_prefix="health")
        super().init_process()

    def accept(self, listener: Any) -> None:
        """Takes a new connection into the loop."""
        if self.cfg.is_ssl:
            super().accept(listener)
            return
        try:
            accepted, client = listener.accept()
        except OSError as error:
            if error.errno in (errno.EAGAIN, errno.ECONNABORTED, errno.EWOULDBLOCK):
                return
            raise
        self.nr_conns += 1
        ours = _Socket(accepted.family, accepted.type, accepted.proto, fileno=accepted.detach())
        self._wait(TConn(self.cfg, ours, client, listener.getsockname()))

    def on_client_socket_readable(self, conn: TConn, client: Any) -> None:
        """The next request of a connection that was kept begins."""
        if not isinstance(conn.sock, _Socket):
            super().on_client_socket_readable(conn, client)
            return
        self.poller.unregister(client)
        self.keepalived_conns.remove(conn)
        self._wait(conn)

    def handle(self, conn: TConn) -> Any:
        """In a thread: answers a request whose head is there."""
        if isinstance(conn.sock, _Socket):
            conn.sock.begin()
            conn.data_ready = True
        is_kept = super().handle(conn)
        if is_kept is True and isinstance(conn.sock, _Socket):
            begun = conn.parser.unreader.buf.getvalue()  # of the next request; the kernel has it no more
            return not begun or _END_OF_HEAD in begun
        return is_kept

    def _keepalive_after(self, conn: TConn, keepalive: bool) -> bool:
        """In a thread: whether the connection can be used again. A body that nobody read is not waited for."""
        if not isinstance(conn.sock, _Socket):
            return bool(super()._keepalive_after(conn, keepalive))
        conn.sock.due = time.monotonic() + UNREAD_SECONDS
        try:
            return keepalive and bool(conn.parser.finish_body(deadline=conn.sock.due))
        except ConnectionResetError:
            return False

    def handle_error(self, req: Any, client: Any, addr: Any, exc: BaseException) -> None:
        """Answers what never got to the application; where the path is not below SCRIPT_NAME, in words."""
        if not isinstance(exc, ConfigurationProblem):
            super().handle_error(req, client, addr, exc)
            return
        words = f"{exc}: give Label Studio the address with that prefix, or start gunicorn without SCRIPT_NAME"
        self.log.warning("%s", words)
        body = json.dumps({"error": words})
        head = ("HTTP/1.1 404 Not Found", "Connection: close", "Content-Type: application/json")
        answer = "\r\n".join((*head, f"Content-Length: {len(body)}", "", body))
        with suppress(OSError):
            client.sendall(answer.encode("ascii"))

    def finish_request(self, conn: TConn, future: "Future[Any]") -> None:
        """Back in the loop: keeps the connection, or closes it without waiting for the other side."""
        is_over = future.cancelled() or future.exception() is not None or not future.result()
        if is_over and isinstance(conn.sock, _Socket):
            self._leave(conn)
            return
        super().finish_request(conn, future)

    def murder_pending(self) -> None:
        """Once a second: closes what waited too long."""
        super().murder_pending()
        now = time.monotonic()
        for conn in [conn for conn, due in self._waiting.items() if due < now]:
            self._drop(conn)
        for conn in [conn for conn, due in self._leaving.items() if due < now]:
            self._drop(conn)

    def _wait(self, conn: TConn) -> None:
        conn.sock.setblocking(False)
        self._waiting[conn] = time.monotonic() + HEAD_SECONDS
        self.poller.register(conn.sock, EVENT_READ, partial(self._look, conn))
        self._make_room(conn)

    def _make_room(self, conn: TConn) -> None:
        of_address = Counter(map(_address, self._waiting))
        if of_address[_address(conn)] > MOST_HALF_OPEN:
            self._drop(next(other for other in self._waiting if _address(other) == _address(conn)))
        if len(self._waiting) > MOST_WAITING:
            self._drop(next(iter(self._waiting)))

    def _look(self, conn: TConn, _: Any) -> None:
        """More has come, or the other side has left."""
        if conn not in self._waiting:  # dropped by an event that came with this one
            return
        before = conn.sock.getsockopt(socket.SOL_SOCKET, socket.SO_RCVLOWAT)
        try:
            head = conn.sock.recv(MOST_HEAD_BYTES, socket.MSG_PEEK)
        except BlockingIOError:
            return
        except OSError:
            head = b""
        if _END_OF_HEAD in head:
            self.poller.unregister(conn.sock)
            del self._waiting[conn]
            conn.sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVLOWAT, 1)
            if _HEALTH.match(head):
                future = self._for_health.submit(self.handle, conn)
                future.add_done_callback(lambda done: self.method_queue.defer(self.finish_request, conn, done))
            else:
                self.enqueue_req(conn)
        elif len(head) < before or len(head) >= MOST_HEAD_BYTES:  # woken by nothing new: it has left
            self._drop(conn)
        else:
            conn.sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVLOWAT, len(head) + 1)

    def _leave(self, conn: TConn) -> None:
        """Says that there is no more, and takes what still comes for a moment: else the kernel would answer with a
        reset, which may overtake the answer (RFC 9112, 9.6)."""
        try:
            conn.sock.setblocking(False)
            conn.sock.shutdown(socket.SHUT_WR)
        except OSError:
            self.nr_conns -= 1
            conn.close()
            return
        self._leaving[conn] = time.monotonic() + LEAVING_SECONDS
        self.poller.register(conn.sock, EVENT_READ, partial(self._discard, conn))

    def _discard(self, conn: TConn, _: Any) -> None:
        if conn not in self._leaving:
            return
        try:
            if conn.sock.discard():
                return
        except BlockingIOError:
            return
        except OSError:
            pass
        self._drop(conn)

    def _drop(self, conn: TConn) -> None:
        self._waiting.pop(conn, None)
        self._leaving.pop(conn, None)
        with suppress(OSError, KeyError, ValueError):
            self.poller.unregister(conn.sock)
        self.nr_conns -= 1
        conn.close()


def _address(conn: TConn) -> str:
    return str(conn.client[0]) if isinstance(conn.client, tuple) else ""

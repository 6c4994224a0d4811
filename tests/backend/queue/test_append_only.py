"""A real Redis whose disk is full for a while, killed afterwards: what it holds must be there when it starts again."""

import resource
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import redis

from backend.queue.append_only import mend_append_only_file
from backend.queue.own_redis import redis_command
from backend.queue.services import free_port


class Server:
    """Redis with an append-only file. A limit on the size of its files stands in for a full disk: writes fall short."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.port = folder, free_port()
        self.process: subprocess.Popen[bytes] | None = None
        self.client = redis.Redis(port=self.port)

    def start(self) -> bool:
        """Whether it answers, and did not end."""
        options = ["--port", str(self.port), "--bind", "127.0.0.1", "--dir", str(self.folder), "--save", ""]
        command = [*map(str, redis_command()[:1]), *options, "--appendonly", "yes"]
        with (self.folder / "log").open(
            "ab"
        ) as log:  # not restored: a signal for too large files, which Python ignores
            self.process = subprocess.Popen(command, stdout=log, restore_signals=False)
        while self.process.poll() is None:
            try:
                return bool(self.client.ping())
            except redis.ConnectionError:
                pass
        return False

    def kill(self) -> None:
        if self.process is not None:
            self.process.kill()
            self.process.wait()

    def full(self, more: int) -> None:
        """Room for so many bytes more in the file that it writes."""
        size = max(path.stat().st_size for path in self.folder.rglob("*.incr.aof"))
        self._limit(size + more)

    def roomy(self) -> None:
        self._limit(resource.RLIM_INFINITY)

    def _limit(self, size: int) -> None:
        assert self.process is not None
        resource.prlimit(self.process.pid, resource.RLIMIT_FSIZE, (size, resource.RLIM_INFINITY))


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Server]:
    running = Server(tmp_path)
    assert running.start()
    yield running
    running.kill()


def write(client: redis.Redis, name: str, count: int) -> int:
    """Writes so many keys of a kilobyte; returns how many were refused."""
    refused = 0
    for i in range(count):
        try:
            client.set(f"{name}{i}", "x" * 1000)
        except redis.ResponseError as error:
            if "MISCONF" not in str(error):
                raise
            refused += 1
    return refused


def fill_and_free(server: Server, eventually: Callable[..., object]) -> None:
    """After a rewrite, as a server that has run for long has done one."""
    client = server.client
    write(client, "before", 50)
    client.bgrewriteaof()
    eventually(lambda: not client.info("persistence")["aof_rewrite_in_progress"])
    eventually(lambda: list(server.folder.rglob("*.2.incr.aof")))
    write(client, "after", 20)
    server.full(2500)
    eventually(lambda: write(client, "full", 5), what="a refusal")
    server.roomy()
    eventually(lambda: client.info("persistence")["aof_last_write_status"] == "ok")
    assert write(client, "freed", 50) == 0


def test_it_starts_again_with_everything(server: Server, eventually: Callable[..., object]) -> None:
    assert not mend_append_only_file(server.client)
    fill_and_free(server, eventually)
    assert mend_append_only_file(server.client)
    assert not mend_append_only_file(server.client), "once is enough"
    eventually(lambda: not server.client.info("persistence")["aof_rewrite_in_progress"])
    eventually(lambda: list(server.folder.rglob("*.3.incr.aof")))
    keys = server.client.dbsize()
    server.kill()
    assert server.start()
    assert server.client.dbsize() == keys


def test_nothing_is_done_while_it_cannot_write(server: Server, eventually: Callable[..., object]) -> None:
    write(server.client, "before", 50)
    eventually(lambda: list(server.folder.rglob("*.incr.aof")))
    server.full(2500)
    eventually(lambda: write(server.client, "full", 5), what="a refusal")
    assert not mend_append_only_file(server.client)
    server.roomy()
    eventually(lambda: server.client.info("persistence")["aof_last_write_status"] == "ok")
    assert mend_append_only_file(server.client)

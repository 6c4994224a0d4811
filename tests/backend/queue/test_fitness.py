"""A Redis that is set up so that it loses tasks, or does not answer: found, said, and survived."""

import json
import os
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import redis
import requests

from backend.queue.fitness import unfitness
from backend.queue.store import PREFIX, Project, Store, Work
from backend.web.readiness import readiness
from backend.worker.rq_worker import recover, work_until_stopped
from lasagna.settings import Settings
from tests.backend.backend_helpers import Backend, RedisServer, wait_until


@pytest.fixture
def server(tmp_path: Path) -> Iterator[RedisServer]:
    (tmp_path / "redis").mkdir()
    running = RedisServer(tmp_path / "redis")
    running.start()
    yield running
    running.stop()


def works(count: int) -> list[Work]:
    return [Work("3.1", number, f"/data/upload/3/{number}.png", "c" * 24, "nano-1") for number in range(1, count + 1)]


def test_a_redis_that_keeps_is_fit(server: RedisServer) -> None:
    assert unfitness(redis.Redis.from_url(server.url)) == []


@pytest.mark.parametrize("policy", ["allkeys-lru", "volatile-ttl", "allkeys-random"])
def test_one_that_throws_away_is_not_ready(server: RedisServer, policy: str) -> None:
    client = redis.Redis.from_url(server.url)
    client.config_set("maxmemory-policy", policy)
    assert unfitness(client) == []  # without a limit nothing is thrown away
    client.config_set("maxmemory", "100mb")
    assert [policy in reason for reason in unfitness(client)] == [True]
    check = readiness(Settings.load({"LASAGNA_REDIS_URL": server.url}), Store(client))["redis"]
    assert not check.ok
    assert policy in check.words


def test_one_that_refuses_to_write_is_not_ready(server: RedisServer) -> None:
    client = redis.Redis.from_url(server.url)
    client.config_set("maxmemory", "1")
    assert any("refuses to write" in reason for reason in unfitness(client))
    client.config_set("maxmemory", "0")
    client.replicaof("127.0.0.1", "1")
    assert any("refuses to write" in reason and "replica" in reason.lower() for reason in unfitness(client))


def test_ghosts_are_counted_and_removed_and_starve_nobody(server: RedisServer) -> None:
    """1000 of 1010 records are thrown away, as allkeys-lru did; the ten that are left get their job again."""
    client = redis.Redis.from_url(server.url)
    store = Store(client)
    asked = works(1010)
    store.register(asked, 0)
    client.delete(*(f"{PREFIX}work:{work.key}" for work in asked[:1000]))
    left = [work.key for work in asked[1000:]]
    for key in left:  # a while ago
        client.hset(f"{PREFIX}work:{key}", "changed", "1")
    assert recover(store, 4) == 10
    assert store.counts()["queued"] == 10
    assert sorted(store.keys("queued")) == sorted(left)
    assert client.hget(f"{PREFIX}counters", "lost") == b"1000"
    assert store.forget(left) == 0  # what has a record stays


@pytest.mark.slow
def test_health_is_answered_while_redis_stands_still(backend: Backend, server: RedisServer) -> None:
    """A Redis that takes connections and says nothing: half a minute of requests of every kind wait for it."""
    backend.serve(LASAGNA_REDIS_URL=server.url)
    assert server._process is not None
    process = server._process
    os.kill(process.pid, signal.SIGSTOP)
    try:

        def ask() -> None:
            with suppress(requests.RequestException):
                requests.get(f"{backend.url}/versions", timeout=30)

        for _ in range(60):
            threading.Thread(target=ask, daemon=True).start()
        time.sleep(1)
        for _ in range(10):
            began = time.monotonic()
            answer = requests.get(f"{backend.url}/health", timeout=5)
            assert time.monotonic() - began < 1.0
            assert answer.json()["redis"].startswith("down")
            time.sleep(0.5)
    finally:
        os.kill(process.pid, signal.SIGCONT)
    wait_until(lambda: requests.get(f"{backend.url}/health", timeout=5).json()["redis"] == "up", 40, "Redis")


@pytest.mark.slow
@pytest.mark.parametrize("wait", [0.5, 4.0])
def test_a_worker_that_is_told_to_end_in_an_outage_ends(backend: Backend, server: RedisServer, wait: float) -> None:
    worker = backend.worker(LASAGNA_REDIS_URL=server.url)
    server.stop()
    wait_until(lambda: "Redis is gone" in worker.output() or "connect" in worker.output(), 40, "the outage")
    time.sleep(wait)
    worker.process.send_signal(signal.SIGTERM)
    worker.process.wait(20)


def test_the_uids_of_a_number_are_found_without_looking_through_all(server: RedisServer) -> None:
    store = Store(redis.Redis.from_url(server.url))
    for uid in ("3.100", "3.200", "4.50"):
        store.keep_project(uid, Project("http://127.0.0.1:1"))
    store.keep_project("3.100", Project("http://127.0.0.1:2"))  # an older one again
    assert (store.uids("3"), store.uids("4"), store.uids("5")) == (["3.200", "3.100"], ["4.50"], [])
    store.keep_project("5.1", Project())
    assert store.uids("5") == ["5.1"]
    before = store.redis.info("commandstats").get("cmdstat_scan", {}).get("calls", 0)
    for _ in range(50):
        store.uids("3"), store.uids("6")
    after = store.redis.info("commandstats").get("cmdstat_scan", {}).get("calls", 0)
    assert after - before <= 1
    store.redis.delete(f"{PREFIX}project:3.200")  # ninety days later
    assert store.uids("3") == ["3.100"]


def test_uids_that_an_earlier_release_kept_are_found(server: RedisServer) -> None:
    store = Store(redis.Redis.from_url(server.url))
    store.redis.hset(f"{PREFIX}uids", mapping={"3": "3.200"})
    for uid in ("3.100", "3.200"):
        store.redis.set(f"{PREFIX}project:{uid}", json.dumps({"url": "http://127.0.0.1:1", "token": "t"}))
    assert store.uids("3") == ["3.200", "3.100"]
    store.redis.delete(f"{PREFIX}uids:3")
    store.keep_project("3.300", Project("http://127.0.0.1:2"))  # before anybody looked
    assert store.uids("3") == ["3.300", "3.200", "3.100"]


@pytest.mark.slow
def test_a_signal_between_two_connections_is_not_forgotten() -> None:
    """RQ's handler, of a worker that was busy when Redis went away, notes the signal there and raises nothing."""

    class Busy:
        was_asked_to_stop = False

        def work(self, logging_level: str) -> None:
            raise redis.ConnectionError("gone")

    first, made = Busy(), 0

    def make() -> Any:
        nonlocal made
        made += 1
        if made == 1:
            return first
        assert made == 2, "it goes on trying"
        first.was_asked_to_stop = True
        raise redis.ConnectionError("still gone")

    work_until_stopped(make)
    assert made == 2

"""Fixtures of the backend's tests: real Redis, real processes, and a Label Studio that fails on demand."""

import itertools
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import redis

from backend.queue.heartbeat import beating
from backend.queue.store import Store, connect
from backend.registry.known_projects import SERVERS
from backend.registry.registry import Registry
from backend.worker.delivery import Delivery
from lasagna.checkpoint.folder import Calibration, write_calibration
from lasagna.settings import Settings, registry_folder
from tests.backend.backend_helpers import PREDICTION, Backend, RedisServer, StubLabelStudio

_databases = itertools.cycle(range(1, 16))


@pytest.fixture
def redis_db(redis_url: str) -> Iterator[str]:
    """Address of an empty database of the session's Redis; and the session's registry knows no projects either."""
    (registry_folder(Settings.load()) / SERVERS).unlink(missing_ok=True)
    url = redis_url.rsplit("/", 1)[0] + f"/{next(_databases)}"
    client = redis.Redis.from_url(url)
    client.flushdb()
    yield url
    client.flushdb()
    client.close()


@pytest.fixture
def store(redis_db: str) -> Iterator[Store]:
    client = connect(redis_db)
    yield Store(client)
    client.close()


@pytest.fixture
def redis_server(tmp_path: Path) -> Iterator[RedisServer]:
    server = RedisServer(tmp_path)
    server.start()
    yield server
    server.stop()


@pytest.fixture
def stub() -> Iterator[StubLabelStudio]:
    server = StubLabelStudio()
    server.start()
    yield server
    server.stop()


@pytest.fixture(scope="session")
def checkpoint(random_checkpoint: Path) -> Path:
    """Folder of a tiny random model."""
    return random_checkpoint


@pytest.fixture
def backend(tmp_path: Path, redis_db: str, checkpoint: Path) -> Iterator[Backend]:
    """Not started: `serve()` and `worker()` start its processes."""
    running = Backend(tmp_path, redis_db, checkpoint)
    yield running
    running.end()


@pytest.fixture
def settings(redis_db: str, checkpoint: Path) -> Settings:
    return Settings.load({"LASAGNA_REDIS_URL": redis_db, "LASAGNA_MODEL": str(checkpoint)})


@pytest.fixture
def registry(tmp_path: Path) -> Registry:
    return Registry(tmp_path / "registry")


@pytest.fixture
def make(checkpoint: Path, tmp_path: Path) -> Callable[[float], Path]:
    """A function that makes a checkpoint folder, another one for every temperature."""

    def copy(temperature: float) -> Path:
        folder = tmp_path / f"made-{temperature}"
        if not folder.exists():
            shutil.copytree(checkpoint, folder)
            write_calibration(folder, Calibration(temperature=temperature))
        return folder

    return copy


@pytest.fixture
def working(store: Store, redis_db: str) -> Iterator[None]:
    """Finishes what is queued and posts it, like a worker without a model; tasks 3, 6, 9... fail."""
    store.publish_model({"version": "tiny-1"})
    delivery = Delivery(Settings.load({"LASAGNA_REDIS_URL": redis_db}), store)
    delivery.start()

    def work() -> None:
        for key, found in store.start(store.keys("queued"), "job"):
            if found.task and found.task % 3 == 0:
                store.fail(key, "the image is broken")
            else:
                store.finish(key, {**PREDICTION, "model_version": found.version})

    with beating(0.02, work, "worker"):
        yield
    delivery.stop()

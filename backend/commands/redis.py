"""How the commands find Redis, and what they say where it fails."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import click

from lasagna.errors import ServiceError
from lasagna.settings import Settings

if TYPE_CHECKING:
    from backend.queue.store import Project

redis_option = click.option(
    "--redis-url", metavar="URL", help="Redis, e.g. redis://127.0.0.1:6379/0.  [default: one that lasagna runs itself]"
)


def redis_address(settings: Settings) -> str:
    """The address of Redis: the one that is set, else our own, started if it does not run yet."""
    from backend.queue.own_redis import ensure_redis

    return ensure_redis(settings)


def open_store(settings: Settings) -> Any:
    """The records in Redis. Raises ServiceError where it cannot be reached."""
    from backend.queue.store import Store, connect

    return Store(reached(connect(redis_address(settings))))


def reached(connection: Any) -> Any:
    """A client of Redis, once it has answered. Raises ServiceError where it does not."""
    import redis

    try:
        connection.ping()
    except redis.RedisError as error:
        raise ServiceError(f"Redis cannot be reached ({error}); start it, or correct --redis-url") from error
    return connection


@contextmanager
def redis_in_words() -> Iterator[None]:
    """An error of Redis in the middle of a command as one that the command line shows without a traceback."""
    import redis

    try:
        yield
    except redis.RedisError as error:
        raise ServiceError(f"Redis is gone or refuses ({error}); then run the same command again") from error


def noted_project(settings: Settings, uid: str) -> "Project | None":
    """What a backend that runs here was told of a project, such as the address that its Label Studio calls itself;
    None where none runs, or none was told."""
    import redis

    from backend.queue.own_redis import running_redis
    from backend.queue.store import Store, connect

    address = running_redis(settings)
    try:
        return Store(connect(address)).project(uid) if address else None
    except redis.RedisError:
        return None

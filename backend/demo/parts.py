"""The running parts of `lasagna demo`, and what comes of its photos.

What always holds: the processes are the ones of production (`lasagna serve`, `lasagna worker`, a Redis, a Label
Studio), each on a free port of 127.0.0.1 with its log in the demo's own folder; all of them end with this process,
however it ends.
"""

import fcntl
import os
import signal
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

import requests
from rich.console import Console

from backend.demo.local_label_studio import LocalLabelStudio, Projects
from backend.instant.taught import TaughtNames
from backend.queue.own_redis import ensure_redis, release_redis
from backend.queue.services import Service, free_port, port_is_free
from backend.queue.store import Store, connect
from backend.registry.registry import Registry
from backend.studio.project_id import project_uid
from backend.studio.version_names import base_version
from lasagna.errors import LasagnaError, ServiceError
from lasagna.labels.configuration import parse_label_config
from lasagna.progress import progress_bar
from lasagna.settings import Settings, registry_folder

TITLE = "LaSagnA demo"
_START_SECONDS = 600.0
_PORT = 8080


@dataclass
class PhotoOutcome:
    """What came of one photo. `present` holds probability by class; `unknown` classes the model was never taught;
    `error` is the reason where there is no answer."""

    name: str
    task: int
    present: dict[str, float] = field(default_factory=dict)
    absent: int = 0
    unknown: tuple[str, ...] = ()
    seconds: float = 0.0
    model_version: str | None = None
    error: str | None = None


class Demo:
    """The running parts. As a context manager it starts them all, and stops them all on the way out."""

    def __init__(self, settings: Settings, folder: Path, console: Console, port: int | None) -> None:
        self.settings = settings
        self.folder = folder
        self.console = console
        self._given_port = port
        self._stack = ExitStack()  # how to stop what has been started, the last first
        self.tasks: list[int] = []
        self.services: list[Service] = []
        self.label_studio: LocalLabelStudio
        self.api: Projects
        self.store: Store
        self.backend_url = ""
        self.environ: dict[str, str] = {}
        self.model_version = ""
        self.about_model: list[str] = []

    def __enter__(self) -> "Demo":
        try:
            self._start()
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *error: object) -> None:
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            signal.signal(number, signal.SIG_IGN)  # each stop below is bounded; a second Ctrl-C would cut it short
        self._stack.close()

    def _start(self) -> None:
        # Label Studio is the slowest: it starts while the others do.
        port = self._given_port or (_PORT if port_is_free(_PORT) else free_port())
        self.label_studio = LocalLabelStudio(self.settings, self.folder / "label-studio", port=port)
        self._stack.callback(self.label_studio.stop)
        self.services.append(self.label_studio.service)
        with self._step("Redis"):
            self._stack.callback(release_redis, self.settings)
            self.store = Store(connect(ensure_redis(self.settings), timeout=30.0))
        backend_port = free_port()
        self.backend_url = f"http://127.0.0.1:{backend_port}"
        self.environ = {
            **os.environ,
            "LASAGNA_STATE_DIR": str(self.folder),
            "LASAGNA_REGISTRY": "",  # the demo's own: its projects have the numbers of others
            "LASAGNA_MODEL": self.settings.model,
            "LASAGNA_HOST": "127.0.0.1",
            "LASAGNA_PORT": str(backend_port),
            "LASAGNA_BASIC_AUTH": "",
            "LASAGNA_LABEL_STUDIO_URL": self.label_studio.url,
            "LASAGNA_LABEL_STUDIO_TOKEN": self.label_studio.login.token,
        }

        web, worker = self.command("serve"), self.command("worker")
        self.services += [web, worker]
        with self._step(f"Worker with the model {self.settings.model}"):
            self.wait_for_worker(worker)
        for line in self.about_model:
            self.console.print(f"  {line}", style="yellow", highlight=False, markup=False, soft_wrap=True)
        with self._step("Backend"):
            self._wait(web, lambda: not port_is_free(backend_port))
        with self._step("Label Studio"):
            self._wait(self.label_studio.service, self.label_studio.answers)
            self.api = self.label_studio.api()

    def command(self, *arguments: str) -> Service:
        """Starts a `lasagna` command with the settings of these parts; it ends with them."""
        program = [sys.executable, "-c", "from lasagna.commands.cli import main; main()", *arguments]
        service = Service(f"lasagna {arguments[0]}", program, env=self.environ, log=self.folder / f"{arguments[0]}.log")
        self._stack.callback(service.stop)
        return service

    def wait_for_worker(self, worker: Service) -> None:
        """Until it has loaded its model."""
        self._wait(worker, lambda: self._loaded_by(worker.process.pid))

    def _wait(self, service: Service, ready: Callable[[], bool]) -> None:
        """Waits for one part, and notices at once if any has ended."""

        def looked() -> bool:
            self.check()
            return ready()

        service.wait_until(looked, _START_SECONDS)

    def check(self) -> None:
        for service in self.services:
            service.check()

    def _loaded_by(self, pid: int) -> bool:
        model = self.store.model()
        if model is None or model.get("pid") != pid:  # else it is what an earlier run left in Redis
            return False
        self.model_version, self.about_model = model["version"], model.get("about", [])
        return True

    @contextmanager
    def _step(self, what: str) -> Iterator[None]:
        started = time.monotonic()
        with self.console.status(f"{what} ..."):
            yield
        self.console.print(f"[green]ready[/] {what} [dim]({time.monotonic() - started:.1f} s)", highlight=False)

    def create_project(self, config: str, photos: Sequence[Path]) -> int:
        """A project with the photos as tasks and the backend connected; returns its id.

        Projects of earlier demos in which nobody annotated anything are removed.
        """
        with self._step(f"Project with {len(photos)} photo{'s' * (len(photos) != 1)}"):
            for project in self.api.projects(TITLE):
                if not project.get("total_annotations_number"):
                    self.api.delete_project(project["id"])
            project_id = self.api.create_project(f"{TITLE} {time.strftime('%Y-%m-%d %H:%M')}", config)
            self.tasks = self.api.upload(project_id, photos)
            if len(self.tasks) != len(photos):
                raise ServiceError(f"Label Studio made {len(self.tasks)} tasks of {len(photos)} photos; see its log")
            self.api.connect_backend(project_id, self.backend_url, interactive=True)
        return project_id

    def predict(self, project: int, photos: Sequence[Path], config: str, timeout: float) -> list[PhotoOutcome]:
        """Opens every task as an annotator does, which makes Label Studio ask the backend, and collects the answers."""
        plan = parse_label_config(config)
        taught = TaughtNames(self.settings, Registry(registry_folder(self.settings)))
        uid, deadline = project_uid(self.api.project(project)), time.monotonic() + timeout
        answers = []
        with progress_bar(self.console, "Pre-labelling", len(photos)) as advance:
            for photo, task in zip(photos, self.tasks, strict=True):
                answer = PhotoOutcome(photo.name, task)
                started = time.monotonic()
                prediction = self._prediction(project, task, answer, deadline)
                answer.seconds = time.monotonic() - started
                if prediction is not None:
                    answer.model_version = base_version(prediction["model_version"])
                    answer.present = present_classes(prediction["result"])
                    answer.unknown = tuple(taught.unknown_of(uid, plan, prediction["model_version"]))
                    answer.absent = len(plan.classes) - len(answer.present) - len(answer.unknown)
                answers.append(answer)
                advance()
        return answers

    def _prediction(self, project: int, task: int, answer: PhotoOutcome, deadline: float) -> dict[str, Any] | None:
        try:
            self.api.open_task(project, task)
            while True:
                for prediction in self.api.predictions(task):
                    if base_version(prediction["model_version"]) == self.model_version:
                        return prediction
                answer.error = self._failure(task)
                if answer.error is not None:
                    return None
                if time.monotonic() > deadline:
                    answer.error = "no prediction within the time limit (--timeout)"
                    return None
                self.check()
                time.sleep(0.2)
        except LasagnaError as error:
            self.check()
            answer.error = str(error)
            return None

    def _failure(self, task: int) -> str | None:
        for fields in self.store.fields(self.store.keys("failed")):
            if fields.get("task") == str(task):
                return fields.get("reason") or "failed without a reason"
        return None

    def serving(self, project: int) -> str:
        """The version that the backend would answer a project with now."""
        answer = requests.get(f"{self.backend_url}/versions", params={"project": str(project)}, timeout=10)
        return str(answer.json()["versions"][0])

    def stay(self) -> None:
        """Until a signal comes; raises ServiceError if a part ends by itself."""
        while True:
            self.check()
            time.sleep(0.5)


def present_classes(result: Sequence[dict[str, Any]]) -> dict[str, float]:
    """The classes that have a region in a prediction, with their probability, the most certain first."""
    found: dict[str, float] = {}
    for region in result:
        for label in region["value"].get(region["type"], []):
            if region["type"] != "choices":
                found[label] = max(found.get(label, 0.0), float(region.get("score") or 0.0))
    return dict(sorted(found.items(), key=lambda item: -item[1]))


@contextmanager
def only_one(folder: Path) -> Iterator[IO[str]]:
    """Holds the demo's folder; raises ServiceError if another demo does."""
    with (folder / "running").open("a+") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            file.seek(0)
            where = file.read() or "not ready yet"
            raise ServiceError(
                f"a demo is running already ({where}); end it with Ctrl-C first, or set LASAGNA_STATE_DIR to another "
                "folder for a second one"
            ) from None
        file.truncate(0)
        yield file
        file.truncate(0)

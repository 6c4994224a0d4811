"""`lasagna demo`: everything at once on this machine, up to photos in Label Studio with the model's regions.

What always holds: the processes are the ones of production (`lasagna serve`, `lasagna worker`, a Redis, a Label
Studio), each on a free port of 127.0.0.1 with its log in the demo's own folder, `demo` below the state folder; all of
them end with this process, however it ends. The folder is kept, so a later start is quicker and annotations survive.
"""

import fcntl
import json
import os
import signal
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

import click
from rich.console import Console
from rich.table import Table

from lasagna.errors import ConfigError, LasagnaError, ServiceError
from lasagna.settings import Settings

if TYPE_CHECKING:
    from backend.demo.local_label_studio import LocalLabelStudio, Projects
    from backend.queue.services import Service
    from backend.queue.store import Store

TITLE = "LaSagnA demo"
_START_SECONDS = 600.0
# Photos in scikit-image's wheel with licences that allow any use (see its data/README): a class or two in each is
# present, the others are absent.
_PHOTOS = ("astronaut.png", "chelsea.png", "coffee.png", "motorcycle_left.png", "rocket.jpg")
_PORT = 8080


class _StoppedError(BaseException):
    """SIGTERM or SIGHUP came: end as after Ctrl-C."""


@dataclass
class PhotoOutcome:
    """What came of one photo. `present` holds probability by class; `error` is the reason where there is no answer."""

    name: str
    task: int
    present: dict[str, float] = field(default_factory=dict)
    absent: int = 0
    seconds: float = 0.0
    model_version: str | None = None
    error: str | None = None


@click.command(
    epilog="""\b
Examples:
  lasagna demo
  lasagna demo --images ~/photos --labels "dog,grass,tree,sky"
  lasagna demo --label-config label_config/polygon.xml
  lasagna demo --exit --json demo.json

\b
Exit code with --exit: 0 every photo has its prediction, 1 some have not, 2 something could not be started."""
)
@click.option(
    "--images",
    type=click.Path(path_type=Path),
    help="Folder or image file.  [default: photos that come with scikit-image]",
)
@click.option("--labels", metavar="A,B,...", help="Classes to ask for.  [default: those of label_config/demo.xml]")
@click.option(
    "--label-config", type=click.Path(path_type=Path, dir_okay=False), help="Labelling configuration of Label Studio."
)
@click.option("--model", help="Checkpoint: a shipped name, a folder or a hub id.  [default: nano]")
@click.option("--port", type=click.IntRange(1, 65535), help="Port of Label Studio.  [default: 8080, or a free one]")
@click.option("--exit", "exit_after", is_flag=True, help="End after the table.")
@click.option(
    "--json",
    "json_file",
    type=click.Path(path_type=Path, dir_okay=False, writable=True),
    help="Write the summary to this file.",
)
@click.option(
    "--timeout",
    type=click.FloatRange(min=1),
    default=600.0,
    show_default=True,
    help="Seconds to wait for the predictions of all photos.",
)
def demo(
    images: Path | None,
    labels: str | None,
    label_config: Path | None,
    model: str | None,
    port: int | None,
    exit_after: bool,
    json_file: Path | None,
    timeout: float,
) -> None:
    """Show photos in a real Label Studio, pre-labelled by the model. Ctrl-C ends everything."""
    from backend.queue.services import state_dir
    from lasagna.checkpoint.folder import find_checkpoint

    settings = Settings.load(model=model)
    find_checkpoint(settings.model)  # an unknown one is named before anything starts
    folder = state_dir(settings) / "demo"
    folder.mkdir(mode=0o700, exist_ok=True)
    settings = Settings.load(model=model, state_dir=str(folder))
    config = _label_config(labels, label_config)
    photos = _photos(images)
    if json_file is not None and not json_file.absolute().parent.is_dir():
        raise ConfigError(f"--json {json_file}: there is no folder {json_file.absolute().parent}; make it first")
    console = Console()
    started = time.monotonic()
    ready = False
    try:
        with _only_one(folder) as running, _signals(), Demo(settings, folder, console, port) as parts:
            project = parts.create_project(config, photos)
            answers = parts.predict(project, photos, config, timeout)
            summary = _summary(parts, project, answers, time.monotonic() - started)
            running.write(summary["url"])
            running.flush()
            if json_file is not None:
                json_file.write_text(json.dumps(summary, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
            _show(console, summary, answers, parts.label_studio.login.password)
            ready = True
            if not exit_after:
                console.print("\nCtrl-C ends everything.")
                parts.stay()
    except (KeyboardInterrupt, _StoppedError):
        console.print("Stopped; nothing is left running.")
        if not ready:
            sys.exit(130)
    if exit_after and not summary["complete"]:
        sys.exit(1)


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
        from backend.demo.local_label_studio import LocalLabelStudio
        from backend.queue.own_redis import ensure_redis, release_redis
        from backend.queue.services import free_port, port_is_free
        from backend.queue.store import Store, connect

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
        with self._step("Backend"):
            self._wait(web, lambda: not port_is_free(backend_port))
        with self._step("Label Studio"):
            self._wait(self.label_studio.service, self.label_studio.answers)
            self.api = self.label_studio.api()

    def command(self, *arguments: str) -> "Service":
        """Starts a `lasagna` command with the settings of these parts; it ends with them."""
        from backend.queue.services import Service

        program = [sys.executable, "-c", "from lasagna.commands.cli import main; main()", *arguments]
        service = Service(f"lasagna {arguments[0]}", program, env=self.environ, log=self.folder / f"{arguments[0]}.log")
        self._stack.callback(service.stop)
        return service

    def wait_for_worker(self, worker: "Service") -> None:
        """Until it has loaded its model."""
        self._wait(worker, lambda: self._loaded_by(worker.process.pid))

    def _wait(self, service: "Service", ready: Callable[[], bool]) -> None:
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
        self.model_version = model["version"]
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
        with self._step(f"Project with {len(photos)} photos"):
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
        from lasagna.labels.configuration import parse_label_config
        from lasagna.progress import progress_bar

        plan = parse_label_config(config)
        deadline = time.monotonic() + timeout
        answers = []
        with progress_bar(self.console, "Pre-labelling", len(photos)) as advance:
            for photo, task in zip(photos, self.tasks, strict=True):
                answer = PhotoOutcome(photo.name, task)
                started = time.monotonic()
                prediction = self._prediction(project, task, answer, deadline)
                answer.seconds = time.monotonic() - started
                if prediction is not None:
                    answer.model_version = prediction["model_version"]
                    answer.present = present_classes(prediction["result"])
                    answer.absent = len(plan.classes) - len(answer.present)
                answers.append(answer)
                advance()
        return answers

    def _prediction(self, project: int, task: int, answer: PhotoOutcome, deadline: float) -> dict[str, Any] | None:
        try:
            self.api.open_task(project, task)
            while True:
                for prediction in self.api.predictions(task):
                    if prediction["model_version"] == self.model_version:
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


def _label_config(labels: str | None, path: Path | None) -> str:
    """The XML of the project. Raises ConfigError or QueryError for one that cannot be used."""
    from importlib.resources import files

    from lasagna.labels.classes import make_label_config, read_labels
    from lasagna.labels.configuration import parse_label_config

    if labels is not None and path is not None:
        raise ConfigError("--labels and --label-config exclude each other: the configuration holds the labels")
    if labels is not None:
        return make_label_config(read_labels(labels))
    try:
        if path is not None:
            xml = path.read_text(encoding="utf-8-sig")
        else:
            xml = files("label_config").joinpath("demo.xml").read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"the labelling configuration {path} cannot be read: {error}") from error
    if parse_label_config(xml).image_variable != "image":
        raise ConfigError('the photos of the demo are the variable "image": use <Image ... value="$image"/>')
    return xml


def _photos(images: Path | None) -> list[Path]:
    if images is not None:
        from lasagna.annotate.folder import find_images

        found = find_images([str(images)])
        if not found.all_on_disk:
            raise ConfigError(f"Label Studio cannot show images in an archive: unpack {images} and name the folder")
        return [file.path for file in found.files if file.path is not None]
    return demo_photos()


def demo_photos() -> list[Path]:
    """The photos that come with scikit-image and show classes of label_config/demo.xml."""
    from importlib.resources import files

    data = Path(str(files("skimage").joinpath("data")))
    return [data / name for name in _PHOTOS]


@contextmanager
def _only_one(folder: Path) -> Iterator[IO[str]]:
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


@contextmanager
def _signals() -> Iterator[None]:
    def stop(number: int, frame: object) -> None:
        raise _StoppedError

    numbers = (signal.SIGTERM, signal.SIGHUP)
    before = [signal.signal(number, stop) for number in numbers]
    interrupt = signal.getsignal(signal.SIGINT)
    try:
        yield
    finally:
        for number, handler in zip((*numbers, signal.SIGINT), (*before, interrupt), strict=True):
            with suppress(TypeError):  # a handler that was not set from Python
                signal.signal(number, handler)


def _summary(parts: Demo, project: int, answers: Sequence[PhotoOutcome], seconds: float) -> dict[str, Any]:
    return {
        "complete": all(answer.model_version == parts.model_version for answer in answers),
        "model_version": parts.model_version,
        "url": f"{parts.label_studio.url}/projects/{project}/data",
        "user": parts.label_studio.login.user,
        "project": project,
        "seconds_total": round(seconds, 2),
        "photos": [
            {
                "name": answer.name,
                "task": answer.task,
                "present": list(answer.present),
                "probabilities": {name: round(value, 4) for name, value in answer.present.items()},
                "absent": answer.absent,
                "seconds": round(answer.seconds, 3),
                **({} if answer.error is None else {"error": answer.error}),
            }
            for answer in answers
        ],
    }


def _show(console: Console, summary: dict[str, Any], answers: Sequence[PhotoOutcome], password: str) -> None:
    from rich.text import Text

    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
    table.add_column("photo", overflow="fold")
    table.add_column("present (probability)", overflow="fold")
    table.add_column("absent", justify="right")
    table.add_column("seconds", justify="right")
    for answer in answers:
        said = ", ".join(f"{name} {probability:.2f}" for name, probability in answer.present.items()) or "none"
        text = Text(said) if answer.error is None else Text(answer.error, style="red")
        table.add_row(Text(answer.name), text, str(answer.absent), f"{answer.seconds:.2f}")
    console.print()
    console.print(table)
    console.print(f"\nModel {summary['model_version']}. Look at them in Label Studio:", highlight=False)
    console.print(f"  {summary['url']}", soft_wrap=True)
    console.print(f"  login     {summary['user']}", highlight=False)
    console.print(f"  password  {password}", highlight=False, markup=False)

"""A Label Studio of our own on this machine, for the demo and for tests, and what they ask of it.

What always holds: it listens on 127.0.0.1 alone; its login and token are random, made at its first start and kept in
its data folder for its owner alone; it makes no calls to the outside. Set-up (`tools/setup.py`) has installed it into
an environment of its own, beside an empty database that a new data folder starts from, which saves half a minute.
"""

import json
import os
import secrets
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import requests

from backend.queue.services import Service, free_port, port_is_free
from backend.studio.client import LabelStudio, LabelStudioError
from lasagna.errors import ServiceError
from lasagna.settings import Settings, cache_folder

START_SECONDS = 600.0
"""Longest wait for the first answer; a first start on a slow and busy machine takes minutes."""

_WITH_A_TASK = ("prediction", "annotation")
_IMPORT_TRIES = 3


@dataclass(frozen=True)
class Login:
    """Who may log in, and the (legacy) token of that user."""

    user: str
    password: str
    token: str


class LocalLabelStudio:
    """A running Label Studio with its data in `folder`. Use as a context manager, or call `stop`.

    Args:
        folder: Where its data is, and stays.
        port: Default: a free one.
        environ: Settings of Label Studio, over those that it gets from us.
        release: Where in the cache folder set-up has installed it.

    Raises:
        ServiceError: It is not installed, the port is taken, or it ended while it started.
    """

    def __init__(
        self,
        settings: Settings,
        folder: Path,
        *,
        port: int | None = None,
        environ: Mapping[str, str] | None = None,
        release: str = "label-studio",
    ) -> None:
        home = cache_folder(settings) / release
        program = home / "venv" / "bin" / "label-studio"
        if not program.is_file():
            raise ServiceError(
                f"Label Studio is not installed in {home}; `make setup` in the checkout of lasagna-assist installs it "
                "(LASAGNA_CACHE names another folder)"
            )
        if port is not None and not port_is_free(port):
            raise ServiceError(f"port {port} is in use by another program; choose another one for Label Studio")
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        _prepare_database(folder, home / "database" / "label_studio.sqlite3")
        self.login = _login(folder / "login.json")
        self.url = f"http://127.0.0.1:{port or free_port()}"
        self.service = Service(
            "Label Studio",
            [
                program,
                *("start", "--no-browser", "--internal-host", "127.0.0.1", "--port", self.url.rsplit(":", 1)[1]),
                *("--data-dir", folder, "--enable-legacy-api-token"),
            ],
            env=_environment(self.url, self.login) | dict(environ or {}),
            log=folder / "label-studio.log",
        )

    def __enter__(self) -> "LocalLabelStudio":
        return self

    def __exit__(self, *error: object) -> None:
        self.stop()

    def wait(self, seconds: float = START_SECONDS) -> "LocalLabelStudio":
        """Returns when it answers; raises ServiceError with the end of its log if it does not."""
        self.service.wait_until(self.answers, seconds)
        return self

    def answers(self) -> bool:
        try:
            return requests.get(self.url + "/health", timeout=2).ok
        except requests.RequestException:
            return False

    def stop(self) -> None:
        # Django's server leaves SIGTERM to Python's default, which ends it at once: SQLite is safe with that.
        self.service.stop()

    def api(self) -> "Projects":
        """A client with this Label Studio's own token."""
        return Projects(self.url, self.login.token, timeout=150.0)


class Projects(LabelStudio):
    """The client of Label Studio with what it takes to make a project and connect a backend."""

    def create_project(self, title: str, label_config: str) -> int:
        """Makes a project and returns its id."""
        return int(self._json("POST", "/api/projects/", json={"title": title, "label_config": label_config})["id"])

    def projects(self, title: str) -> list[dict[str, Any]]:
        """The projects whose titles start so."""
        answer = self._json("GET", "/api/projects/", params={"page_size": 1000})
        return [project for project in answer["results"] if project["title"].startswith(title)]

    def delete_project(self, project: int) -> None:
        self._request("DELETE", f"/api/projects/{project}/")

    def upload(self, project: int, photos: Sequence[Path]) -> list[int]:
        """Uploads image files as tasks; returns the tasks' ids in the order of the files."""
        before = {task.id for task in self.tasks(project)}
        for photo in photos:  # one by one: Label Studio refuses requests over 200 MB or 100 files
            with photo.open("rb") as file:
                self._json("POST", f"/api/projects/{project}/import", files={"file": (photo.name, file)})
        return [task.id for task in self.tasks(project) if task.id not in before]

    def connect_backend(self, project: int, url: str, *, interactive: bool = False) -> int:
        """Connects an ML backend and returns the connection's id; Label Studio calls its /health and /setup now."""
        body = {"project": project, "url": url, "title": "LaSagnA Assist", "is_interactive": interactive}
        return int(self._json("POST", "/api/ml/", json=body)["id"])

    def retrieve_predictions(self, project: int) -> None:
        """What the data manager's "Retrieve Predictions" does for all tasks: one request to the backend."""
        self._json(
            "POST",
            "/api/dm/actions",
            params={"id": "retrieve_tasks_predictions", "project": project},
            json={"selectedItems": {"all": True, "excluded": []}, "project": str(project)},
        )

    def open_task(self, project: int, task: int) -> dict[str, Any]:
        """What the editor asks when a task is opened: Label Studio asks the backend if there is no prediction yet."""
        return self._json("GET", f"/api/tasks/{task}", params={"project": project})

    def create_annotation(
        self, task: int, result: Sequence[dict[str, Any]], *, lead_time: float, prediction: int | None = None
    ) -> int:
        """Submits an annotation as the editor does, which sends the project's webhooks; returns its id.

        Args:
            task: The task.
            result: Regions, with `origin`.
            lead_time: Seconds that it took.
            prediction: The prediction that it began with.
        """
        body = {"result": list(result), "lead_time": lead_time, "parent_prediction": prediction, "was_cancelled": False}
        return int(self._json("POST", f"/api/tasks/{task}/annotations/", json=body)["id"])

    def delete_annotation(self, annotation: int) -> None:
        """What "Delete annotation" in the editor does, which sends the project's webhooks."""
        self._request("DELETE", f"/api/annotations/{annotation}/")

    def start_training(self, connection: int) -> None:
        """What "Start Training" under Settings > Model does: START_TRAINING to the backend's webhook."""
        self._request("POST", f"/api/ml/{connection}/train", json={})

    def import_tasks(self, project: int, tasks: Sequence[dict[str, Any]]) -> None:
        """Imports tasks given as JSON, with their predictions and annotations.

        Measured in Label Studio 1.23.2: if its SQLite database is locked by another writer, it tries again by itself,
        and then stores the tasks *without* what came with them, as its first try has taken that off. Its answer has
        the counts, so such tasks are deleted and imported again.

        Raises:
            LabelStudioError: It stored fewer predictions or annotations than were given, three times.
        """
        given = {f"{what}_count": sum(len(task.get(f"{what}s", ())) for task in tasks) for what in _WITH_A_TASK}
        for _ in range(_IMPORT_TRIES):
            path, query = f"/api/projects/{project}/import", {"return_task_ids": "true"}
            answer = self._object("POST", path, params=query, json=list(tasks))
            stored = {name: int(answer.get(name) or 0) for name in given}
            if stored == given:
                return
            for task in answer["task_ids"]:
                self._request("DELETE", f"/api/tasks/{task}/")
        raise LabelStudioError(f"POST {path}: Label Studio stored {stored} of {given}, {_IMPORT_TRIES} times")


def _prepare_database(folder: Path, template: Path) -> None:
    target = folder / "label_studio.sqlite3"
    if not target.exists() and template.is_file():
        part = target.with_suffix(f".{os.getpid()}.part")
        shutil.copyfile(template, part)
        part.replace(target)


def _login(path: Path) -> Login:
    if not path.exists():
        login = Login("demo@lasagna.local", secrets.token_urlsafe(9), secrets.token_hex(20))
        path.touch(mode=0o600)
        path.write_text(json.dumps(asdict(login), indent=1))
    return Login(**json.loads(path.read_text()))


def _environment(url: str, login: Login) -> dict[str, str]:
    env = {name: value for name, value in os.environ.items() if not name.startswith(("LABEL_STUDIO_", "DJANGO_"))}
    return env | {
        "DJANGO_DB": "sqlite",
        "LABEL_STUDIO_HOST": url,
        # The login is not given as options: every user can read another's command lines.
        "LABEL_STUDIO_USERNAME": login.user,
        "LABEL_STUDIO_PASSWORD": login.password,
        "LABEL_STUDIO_USER_TOKEN": login.token,
        "LABEL_STUDIO_DEBUG": "false",
        "LABEL_STUDIO_ENABLE_LEGACY_API_TOKEN": "true",
        "LABEL_STUDIO_DISABLE_SIGNUP_WITHOUT_LINK": "true",
        # A backend on this machine is refused unless both are off.
        "ML_BLOCK_LOCAL_IP": "false",
        "SSRF_PROTECTION_ENABLED": "false",
        "LABEL_STUDIO_LATEST_VERSION_CHECK": "false",
        "LABEL_STUDIO_COLLECT_ANALYTICS": "false",
        "LABEL_STUDIO_SENTRY_DSN": "",
        "LABEL_STUDIO_FRONTEND_SENTRY_DSN": "",
    }

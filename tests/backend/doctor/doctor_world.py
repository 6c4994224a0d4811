"""What the tests of `lasagna doctor` break: a real Label Studio, a web process and a worker, and things put between."""

import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import requests
from flask import Flask, Response, request
from werkzeug.serving import make_server

from backend.app import create_app
from backend.demo.local_label_studio import LocalLabelStudio, Projects
from backend.doctor.case import Case
from lasagna.settings import Settings
from tests.backend.backend_helpers import personal_token

CONFIG = """<View><Image name="image" value="$image"/>
<BrushLabels name="brush" toName="image"><Label value="Cat"/><Label value="Sky"/></BrushLabels></View>"""

Rule = Callable[[], Response | None]
"""What a gateway does with a request in place of handing it on; None: it hands it on."""


@contextmanager
def listening(app: Flask, port: int = 0) -> Iterator[str]:
    """The address of an application that is served from a thread."""
    server = make_server("127.0.0.1", port, app, threaded=True)
    threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()


def gateway(target: str, rules: dict[str, Rule]) -> Flask:
    """What stands between Label Studio and the backend: hands on what no rule (by path) keeps. Rules may come later."""
    app = Flask("gateway")

    @app.route("/<path:path>", methods=["GET", "POST"])
    def forward(path: str) -> Response:
        kept = rules[path]() if path in rules else None
        if kept is not None:
            return kept
        names = ("Content-Type", "Authorization")
        headers = {name: request.headers[name] for name in names if name in request.headers}
        answer = requests.request(
            request.method, f"{target}{request.full_path}", data=request.get_data(), headers=headers, timeout=100
        )
        return Response(answer.content, answer.status_code, content_type=answer.headers["Content-Type"])

    return app


@dataclass
class World:
    """Everything that a prediction needs, sound; a test breaks one thing. `stack` mends it again."""

    label_studio: LocalLabelStudio
    strict: LocalLabelStudio
    backend: Any
    checkpoint: Path
    photos: dict[str, Path]
    folder: Path
    other_redis: str
    stack: ExitStack = field(default_factory=ExitStack)

    @property
    def api(self) -> Projects:
        return self.label_studio.api()

    @cached_property
    def photo(self) -> str:
        """The address of a photo in Label Studio."""
        number = self.api.create_project("photo", CONFIG)
        self.api.upload(number, [self.photos["cat"]])
        return str(next(self.api.tasks(number)).data["image"])

    @cached_property
    def personal_token(self) -> str:
        """A personal access token, the only one of its user."""
        return personal_token(self.label_studio)

    def call(self, method: str, path: str, body: Any = None) -> Any:
        """A request to Label Studio's API, as a person's click makes it."""
        api = self.api
        answer = requests.request(method, api.url + path, json=body, headers=api.authorization(), timeout=60)
        assert answer.ok, answer.text
        return answer.json() if answer.content else None

    def project(self, config: str = CONFIG, url: str | None = "", data: Any = None, **connection: Any) -> int:
        """A project with a photo (or with tasks of that data), connected to the backend (or another; None: to none)."""
        number = self.api.create_project("of the doctor", config)
        if data is None:
            data = [{"image": self.photo}]
        if data:
            self.api.import_tasks(number, [{"data": each} for each in data])
        if url is not None:
            self.connect(number, url or self.backend.url, **connection)
        return number

    def connect(self, project: int, url: str, **connection: Any) -> None:
        self.call("POST", "/api/ml/", {"project": project, "url": url, "title": "LaSagnA Assist", **connection})

    def change(self, project: int, **fields: Any) -> None:
        self.call("PATCH", f"/api/projects/{project}/", fields)

    def webhook(self, project: int) -> dict[str, Any]:
        [found] = self.call("GET", f"/api/webhooks/?project={project}")
        return found

    def web(self, port: int = 0, **environ: str) -> str:
        """The address of another web process, on the same Redis unless told otherwise."""
        known = {"LASAGNA_REDIS_URL": self.backend.redis_url, "LASAGNA_MODEL": str(self.checkpoint)}
        return self.stack.enter_context(listening(create_app(Settings.load({**known, **environ})), port))

    def gateway(self, target: str = "", **rules: Rule) -> tuple[str, dict[str, Rule]]:
        """The address of a gateway in front of the backend (or of another target), and its rules."""
        kept = dict(rules)
        return self.stack.enter_context(listening(gateway(target or self.backend.url, kept))), kept

    def case(self, project: int | None = None, task: int | None = None, backend_url: str = "", **settings: str) -> Case:
        """What the doctor is to look at; `settings` by the names of environment variables, without the prefix."""
        environ = {"REDIS_URL": self.backend.redis_url, **settings}
        environ = {f"LASAGNA_{name}": value for name, value in environ.items()}
        return Case(Settings.load(environ), project, task, backend_url)

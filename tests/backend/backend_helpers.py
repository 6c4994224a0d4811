"""What the backend's tests share: a Redis that can be stopped, a Label Studio that fails on demand, our processes.

The real Label Studio is in test_label_studio_real.py.
"""

import base64
import io
import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from copy import deepcopy
from dataclasses import asdict
from datetime import UTC, datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import numpy as np
import pytest
import redis
import requests
from PIL import Image

from backend.queue.own_redis import redis_command
from backend.queue.services import free_port
from tests.forked import ForkedCommand

CONFIG = """<View>
  <Image name="image" value="$image"/>
  <BrushLabels name="brush" toName="image"><Label value="Cat"/><Label value="Dog"/><Label value="Sky"/></BrushLabels>
  <PolygonLabels name="poly" toName="image"><Label value="Cat"/><Label value="Dog"/></PolygonLabels>
  <RectangleLabels name="rect" toName="image"><Label value="Cat"/><Label value="Dog"/></RectangleLabels>
  <KeyPointLabels name="kp" toName="image" smart="true"><Label value="Cat"/><Label value="Bird"/></KeyPointLabels>
  <RectangleLabels name="box" toName="image" smart="true"><Label value="Cat"/><Label value="Dog"/></RectangleLabels>
</View>"""
PROJECT = "3.1795397674"
PREDICTION = {"model_version": "tiny-1", "score": 0.0, "result": [{"id": "new"}]}
TOKEN = "legacytoken000000000000000000000000000001"


def wait_until(ready: Callable[[], Any], seconds: float = 20.0, what: str = "it") -> Any:
    """The first true value of `ready()`; fails the test where none comes in time."""
    deadline = time.monotonic() + seconds
    while not (value := ready()):
        if time.monotonic() > deadline:
            pytest.fail(f"waited {seconds:g} s for {what} in vain")
        time.sleep(0.05)
    return value


def png(seed: int = 0, size: tuple[int, int] = (64, 48)) -> bytes:
    """A small photo-like PNG, another one for each seed."""
    width, height = size
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    return buffer.getvalue()


def asked(version: str, config: str = CONFIG, **params: Any) -> str:
    """What predictions of a version carry that are asked for under a labelling configuration."""
    from lasagna.formats.hygiene import Hygiene
    from lasagna.labels.configuration import parse_label_config
    from lasagna.labels.question import ProjectQuestion, name_version
    from lasagna.settings import Settings

    left_out = asdict(Hygiene.of(Settings.load({})))
    return name_version(version, ProjectQuestion.of(parse_label_config(config).images, params, left_out))


def light_checkpoint(folder: Path, whole: Path, base: Path | str) -> Path:
    """A checkpoint of one tensor laid over another."""
    from safetensors.torch import load_file, save_file

    folder.mkdir()
    for name in ("config.json", "prompt.json", "tokenizer.json", "calibration.json"):
        shutil.copy(whole / name, folder / name)
    key, value = sorted(load_file(whole / "model.safetensors").items())[0]
    save_file({key: value + 1}, folder / "model.safetensors")
    (folder / "base.json").write_text(json.dumps({"base": str(base)}))
    return folder


def note_labels(registry: Path | str, project: str = PROJECT, config: str = CONFIG) -> None:
    """Notes that the labels of a configuration stood in it before anybody annotated: else what nobody marked is
    undecided."""
    from backend.registry.label_histories import LabelHistories
    from lasagna.labels.configuration import parse_label_config

    LabelHistories(Path(registry)).note(project, parse_label_config(config).images, datetime(2000, 1, 1, tzinfo=UTC))


# --- Redis ------------------------------------------------------------------------------------------------------------


class RedisServer:
    """A Redis of the test's own, which can be stopped and started again with its data."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.port = folder, free_port()
        self.url = f"redis://127.0.0.1:{self.port}/0"
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        options = ["--port", str(self.port), "--bind", "127.0.0.1", "--dir", str(self.folder), "--save", ""]
        self._process = subprocess.Popen(
            [str(redis_command()[0]), *options, "--appendonly", "yes"], stdout=subprocess.DEVNULL
        )
        wait_until(self._answers, what="Redis")

    def stop(self) -> None:
        if self._process is not None:
            self._process.terminate()
            self._process.wait(10)
            self._process = None

    def _answers(self) -> bool:
        try:
            with redis.Redis.from_url(self.url) as client:
                return bool(client.ping())
        except redis.RedisError:
            return False


# --- Label Studio -----------------------------------------------------------------------------------------------------


class StubLabelStudio:
    """The few endpoints of Label Studio that the backend calls, answering as measured, and failing on demand.

    Attributes:
        images: Content by path; a path that is not there is answered with 404.
        status: HTTP status to force, by the first part of the path ("/data", "/api/predictions", ...).
        delay: Seconds to wait before an answer, in the same way.
        drop_after_store: Store a posted prediction, then break the connection before the answer.
        predictions: What was posted: dicts with id, task, model_version, result.
        deleted: Tasks that are gone: what is posted for one is refused, alone and together with others.
        left_out: Tasks whose predictions an import of several leaves out without a word.
        requests: Every request: (method, path with query, Authorization header).
    """

    def __init__(self) -> None:
        self.images: dict[str, bytes] = {}
        self.redirects: dict[str, str] = {}
        self.status: dict[str, int] = {}
        self.delay: dict[str, float] = {}
        self.drop_after_store = 0
        self.predictions: list[dict[str, Any]] = []
        self.deleted: set[int] = set()
        self.left_out: set[int] = set()
        self.requests: list[tuple[str, str, str]] = []
        self.tasks: list[dict[str, Any]] = []
        self.label_config = CONFIG
        self.tokens = {f"Token {TOKEN}"}
        self.refresh_token = ""
        self.exchanges = 0
        self.port = free_port()
        self._clock = 0
        self._server: ThreadingHTTPServer | None = None

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def start(self) -> None:
        stub = self

        class Handler(_Handler):
            label_studio = stub

        self._server = ThreadingHTTPServer(("127.0.0.1", self.port), Handler)
        self._server.daemon_threads = True
        self._server.block_on_close = False
        threading.Thread(target=self._server.serve_forever, args=(0.05,), daemon=True).start()

    def stop(self) -> None:
        if self._server is not None:
            self._server.shutdown()
            self._server.server_close()
            self._server = None

    def add_tasks(self, count: int, first: int = 1, same_image: bool = False) -> list[dict[str, Any]]:
        """Tasks with an image each, as `/predict` has them."""
        tasks = []
        for number in range(first, first + count):
            path = f"/data/upload/3/{0 if same_image else number}.png"
            self.images[path] = png(0 if same_image else number)
            tasks.append({"id": number, "project": 3, "data": {"image": path}, "predictions": [], "annotations": []})
        self.tasks += tasks
        return tasks

    def annotate(self, task: int, regions: list[dict[str, Any]], **more: Any) -> dict[str, Any]:
        """A person submits an annotation; `more` replaces what is usual in it."""
        self._clock += 1
        at = f"2026-11-24T00:{self._clock // 60:02}:{self._clock % 60:02}.000000Z"
        found = {"id": 1000 + self._clock, "result": regions, "was_cancelled": False, "ground_truth": False}
        found |= {"created_at": at, "updated_at": at, "completed_by": 1, "lead_time": 12.5, **more}
        entry = next(one for one in self.tasks if one["id"] == task)
        entry["annotations"] = [*(one for one in entry["annotations"] if one["id"] != found["id"]), found]
        entry["updated_at"] = at
        return found

    def go_on_as(self, other: "StubLabelStudio") -> None:
        """Has the tasks, annotations and images that the other has by now."""
        self.images, self.tasks, self._clock = dict(other.images), deepcopy(other.tasks), other._clock

    def posted(self, task: int) -> list[dict[str, Any]]:
        return [p for p in self.predictions if p["task"] == task]


class _Handler(BaseHTTPRequestHandler):
    label_studio: StubLabelStudio
    protocol_version = "HTTP/1.1"

    def log_message(self, format: str, *args: Any) -> None:
        pass

    def do_GET(self) -> None:
        self._handle()

    do_POST = do_DELETE = do_GET  # noqa: N815

    def _handle(self) -> None:
        stub, parts = self.label_studio, urlsplit(self.path)
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        authorization = self.headers.get("Authorization", "")
        stub.requests.append((self.command, self.path, authorization))
        for prefix, seconds in stub.delay.items():
            if parts.path.startswith(prefix):
                time.sleep(seconds)
        for prefix, status in stub.status.items():
            if parts.path.startswith(prefix):
                return self._send(status, {"detail": f"forced {status}"})
        if parts.path == "/api/token/refresh/":
            if json.loads(body)["refresh"] != stub.refresh_token:
                return self._send(401, {"detail": "Token is invalid"})
            stub.exchanges += 1
            access = make_jwt("access", time.time() + 300, stub.exchanges)
            stub.tokens = {f"Bearer {access}"}
            return self._send(200, {"access": access})
        if authorization not in stub.tokens:
            return self._send(401, {"detail": "Invalid token."})
        return self._authorised(stub, parts.path, parse_qs(parts.query), body)

    def _authorised(self, stub: StubLabelStudio, path: str, query: dict[str, list[str]], body: bytes) -> None:
        full = self.path if self.path in stub.images or self.path in stub.redirects else path
        if full in stub.redirects:
            self.send_response(303)
            self.send_header("Location", stub.redirects[full])
            self.send_header("Content-Length", "0")
            self.end_headers()
        elif full in stub.images:
            self._send(200, stub.images[full])
        elif path == "/api/current-user/whoami":
            self._send(200, {"id": 1, "email": "ann@example.org"})
        elif path in ("/api/predictions/", "/api/projects/3/import/predictions") and self.command == "POST":
            self._store(stub, json.loads(body))
        elif path == "/api/predictions/":
            self._send(200, stub.posted(int(query["task"][0])))
        elif path.startswith("/api/predictions/") and self.command == "DELETE":
            stub.predictions = [p for p in stub.predictions if p["id"] != int(path.split("/")[3])]
            self._send(204, b"")
        elif path == "/api/projects/3/":
            project = {"id": 3, "title": "stub", "label_config": stub.label_config, "task_number": len(stub.tasks)}
            self._send(200, {**project, "created_at": "2026-11-23T01:34:34.5Z"})
        elif path == "/api/projects/3/export":
            ids = set(map(int, query["ids[]"]))
            self._send(200, [t for t in stub.tasks if t["id"] in ids and t["annotations"]])
        elif path == "/api/dm/views/":
            self._send(200, [])
        elif path == "/api/tasks/":
            page, size = int(query["page"][0]), int(query["page_size"][0])
            if chosen := json.loads(query.get("query", ["{}"])[0]).get("selectedItems"):
                there = [task for task in chosen["included"] if task not in stub.deleted]
                versions = {task: ", ".join({p["model_version"] for p in stub.posted(task)}) for task in there}
                tasks = [{"id": task, "data": {}, "predictions_model_versions": versions[task]} for task in there]
                self._send(200, {"tasks": tasks, "total": len(tasks)})
                return
            if "draft_exists" in query["query"][0]:
                begun = [{"id": t["id"]} for t in stub.tasks if t.get("drafts")]
                self._send(200, {"tasks": begun[(page - 1) * size : page * size], "total": len(begun)})
                return
            if "cancelled_annotations" in query["query"][0]:
                untouched = [{**t, "predictions": stub.posted(t["id"])} for t in stub.tasks if not t["annotations"]]
                self._send(200, {"tasks": untouched[(page - 1) * size : page * size], "total": len(untouched)})
                return
            if "total_annotations" in query["query"][0]:
                found = [t for t in stub.tasks if any(not a["was_cancelled"] for a in t["annotations"])]
                chosen = [
                    {"id": t["id"], "updated_at": t["updated_at"]} for t in found[(page - 1) * size : page * size]
                ]
                self._send(200, {"tasks": chosen, "total": len(found)})
                return
            chosen = stub.tasks[(page - 1) * size : page * size]
            versions = {t["id"]: ", ".join({p["model_version"] for p in stub.posted(t["id"])}) for t in chosen}
            if "predictions_model_versions" not in query.get("query", [""])[0]:  # as Label Studio does
                versions = dict.fromkeys(versions, "")
            tasks = [{**task, "predictions_model_versions": versions[task["id"]]} for task in chosen]
            self._send(200, {"tasks": tasks, "total": len(stub.tasks)})
        else:
            self._send(404, {"detail": "Not found."})

    def _store(self, stub: StubLabelStudio, given: Any) -> None:
        """One prediction, or the list of an import of several."""
        several = given if isinstance(given, list) else [given]
        if gone := [one["task"] for one in several if one["task"] in stub.deleted]:
            refusal = f'Invalid pk "{gone[0]}" - object does not exist.'
            return self._send(400, {"validation_errors": {"task": [refusal]}})
        kept = [one for one in several if one is given or one["task"] not in stub.left_out]
        made = [{"id": len(stub.predictions) + 101 + number, **one} for number, one in enumerate(kept)]
        stub.predictions += made
        if stub.drop_after_store:
            stub.drop_after_store -= 1
            self.close_connection = True
            self.connection.close()
            return None
        return self._send(201, made[0] if isinstance(given, dict) else {"created": len(made)})

    def _send(self, status: int, body: Any) -> None:
        data = body if isinstance(body, bytes) else json.dumps(body).encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        with suppress(OSError):  # the client has given up
            self.wfile.write(data)


def make_jwt(token_type: str, end: float, number: int = 0) -> str:
    """An unsigned JWT as Label Studio's look."""
    parts = [{"alg": "HS256", "typ": "JWT"}, {"token_type": token_type, "exp": int(end), "jti": number}]
    encoded = [base64.urlsafe_b64encode(json.dumps(part).encode()).decode().rstrip("=") for part in parts]
    return ".".join([*encoded, "c2lnbmF0dXJl"])


# --- the real Label Studio --------------------------------------------------------------------------------------------


def browser_session(label_studio: Any) -> requests.Session:
    """Logged in as a person is: what needs no token."""
    session = requests.Session()
    login = label_studio.url + "/user/login/"
    session.get(login, timeout=60)
    form = {"email": label_studio.login.user, "password": label_studio.login.password}
    form["csrfmiddlewaretoken"] = session.cookies["csrftoken"]
    session.post(login, data=form, headers={"Referer": login}, timeout=60)
    session.headers.update({"X-CSRFToken": session.cookies["csrftoken"], "Referer": login})
    return session


def personal_token(label_studio: Any) -> str:
    """A personal access token, made as the Account & Settings page does. A user has one; an older one is revoked."""
    session, address = browser_session(label_studio), label_studio.url + "/api/token/"
    answer = session.post(address, timeout=60)
    if answer.status_code == 409:
        for old in session.get(address, timeout=60).json():
            session.post(address + "blacklist/", json={"refresh": old["token"]}, timeout=60)
        answer = session.post(address, timeout=60)
    answer.raise_for_status()
    return str(answer.json()["token"])


# --- our processes ----------------------------------------------------------------------------------------------------


class Process:
    """A `lasagna` command in a process of its own, with its output in a file.

    The web process is a new Python, since it is to do without torch; others are forks of one that has it.
    """

    def __init__(self, arguments: list[str], log: Path, environ: dict[str, str]) -> None:
        self.log = log
        self.process: subprocess.Popen[bytes] | ForkedCommand
        if arguments[0] != "serve":
            self.process = ForkedCommand(arguments, log, environ=environ)
            return
        with log.open("ab") as output:
            self.process = subprocess.Popen(
                [str(Path(sys.executable).with_name("lasagna")), *arguments],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                env=environ,
            )

    def wait_for(self, text: str, seconds: float = 240.0) -> None:
        """Until the output holds the text."""

        def ready() -> bool:
            if self.process.poll() is not None:
                pytest.fail(f"the process ended with {self.process.returncode}:\n{self.output()}")
            return text in self.output()

        wait_until(ready, seconds, f"{text!r} in {self.log}")

    def output(self) -> str:
        return self.log.read_text(errors="replace")

    def kill(self) -> None:
        """SIGKILL, to its children first (gunicorn's would go on until they miss their parent)."""
        pid = self.process.pid
        for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split():
            os.kill(int(child), signal.SIGKILL)
        self.process.send_signal(signal.SIGKILL)
        self.process.wait(10)

    def stop(self) -> int:
        """SIGTERM, as a service manager does; the exit code."""
        self.process.terminate()
        return self.process.wait(30)


class Backend:
    """A web process and workers on one Redis."""

    def __init__(self, folder: Path, redis_url: str, checkpoint: Path) -> None:
        self.folder, self.redis_url, self.checkpoint = folder, redis_url, checkpoint
        self.port = free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self.processes: list[Process] = []
        self.environ = {
            "LASAGNA_REDIS_URL": redis_url,
            "LASAGNA_STATE_DIR": str(folder),
            "LASAGNA_MODEL": str(checkpoint),
            "LASAGNA_DEVICE": "cpu",
        }

    def run(self, *arguments: str, wait_for: str, **environ: str) -> Process:
        name = f"{arguments[0]}-{len(self.processes)}.log"
        process = Process(list(arguments), self.folder / name, {**os.environ, **self.environ, **environ})
        self.processes.append(process)
        process.wait_for(wait_for)
        return process

    def serve(self, **environ: str) -> Process:
        process = self.run("serve", "--port", str(self.port), wait_for="Listening on", **environ)

        def answers() -> bool:
            try:
                return requests.get(self.url + "/health", timeout=2).ok
            except requests.RequestException:
                return False

        wait_until(answers, what="/health")
        return process

    def worker(self, **environ: str) -> Process:
        return self.run("worker", wait_for="waiting for jobs", **environ)

    def setup(self, label_studio_url: str, token: str = TOKEN, **more: Any) -> requests.Response:
        body = {"project": PROJECT, "schema": CONFIG, "hostname": label_studio_url, "access_token": token, **more}
        return requests.post(self.url + "/setup", json=body, timeout=10)

    def predict(self, tasks: list[Any], config: str = CONFIG, context: Any = None) -> requests.Response:
        params = {"login": None, "password": None, "context": context}
        body = {"tasks": tasks, "project": PROJECT, "label_config": config, "params": params}
        return requests.post(self.url + "/predict", json=body, timeout=100)

    def end(self) -> None:
        for process in self.processes:
            if process.process.poll() is None:
                process.process.kill()
                process.process.wait(10)

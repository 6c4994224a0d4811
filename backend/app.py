"""The web process: Label Studio's ML backend protocol over Flask, in front of the queue. No torch is imported here.

| endpoint | Label Studio allows | answer |
|---|---|---|
| GET /health (and /) | 1 s | 200 `{"status": "UP", ...}` while this process lives; says whether Redis is there |
| GET /ready | not called | 200 where predictions can be made now, else 503; `checks` says what is missing |
| POST /setup | 3 s | `{"model_version": ...}`; a labelling configuration that cannot be used is refused |
| POST /predict | 100 s | `{"results": [one entry per task], ...}` within the setting `predict_deadline` |
| POST /webhook | 1 s | 201 at once; the event is noted for the learning loop |
| GET /report/PROJECT | not called | the page of edit effort (`backend.effort.page`), for people |
| POST /jobs, GET /jobs, /jobs/ID | not called | pre-labels a whole project (`backend.web.prelabel_jobs`) |
| GET /status, /gate/VERSION | not called | what runs and what failed, and a version's report, for people |
| GET /metrics | not called | for Prometheus (`backend.web.metrics`) |
| GET /versions | 3 s | `{"versions": [...]}`, of `?project=12` or of the worker's own model |

An error is JSON, `{"error": words}`, with the words in the status line too: that line is all of it that Label Studio
shows (under Settings > Model). With a password, every route but `/health` wants it (`backend.web.access`).
"""

import json
import logging
import threading
import time
from dataclasses import asdict
from functools import cache
from typing import Any

import redis
from flask import Flask, Response, g, request
from werkzeug.exceptions import HTTPException, RequestEntityTooLarge

from backend.queue.living_workers import predicting_workers
from backend.queue.store import Store, connect
from backend.web.access import SECRET_HEADER, Access
from backend.web.cross_site import is_cross_site
from backend.web.metrics import add_metrics
from backend.web.predictions import Predictor
from backend.web.prelabel_jobs import prelabel_routes
from backend.web.readiness import readiness
from backend.web.status_page import status_routes
from lasagna.errors import ConfigError, LasagnaError, ServiceError
from lasagna.logs import logged
from lasagna.settings import Settings

logger = logging.getLogger(__name__)

MAX_WAITING_REQUESTS = 24
"""Requests that may wait for predictions at the same time, below the number of threads (`backend._wsgi`), so that
`/health` is always answered. One more gets at once what is ready, and the rest is posted."""

_LONGEST_WORD = 5000
"""Characters; tokens are the longest."""

_PAGE_POLICY = (
    "default-src 'none'; style-src 'unsafe-inline'; img-src data:; form-action 'self'; frame-ancestors 'none'"
)
"""Content-Security-Policy of every page: no scripts, nothing from elsewhere, in no frame of another site."""

_OPEN = {"health"}
_WEBHOOK_HINT = (
    "in Label Studio, under Settings > Webhooks, give it the address http://USER:PASSWORD@HOST:PORT/webhook, or a "
    f"header {SECRET_HEADER} with the value of LASAGNA_WEBHOOK_SECRET"
)


def create_app(settings: Settings) -> Flask:
    """The web application.

    Args:
        settings: `redis_url` must name a Redis (`backend.queue.own_redis.ensure_redis` gives one).

    Raises:
        ConfigError: `redis_url` or `basic_auth` cannot be used.
    """
    app = Flask(__name__)
    app.config["MAX_CONTENT_LENGTH"] = settings.max_request_bytes
    app.json.sort_keys = False  # type: ignore[attr-defined]
    if not settings.redis_url:
        raise ConfigError(
            "no Redis is configured: set LASAGNA_REDIS_URL, or start with `lasagna serve`, which runs one"
        )
    access = Access.from_settings(settings)
    store = Store(connect(settings.redis_url))
    predictor = Predictor(settings, store)
    places = threading.BoundedSemaphore(MAX_WAITING_REQUESTS)
    add_metrics(app, store, predictor.registry)
    app.register_blueprint(prelabel_routes(settings, store))
    app.register_blueprint(status_routes(settings, store, predictor.registry))

    @app.before_request
    def start() -> Response | None:
        g.started = time.monotonic()
        if is_cross_site(request):
            return _problem(403, "a page of another site sent this request; open the backend's own page and try there")
        if request.endpoint in _OPEN or access.lets_in(request, webhook=request.endpoint == "webhook"):
            return None
        if request.endpoint == "webhook":
            logger.warning("a webhook came without the password and was refused: %s", _WEBHOOK_HINT)
            response = _problem(401, f"this backend wants a user name and password: {_WEBHOOK_HINT}")
        else:
            response = _problem(
                401, "this backend wants a user name and password: enter them for the model in Label Studio"
            )
        response.headers["WWW-Authenticate"] = 'Basic realm="lasagna"'
        return response

    @app.after_request
    def guard_pages(response: Response) -> Response:
        if response.mimetype == "text/html":
            response.headers["Content-Security-Policy"] = _PAGE_POLICY
            response.headers["Cache-Control"] = "no-store"
        return response

    @app.after_request
    def log(response: Response) -> Response:
        seconds = time.monotonic() - g.started if "started" in g else 0.0
        level = logging.DEBUG if request.endpoint in ("health", "metrics.metrics") else logging.INFO
        with logged(project=g.get("project")):
            words = (request.method, request.path, response.status_code, seconds, g.get("said", ""))
            logger.log(level, "%s %s %d %.2f s %s", *words)
        return response

    @app.get("/")
    @app.get("/health")
    def health() -> dict[str, Any]:
        # 200 also without Redis: at a failed /health Label Studio says only "disconnected", at a failed /setup why
        answer: dict[str, Any] = {"status": "UP", "model_class": "LasagnaBackend"}
        try:
            model = store.model()
            workers = len(predicting_workers(store))
            answer.update(redis="up", workers=workers, model_version=model["version"] if model else None)
        except redis.RedisError as error:
            answer.update(redis=f"down: {error}", workers=None, model_version=None)
        return answer

    @app.get("/ready")
    def ready() -> tuple[dict[str, Any], int]:
        checks = readiness(settings, store)
        is_ready = all(check.ok for check in checks.values())
        g.said = ", ".join(f"{name}: {check.words}" for name, check in checks.items() if not check.ok)
        answer = {"ready": is_ready, "checks": {name: asdict(check) for name, check in checks.items()}}
        return answer, 200 if is_ready else 503

    @app.post("/setup")
    def setup() -> dict[str, Any]:
        body = _body()
        version = predictor.setup(
            project=_word(body, "project"),
            config=_text(body, "schema"),
            hostname=_word(body, "hostname"),
            token=_word(body, "access_token"),
            extra=body.get("extra_params"),
        )
        g.project = _number(body.get("project"))
        g.said = f"project {body.get('project')}, {version}"
        return {"model_version": version}

    @app.post("/predict")
    def predict() -> dict[str, Any]:
        body = _body()
        tasks = body.get("tasks")
        if not isinstance(tasks, list):
            raise ConfigError('the request has no list of "tasks"')
        if len(tasks) > settings.max_request_tasks:
            raise ConfigError(
                f"the request has {len(tasks)} tasks, the limit is {settings.max_request_tasks} "
                "(LASAGNA_MAX_REQUEST_TASKS); `lasagna prelabel` takes a project of any size"
            )
        g.tasks, g.project = len(tasks), _number(body.get("project"))
        params = body.get("params") or {}
        context = params.get("context") if isinstance(params, dict) else None
        may_wait = places.acquire(blocking=False)
        try:
            answer = predictor.predict(
                tasks,
                _text(body, "label_config"),
                _word(body, "project"),
                context if isinstance(context, dict) else None,
                deadline=None if may_wait else 0.0,
            )
        finally:
            if may_wait:
                places.release()
        predicted = sum(1 for entry in answer.results if entry)
        g.said = f"{predicted} of {len(tasks)} tasks predicted, {answer.waiting} waiting, {len(answer.errors)} failed"
        for position, reason in answer.errors.items():
            name = _task_name(tasks, position)
            with logged(project=g.project, task=name):
                logger.warning("task %s: %s", name, reason)
        return {
            "results": answer.results,
            "model_version": answer.model_version,
            "errors": {str(position): reason for position, reason in answer.errors.items()},
            "waiting": answer.waiting,
        }

    @app.post("/webhook")
    def webhook() -> tuple[dict[str, Any], int]:
        body = _body()
        action = str(body.get("action") or "")
        g.said = action
        try:
            event = _event(action, body)
            store.record_event(event)
            predictor.corrected(event)
        except redis.RedisError as error:
            # an error would only delay the annotator: Label Studio does not send an event again
            logger.warning("event %s is not noted: Redis is gone (%s)", action, error)
        return {"status": "ok"}, 201

    @app.get("/versions")
    def versions() -> dict[str, Any]:
        # Label Studio does not say which project it asks for
        return {"versions": [predictor.model_version(request.args.get("project", ""))], "message": None}

    @cache
    def effort_reader() -> Any:
        from backend.effort.report import EffortReader
        from backend.queue.connections import Connections

        return Connections(settings, store), EffortReader()

    @app.get("/report/<int:project>")
    def report(project: int) -> Response:
        from backend.effort.page import render_effort

        connections, efforts = effort_reader()  # loads OpenCV and SciPy, which nothing else here needs
        found = efforts.read(connections.of(store.uid(str(project)))[0], project)
        g.said = f"{sum(version.tasks for version in found.versions)} tasks compared"
        return Response(render_effort(found), mimetype="text/html")

    @app.errorhandler(LasagnaError)
    def refused(error: LasagnaError) -> Response:
        return _problem(503 if isinstance(error, ServiceError) else 400, str(error))

    @app.errorhandler(redis.RedisError)
    def without_redis(error: redis.RedisError) -> Response:
        logger.warning("Redis is gone: %s", error)
        return _problem(503, f"the backend cannot reach its Redis ({error}); start it, or correct LASAGNA_REDIS_URL")

    @app.errorhandler(RequestEntityTooLarge)
    def too_large(error: RequestEntityTooLarge) -> Response:
        limit = settings.max_request_bytes
        return _problem(413, f"the request has more than {limit} bytes, the limit (LASAGNA_MAX_REQUEST_BYTES)")

    @app.errorhandler(HTTPException)
    def http_error(error: HTTPException) -> Response:
        return _problem(error.code or 500, error.description or error.name)

    @app.errorhandler(Exception)
    def unexpected(error: Exception) -> Response:
        logger.exception("%s %s failed", request.method, request.path)
        return _problem(500, f"{type(error).__name__}: {error}")

    return app


def _body() -> dict[str, Any]:
    try:
        body = request.get_json(silent=True)
    except RecursionError as error:
        raise ConfigError("the body of the request is nested too deeply") from error
    if not isinstance(body, dict):
        raise ConfigError("the body of the request is not a JSON object")
    return body


def _text(body: dict[str, Any], name: str) -> str:
    text = body.get(name)
    if not isinstance(text, str) or not text.strip():
        raise ConfigError(f'the request has no labelling configuration ("{name}")')
    return text


def _number(project: Any) -> str | None:
    """Label Studio's number of a project, of the name that it sends."""
    return str(project or "").split(".")[0] or None


def _word(body: dict[str, Any], name: str) -> str:
    """A short text without spaces, such as an address or a token; "" where there is none."""
    text = str(body.get(name) or "")
    if len(text) > _LONGEST_WORD or not text.isascii() or not text.isprintable():
        raise ConfigError(f'"{name}" in the request is {text[:80]!r}, which cannot be; it comes from Label Studio')
    return text


def _task_name(tasks: list[Any], position: int) -> str:
    task = tasks[position] if position < len(tasks) else None  # a click on no task
    return str(task.get("id")) if isinstance(task, dict) and "id" in task else f"number {position + 1}"


def _event(action: str, body: dict[str, Any]) -> dict[str, str]:
    """The part of a webhook's body that is kept: who and what. The annotations are read from Label Studio."""
    project = body.get("project")
    tasks = body.get("tasks") or body.get("task") or []
    if action == "TASKS_CREATED":  # an import: of its tasks those count that came with annotations
        tasks = [task for task in _dicts(tasks) if task.get("total_annotations")]
    annotations = body.get("annotations") or body.get("annotation") or []
    return {
        "action": action,
        "project": str(project.get("id", "")) if isinstance(project, dict) else "",
        "tasks": json.dumps(_ids(tasks) or [a["task"] for a in _dicts(annotations) if isinstance(a.get("task"), int)]),
        "annotations": json.dumps(_ids(annotations)),
        "time": f"{time.time():.3f}",
    }


def _ids(entries: Any) -> list[int]:
    return [entry["id"] for entry in _dicts(entries) if isinstance(entry.get("id"), int)]


def _dicts(entries: Any) -> list[dict[str, Any]]:
    return [entry for entry in (entries if isinstance(entries, list) else [entries]) if isinstance(entry, dict)]


def _problem(status: int, message: str) -> Response:
    """An error as JSON; to a request with tasks it also has an empty entry for each."""
    body: dict[str, Any] = {"error": message}
    if "tasks" in g:
        body["results"] = [[] for _ in range(g.tasks)]
    response = Response(json.dumps(body), mimetype="application/json")
    in_line = " ".join(message.split()).encode("ascii", "replace").decode()
    response.status = f"{status} {in_line[:300]}"
    g.said = message
    return response

"""Label Studio's ML backend protocol: health, readiness, set-up, predictions, events, versions."""

import itertools
import json
import logging
import threading
import time
from dataclasses import asdict
from typing import Any

import redis
from flask import Blueprint, g, request

from backend.queue.store import Store
from backend.studio.project_id import check_project_name, number_of, uid_of_event
from backend.web.health import Health
from backend.web.predictions import Predictor
from backend.web.readiness import readiness
from lasagna.errors import ConfigError, RegistryError
from lasagna.logs import logged
from lasagna.settings import Settings

logger = logging.getLogger(__name__)

MAX_WAITING_REQUESTS = 24
"""Requests that may wait for predictions at the same time, below the number of threads (`backend._wsgi`), so that
`/health` is always answered. One more gets at once what is ready, and the rest is posted."""

_LONGEST_WORD, _LONGEST_ACTION = 5000, 100
"""Characters; tokens are the longest."""
_MOST_IDS = 100_000
"""Of one event. What an event leaves out is found in Label Studio when the project is looked at."""


class Protocol:
    """The views; what each answers is in `backend.app`.

    Args:
        settings: `max_request_tasks`, and what readiness looks at.
        store: The records in Redis.
        predictor: What answers.
    """

    def __init__(self, settings: Settings, store: Store, predictor: Predictor) -> None:
        self._settings, self._store, self._predictor = settings, store, predictor
        self._health = Health(store)
        self._places = threading.BoundedSemaphore(MAX_WAITING_REQUESTS)

    def routes(self) -> Blueprint:
        """The blueprint "protocol"."""
        routes = Blueprint("protocol", __name__)
        routes.get("/")(self.health)
        routes.get("/health")(self.health)
        routes.get("/ready")(self.ready)
        routes.post("/setup")(self.setup)
        routes.post("/predict")(self.predict)
        routes.post("/webhook")(self.webhook)
        routes.get("/versions")(self.versions)
        return routes

    def health(self) -> dict[str, Any]:
        """GET / and /health.

        200 also without Redis: at a failed /health Label Studio says only "disconnected", at a failed /setup why.
        """
        answer: dict[str, Any] = {"status": "UP", "model_class": "LasagnaBackend"}
        return {**answer, **self._health.look()}

    def ready(self) -> tuple[dict[str, Any], int]:
        """GET /ready."""
        checks = readiness(self._settings, self._store)
        is_ready = all(check.ok for check in checks.values())
        g.said = ", ".join(f"{name}: {check.words}" for name, check in checks.items() if not check.ok)
        answer = {"ready": is_ready, "checks": {name: asdict(check) for name, check in checks.items()}}
        return answer, 200 if is_ready else 503

    def setup(self) -> dict[str, Any]:
        """POST /setup."""
        body = _body()
        found = self._predictor.setup(
            project=check_project_name(_word(body, "project")),
            config=_text(body, "schema"),
            hostname=_word(body, "hostname"),
            token=_word(body, "access_token"),
            extra=body.get("extra_params"),
        )
        g.project = _number(body.get("project"))
        g.said = f"project {body.get('project')}, {found.model_version}"
        if found.unknown:
            g.said += f", {len(found.unknown)} labels that it was never taught"
        return asdict(found)

    def predict(self) -> dict[str, Any]:
        """POST /predict."""
        body = _body()
        tasks = body.get("tasks")
        if not isinstance(tasks, list):
            raise ConfigError('the request has no list of "tasks"')
        if len(tasks) > self._settings.max_request_tasks:
            raise ConfigError(
                f"the request has {len(tasks)} tasks, the limit is {self._settings.max_request_tasks} "
                "(LASAGNA_MAX_REQUEST_TASKS); `lasagna prelabel` takes a project of any size"
            )
        g.tasks, g.project = len(tasks), _number(body.get("project"))
        params = body.get("params") or {}
        context = params.get("context") if isinstance(params, dict) else None
        may_wait = self._places.acquire(blocking=False)
        try:
            answer = self._predictor.predict(
                tasks,
                _text(body, "label_config"),
                _project(body),
                context if isinstance(context, dict) else None,
                deadline=None if may_wait else 0.0,
            )
        finally:
            if may_wait:
                self._places.release()
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

    def webhook(self) -> tuple[dict[str, Any], int]:
        """POST /webhook."""
        body = _body()
        action = _word(body, "action")
        if len(action) > _LONGEST_ACTION:
            raise ConfigError(f'"action" in the request has {len(action)} characters; it comes from Label Studio')
        g.said = action
        try:
            event = _event(action, body)
            self._store.record_event(event)
            self._predictor.project_updated(body.get("project"))
            self._predictor.corrected(event)
            if refused := self._predictor.refuses_training(event):
                g.said = f"{action}: no fine-tune"
                return {"status": "ok", "refused": refused}, 201
        except redis.RedisError as error:
            # an error would only delay the annotator: Label Studio does not send an event again
            logger.warning("event %s is not noted: Redis is gone (%s)", action, error)
        except RegistryError as error:
            logger.warning("event %s: %s", action, error)
        return {"status": "ok"}, 201

    def versions(self) -> dict[str, Any]:
        """GET /versions. Label Studio does not say which project it asks for."""
        project = request.args.get("project", "")
        uid = project and self._predictor.known.resolve(project, request.args.get("server", ""))
        return {"versions": [self._predictor.model_version(uid)], "message": None}


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
    return number_of(str(project or "")) or None


def _project(body: dict[str, Any]) -> str:
    """The project's name; "" where the request has none, as Label Studio's test of a backend."""
    name = _word(body, "project")
    return check_project_name(name) if name else ""


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
    tasks = body.get("tasks") or body.get("task") or []
    if action == "TASKS_CREATED":  # an import: of its tasks those count that came with annotations
        tasks = [task for task in _dicts(tasks) if task.get("total_annotations")]
    annotations = body.get("annotations") or body.get("annotation") or []
    return {
        "action": action,
        "project": uid_of_event(body.get("project")),
        "tasks": json.dumps(_ids(tasks) or [a["task"] for a in _dicts(annotations) if isinstance(a.get("task"), int)]),
        "annotations": json.dumps(_ids(annotations)),
        "time": f"{time.time():.3f}",
    }


def _ids(entries: Any) -> list[int]:
    """Ids, each a number that fits into Label Studio's database."""
    found = (entry.get("id") for entry in itertools.islice(_dicts(entries), _MOST_IDS))
    return [id for id in found if isinstance(id, int) and not isinstance(id, bool) and 0 < id < 2**63]


def _dicts(entries: Any) -> list[dict[str, Any]]:
    return [entry for entry in (entries if isinstance(entries, list) else [entries]) if isinstance(entry, dict)]

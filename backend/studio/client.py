"""Client of Label Studio's API: tokens, projects, tasks, predictions.

What always holds:

- the token is sent to Label Studio's own address (scheme, host and port) and nowhere else;
- every request has a time limit;
- a failure is a `LabelStudioError` in words, which says whether trying again later can help (`is_temporary`).

Images are fetched by `backend.studio.images`, on top of `LabelStudio.get_stream`.
"""

import base64
import http.client
import json
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import requests

from backend.studio.address import normalise_url, redirect_target
from backend.studio.networks import CheckedAdapter, is_metadata
from lasagna.errors import ConfigError, ServiceError
from lasagna.logs import keep_secret

TokenKind = Literal["personal", "access", "legacy"]

_REFRESH_BEFORE = 30.0
"""Seconds before its end at which an access token is replaced: a request may take that long to be looked at."""

# Label Studio fills in a task's model versions only where the view filters or sorts by them, and sorting would let the
# pages shift while predictions arrive. So: a filter that names them and lets every task through.
_ALL_WITH_VERSIONS = {
    "ordering": ["tasks:id"],
    "filters": {
        "conjunction": "or",
        "items": [
            {"filter": "filter:tasks:id", "operator": "greater", "type": "Number", "value": 0},
            {"filter": "filter:tasks:predictions_model_versions", "operator": "empty", "type": "List", "value": True},
        ],
    },
}

_ANNOTATED = {
    "ordering": ["tasks:id"],
    "filters": {
        "conjunction": "and",
        "items": [
            {"filter": "filter:tasks:total_annotations", "operator": "greater", "type": "Number", "value": 0},
        ],
    },
}
"""The tasks that somebody submitted: Label Studio counts skipped annotations apart."""


_UNTOUCHED = {
    "conjunction": "and",
    "items": [
        {"filter": f"filter:tasks:{name}", "operator": "equal", "type": "Number", "value": 0}
        for name in ("total_annotations", "cancelled_annotations")
    ],
}
"""The tasks without an annotation, skipped ones counted too."""


class LabelStudioError(ServiceError):
    """Label Studio cannot be reached or refused a request.

    Attributes:
        status: HTTP status, or None where no answer came.
        detail: What Label Studio itself said, "" where it said nothing.
        is_temporary: Trying again later can help (no answer, overload, error in the server).
    """

    def __init__(self, message: str, status: int | None = None, detail: str = "") -> None:
        super().__init__(message)
        self.status = status
        self.detail = detail
        self.is_temporary = status is None or status == 429 or status >= 500


@dataclass(frozen=True)
class StudioTask:
    """A task of a project.

    Attributes:
        id: Its number.
        data: What was imported.
        model_versions: Of the predictions that it has.
        is_annotated: Whether somebody has submitted an annotation (one that was skipped is none).
    """

    id: int
    data: dict[str, Any]
    model_versions: frozenset[str]
    is_annotated: bool


def token_kind(token: str) -> TokenKind:
    """What kind of token this is.

    A personal access token is a JWT of type "refresh", which is exchanged for access tokens that live for five minutes;
    an access token is a JWT too; a legacy token is plain hexadecimal.
    """
    claims = token_claims(token)
    if claims is None:
        return "legacy"
    return "personal" if claims.get("token_type") == "refresh" else "access"


class LabelStudio:
    """A connection to one Label Studio with one token. Safe to share between threads.

    Args:
        url: Address, e.g. "https://label.example.org" (a path prefix is fine).
        token: Personal, legacy or access token; empty: requests are sent without one.
        timeout: Seconds for a connection, and for each wait for an answer.
    """

    def __init__(self, url: str, token: str, *, timeout: float = 30.0) -> None:
        self.url = normalise_url(url)
        self.token = token.strip()
        keep_secret(self.token)
        self.kind = token_kind(self.token)
        self.timeout = timeout
        self._local = threading.local()
        self._lock = threading.Lock()
        self._access: tuple[str, float] | None = None  # access token and the time.time() of its end

    # --- tokens -------------------------------------------------------------------------------------------------------

    def check(self) -> str:
        """Who the token belongs to and what kind it is, in words, e.g. "personal access token of ann@example.org".

        Raises:
            LabelStudioError: Label Studio cannot be reached, or the token is not accepted.
        """
        if not self.token:
            raise LabelStudioError(
                f"there is no token for Label Studio at {self.url}: set LASAGNA_LABEL_STUDIO_TOKEN to the one shown "
                "under Account & Settings > Personal Access Token",
                status=401,
            )
        user = self._object("GET", "/api/current-user/whoami")
        return f"{self._kind_in_words()} of {user.get('email') or user.get('username')}"

    def _kind_in_words(self) -> str:
        return {
            "personal": "personal access token",
            "legacy": "legacy token",
            "access": "access token (it ends after five minutes; a personal access token does not)",
        }[self.kind]

    def authorization(self) -> dict[str, str]:
        """The header that carries the token; a personal token is exchanged for an access token first."""
        if not self.token:
            return {}
        if self.kind == "legacy":
            return {"Authorization": f"Token {self.token}"}
        if self.kind == "access":
            return {"Authorization": f"Bearer {self.token}"}
        with self._lock:
            if self._access is None or time.time() > self._access[1] - _REFRESH_BEFORE:
                self._access = self._exchange()
            return {"Authorization": f"Bearer {self._access[0]}"}

    def _exchange(self) -> tuple[str, float]:
        response = self._send("POST", "/api/token/refresh/", headers={}, json={"refresh": self.token})
        if response.status_code in (400, 401, 403):
            raise LabelStudioError(
                f"Label Studio at {self.url} does not accept the personal access token "
                f"({response.status_code}: {error_detail(response)}); it may have been revoked or belong to another "
                "Label Studio: make a new one and set LASAGNA_LABEL_STUDIO_TOKEN",
                response.status_code,
                error_detail(response),
            )
        self._raise_for_status(response, "the exchange of the personal access token")
        access = str(self._decoded(response, "the exchange of the personal access token").get("access") or "")
        claims = token_claims(access) or {}
        return access, float(claims.get("exp") or time.time() + 240)

    def _forget_access_token(self) -> bool:
        """After a 401: True where a new access token is worth a second attempt."""
        with self._lock:
            had_one = self._access is not None
            self._access = None
        return had_one

    # --- projects, tasks, predictions ---------------------------------------------------------------------------------

    def project(self, project_id: int) -> dict[str, Any]:
        """A project with its `label_config`, `title` and `created_at`."""
        return self._object("GET", f"/api/projects/{project_id}/")

    def tasks(self, project_id: int, page_size: int = 200) -> Iterator[StudioTask]:
        """Every task of a project in the order of its id, page by page, without annotations and predictions.

        Cloud addresses are left as they are in the task's data (they are resolved when an image is fetched). A task
        that is deleted or added meanwhile may be missed or seen twice.
        """
        for task in self._listed(project_id, _ALL_WITH_VERSIONS, page_size):
            yield _studio_task(task)

    def tasks_with_drafts(self, project_id: int, page_size: int = 1000) -> set[int]:
        """The tasks that somebody has begun to annotate and not submitted."""
        has_draft = {"filter": "filter:tasks:draft_exists", "operator": "equal", "type": "Boolean", "value": True}
        query = {"ordering": ["tasks:id"], "filters": {"conjunction": "and", "items": [has_draft]}}
        return {int(task["id"]) for task in self._listed(project_id, query, page_size)}

    def next_tasks(self, project_id: int, count: int) -> list[StudioTask]:
        """The first tasks that nobody has worked on (no annotation, no skipped one, no draft), in the order of the Data
        Manager's first tab."""
        tabs = self._tabs(project_id)
        ordering = ((tabs[0].get("data") or {}).get("ordering") if tabs else None) or ["tasks:id"]
        query = {"ordering": ordering, "filters": _UNTOUCHED}
        params = {
            "fields": "all",
            "resolve_uri": "false",
            "query": json.dumps(query),
            "page": 1,
            "page_size": 4 * count,
        }
        answer = self._json("GET", "/api/tasks/", params={**params, "project": project_id})
        fresh = [task for task in answer.get("tasks", []) if not task.get("drafts")]
        return [
            StudioTask(
                int(task["id"]),
                dict(task["data"]),
                frozenset(str(p["model_version"]) for p in task.get("predictions") or () if p.get("model_version")),
                False,
            )
            for task in fresh[:count]
        ]

    def tabs(self, project_id: int) -> dict[int, str]:
        """The tabs of a project's Data Manager: number, as in the address of the page (`?tab=7`) -> title."""
        return {int(tab["id"]): str((tab.get("data") or {}).get("title") or "") for tab in self._tabs(project_id)}

    def tasks_in_tab(self, project_id: int, tab: int, page_size: int = 1000) -> set[int]:
        """The tasks that the filters of a tab let through; what is ticked in it plays no part.

        Raises:
            ConfigError: The project has no such tab.
        """
        found = {int(each["id"]): each.get("data") or {} for each in self._tabs(project_id)}
        if tab not in found:
            there = ", ".join(f"{number} ({title})" for number, title in self.tabs(project_id).items())
            raise ConfigError(
                f"project {project_id} has no tab {tab}; it has {there or 'none yet'}. The number of a tab is in the "
                "address of its page: ?tab=7"
            )
        query = {"ordering": ["tasks:id"]}
        if filters := found[tab].get("filters"):
            query["filters"] = filters
        return {int(task["id"]) for task in self._listed(project_id, query, page_size)}

    def _tabs(self, project_id: int) -> list[dict[str, Any]]:
        return list(self._json("GET", "/api/dm/views/", params={"project": project_id}))

    def annotated(self, project_id: int, page_size: int = 500) -> dict[int, str]:
        """The tasks of a project with a submitted annotation: id -> when anything about the task changed (ISO 8601; a
        new prediction counts too)."""
        return {int(t["id"]): str(t["updated_at"]) for t in self._listed(project_id, _ANNOTATED, page_size)}

    def export(self, project_id: int, tasks: Sequence[int], page_size: int = 50) -> Iterator[dict[str, Any]]:
        """Tasks with all their annotations, as "Export" > JSON gives them, page by page; those without are left out."""
        for first in range(0, len(tasks), page_size):
            params = {"exportType": "JSON", "ids[]": list(tasks[first : first + page_size])}
            yield from self._json("GET", f"/api/projects/{project_id}/export", params=params)

    def _listed(self, project_id: int, query: dict[str, Any], page_size: int) -> Iterator[dict[str, Any]]:
        page = 1
        while True:
            params = {"fields": "task_only", "resolve_uri": "false", "query": json.dumps(query)}
            answer = self._object(
                "GET", "/api/tasks/", params={**params, "project": project_id, "page": page, "page_size": page_size}
            )
            tasks = answer.get("tasks", [])
            yield from tasks
            if not tasks or page * page_size >= int(answer.get("total") or 0):
                return
            page += 1

    def predictions(self, task_id: int) -> list[dict[str, Any]]:
        """The predictions of a task, with `id` and `model_version`."""
        answer = self._json("GET", "/api/predictions/", params={"task": task_id})
        return answer if isinstance(answer, list) else list(answer.get("results", []))

    def is_begun(self, task_id: int) -> bool:
        """Whether a task has an annotation, a skipped one, or a draft."""
        found = self._object("GET", f"/api/tasks/{task_id}/", params={"resolve_uri": "false"})
        return bool(found.get("annotations") or found.get("drafts"))

    def create_prediction(self, task_id: int, prediction: dict[str, Any]) -> int:
        """Stores a prediction (`result`, `score`, `model_version`) and returns its id."""
        return int(self._object("POST", "/api/predictions/", json={"task": task_id, **prediction})["id"])

    def import_predictions(self, project_id: int, predictions: Sequence[dict[str, Any]]) -> int:
        """Stores predictions (`task`, `result`, `score`, `model_version`) in one request, and returns how many.

        Measured in Label Studio 1.23.2, which has this since 1.4: it adds and replaces none, sends no webhook, counts
        them for the data manager, and leaves the tasks' `updated_at` alone. A task that is gone has the whole request
        refused with 400, with nothing stored as long as there are fewer than 500 (`PREDICTION_IMPORT_BATCH_SIZE`
        there). A prediction that does not fit the labelling configuration is left out without a word, so fewer are
        stored than were given, unless a feature flag of it stores them.
        """
        path = f"/api/projects/{project_id}/import/predictions"
        return int(self._object("POST", path, json=list(predictions)).get("created") or 0)

    def model_versions(self, project_id: int, tasks: Sequence[int]) -> dict[int, frozenset[str]]:
        """The model versions of the predictions of these tasks, in one request; a task that is gone is not there.

        Raises:
            LabelStudioError: Label Studio cannot be reached, or does not know the project (404).
        """
        return {task.id: task.model_versions for task in self.chosen_tasks(project_id, tasks)}

    def chosen_tasks(self, project_id: int, tasks: Sequence[int]) -> list[StudioTask]:
        """Those of these tasks that are still there, in one request.

        Raises:
            LabelStudioError: As `model_versions`.
        """
        query = {**_ALL_WITH_VERSIONS, "selectedItems": {"all": False, "included": list(tasks)}}
        try:
            return [_studio_task(task) for task in self._listed(project_id, query, max(1, len(tasks)))]
        except LabelStudioError as error:
            if error.status != 404:
                raise
            raise LabelStudioError(
                f"Label Studio at {self.url} does not know project {project_id}: it was deleted, or this is the "
                "address of another Label Studio",
                404,
                error.detail,
            ) from error

    # --- fields of tasks (`backend.studio.data_fields`) ---------------------------------------------------------------

    def set_data_field(self, project_id: int, tasks: Sequence[int], name: str, value: str | float) -> None:
        """Gives tasks one field in their data, and leaves the rest of it alone (1.23.2: their `updated_at` too)."""
        self._request(
            "POST",
            "/api/dm/actions",
            params={"id": "add_data_field", "project": project_id},
            json={
                "selectedItems": {"all": False, "included": list(tasks)},
                "project": str(project_id),
                "value_name": name,
                "value_type": "String" if isinstance(value, str) else "Number",
                "value": value,
            },
        )

    def tasks_with_field(self, project_id: int, name: str, tasks: Sequence[int]) -> set[int]:
        """Those of these tasks whose data holds a field as it was imported."""
        item = {"filter": f"filter:tasks:data.{name}", "operator": "empty", "type": "String", "value": False}
        query = {
            "filters": {"conjunction": "and", "items": [item]},
            "selectedItems": {"all": False, "included": list(tasks)},
        }
        return {int(task["id"]) for task in self._listed(project_id, query, max(1, len(tasks)))}

    def first_data_column(self, project_id: int) -> str:
        """The data manager's first column of the tasks' data: the field that `$undefined$` is shown as."""
        found = self._object("GET", "/api/dm/columns/", params={"project": project_id}).get("columns", [])
        return next((str(column["id"]) for column in found if column.get("parent") == "data"), "")

    def replace_data(self, task_id: int, data: dict[str, Any]) -> None:
        """Replaces all of a task's data."""
        self._request("PATCH", f"/api/tasks/{task_id}/", json={"data": data})

    def reset_summary(self, project_id: int) -> None:
        """Has Label Studio count anew which fields the tasks of a project have."""
        self._request("POST", f"/api/projects/{project_id}/summary/reset/", json={})

    def delete_prediction(self, prediction_id: int) -> None:
        """Removes a prediction; one that is gone already is fine."""
        try:
            self._request("DELETE", f"/api/predictions/{prediction_id}/")
        except LabelStudioError as error:
            if error.status != 404:
                raise

    def version_counts(self, project_id: int) -> dict[str, int]:
        """How many predictions a project has of each model version."""
        found = self._object("GET", f"/api/projects/{project_id}/model-versions/")
        return {str(version): int(count) for version, count in found.items()}

    def delete_version(self, project_id: int, version: str) -> int:
        """Removes all predictions of a version from a project, in one request, and returns how many; where annotators
        were shown this version, they are shown none until another is chosen."""
        path = f"/api/projects/{project_id}/model-versions/"
        answer = self._object("DELETE", path, json={"model_version": version})
        return int(answer.get("deleted_predictions") or 0)

    # --- requests -----------------------------------------------------------------------------------------------------

    def get_stream(self, path: str, params: dict[str, str] | None = None) -> requests.Response:
        """The open answer to a GET of a path on Label Studio: body not read, redirects not followed, status not
        looked at. The caller closes it."""
        response = self._send("GET", path, headers=self.authorization(), params=params, stream=True)
        if response.status_code == 401 and self._forget_access_token():
            response.close()
            response = self._send("GET", path, headers=self.authorization(), params=params, stream=True)
        return response

    def _json(self, method: str, path: str, **arguments: Any) -> Any:
        return self._decoded(self._request(method, path, **arguments), f"{method} {path}")

    def _object(self, method: str, path: str, **arguments: Any) -> dict[str, Any]:
        """As `_json`, of an answer that is a JSON object. Raises LabelStudioError for anything else."""
        answer = self._json(method, path, **arguments)
        if not isinstance(answer, dict):
            raise LabelStudioError(
                f"{method} {path}: {self.url} answered with {type(answer).__name__}, not with an object; is that the "
                "address of Label Studio?",
                status=400,
            )
        return answer

    def _request(self, method: str, path: str, **arguments: Any) -> requests.Response:
        response = self._send(method, path, headers=self.authorization(), **arguments)
        if response.status_code == 401 and self._forget_access_token():
            response = self._send(method, path, headers=self.authorization(), **arguments)
        self._raise_for_status(response, f"{method} {path}")
        return response

    def _send(self, method: str, path: str, **arguments: Any) -> requests.Response:
        try:
            return self._session().request(
                method,
                self.url + path,
                timeout=(min(self.timeout, 5.0), self.timeout),
                allow_redirects=False,
                **arguments,
            )
        except requests.RequestException as error:
            raise LabelStudioError(
                f"Label Studio at {self.url} cannot be reached: {connection_fault(error)}"
            ) from error

    def _session(self) -> requests.Session:
        """One session per thread: requests does not promise that a session can be shared."""
        session: requests.Session | None = getattr(self._local, "session", None)
        if session is None:
            session = requests.Session()
            session.auth = lambda request: request  # else requests would put what ~/.netrc has in place of the token
            for scheme in ("http://", "https://"):
                session.mount(scheme, CheckedAdapter(lambda found: not is_metadata(found), _refused_address))
            self._local.session = session
        return session

    def _raise_for_status(self, response: requests.Response, what: str) -> None:
        status = response.status_code
        if status < 300:
            return
        if status in (401, 403):
            message = (
                f"Label Studio at {self.url} does not accept the {self._kind_in_words()} ({status}: "
                f"{error_detail(response)}); set LASAGNA_LABEL_STUDIO_URL and LASAGNA_LABEL_STUDIO_TOKEN to an "
                f"address and "
                "a token that belong together (legacy tokens may be switched off: use a personal access token)"
            )
            if not self.token:
                message = f"Label Studio at {self.url} wants a token ({status}); set LASAGNA_LABEL_STUDIO_TOKEN"
            raise LabelStudioError(message, status, error_detail(response))
        if status < 400:
            target = redirect_target(response.headers.get("Location") or "")
            raise LabelStudioError(
                f"{what}: Label Studio at {self.url} redirects{target}; give the address that it redirects "
                "to as LASAGNA_LABEL_STUDIO_URL",
                status,
            )
        detail = error_detail(response)
        raise LabelStudioError(f"{what}: Label Studio at {self.url} answered {status}: {detail}", status, detail)

    def _decoded(self, response: requests.Response, what: str) -> Any:
        try:
            return response.json()
        except (ValueError, RecursionError) as error:
            raise LabelStudioError(
                f"{what}: {self.url} answered with something else than JSON; is that the address of Label Studio?",
                status=400,
            ) from error


def _studio_task(task: dict[str, Any]) -> StudioTask:
    return StudioTask(
        id=int(task["id"]),
        data=dict(task["data"]),
        model_versions=_versions(task),
        is_annotated=bool(task.get("total_annotations")),
    )


def _versions(task: dict[str, Any]) -> frozenset[str]:
    """A task's model versions: they come as text, "a, b"; a version with a comma in it is never one of ours."""
    return frozenset(filter(None, map(str.strip, str(task.get("predictions_model_versions") or "").split(","))))


def token_claims(token: str) -> dict[str, Any] | None:
    """The claims of a JWT, not verified; None where the token is no JWT."""
    parts = token.split(".")
    if len(parts) != 3:
        return None
    try:
        claims = json.loads(base64.urlsafe_b64decode(parts[1] + "=" * (-len(parts[1]) % 4)))
    except ValueError:
        return None
    return claims if isinstance(claims, dict) else None


def error_detail(response: requests.Response) -> str:
    """The reason that Label Studio gives in an error's body, in one line.

    Of an answer in another form nothing is said but what its status means: whoever names an address as Label Studio
    would else read through us what that address answers.
    """
    try:
        body = response.json()
    except (ValueError, RecursionError):
        body = None
    if isinstance(body, dict):
        found = body.get("validation_errors") or body.get("detail") or body.get("error")
        if found:
            return " ".join((found if isinstance(found, str) else json.dumps(found, ensure_ascii=False)).split())[:300]
    return http.client.responses.get(response.status_code, "no reason that is Label Studio's")


def _refused_address(scheme: str, host: str) -> LabelStudioError:
    return LabelStudioError(
        f"{scheme}://{host} is not asked: it leads to an address at which a cloud tells a machine its secrets, and no "
        "Label Studio is there; correct the address",
        status=400,
    )


def connection_fault(error: requests.RequestException) -> str:
    """Why no answer came, in a few words."""
    if isinstance(error, requests.ConnectTimeout):
        return "no connection within the time limit"
    if isinstance(error, requests.Timeout):
        return "no answer within the time limit"
    text = str(error)
    for known in ("Connection refused", "Name or service not known", "Connection reset", "No route to host"):
        if known in text:
            return known.lower()
    return " ".join(text.split())[:200]

"""The checks of `lasagna doctor` on a project: its labels, its backend and its webhook.

Label Studio says little when something is amiss: it shows a backend as disconnected, and an address without a dot gets
no webhook. So it is asked whether it would take the address, and the address is looked at from here as well.
"""

import re
import time
from typing import Any
from urllib.parse import urlsplit, urlunsplit

import requests

from backend.doctor.case import Case, Check, NotAskedError, cause
from backend.instant.taught import TaughtNames
from backend.queue.provenance import Provenance
from backend.registry.abilities import why_not_trained
from backend.registry.registry import Registry
from backend.studio.client import LabelStudio, LabelStudioError, connection_fault
from backend.studio.project_id import is_of, number_of, project_uid
from backend.studio.version_names import without_question
from lasagna.checkpoint.vocabulary import unknown_in_words
from lasagna.errors import ConfigError
from lasagna.labels.configuration import parse_label_config
from lasagna.labels.parts import ImageConfig
from lasagna.settings import registry_folder

_CORRECTIONS = {"ANNOTATION_CREATED", "ANNOTATION_UPDATED", "ANNOTATIONS_CREATED", "ANNOTATIONS_DELETED"}
"""The events without which corrections go unnoticed."""
_JUST_NOW = 60.0
_GATEWAY_SECONDS = 55.0
"""Gateways often end a request after 60 s, Label Studio itself after 100 s."""
_HERE = (2.0, 3.0)
"""Limits of a request to the backend from here: for the connection and the answer, in seconds."""


def _project(case: Case) -> str:
    if case.project_number is None:
        numbers = {number_of(uid) for uid in case.store.projects()} if case.has_redis else set()
        known = sorted(int(number) for number in numbers if number.isdigit())
        which = f" (connected: {', '.join(map(str, known[-20:]))})" if known else ""
        raise NotAskedError(f"because no project is named: --project NUMBER{which}")
    try:
        case.project = case.label_studio.project(case.number)
    except LabelStudioError as error:
        if error.status not in (403, 404):
            raise
        case.wrong("project-none", project=case.number, user=case.who, detail=error.detail)
    case.uid = project_uid(case.project)
    return f"{case.project['title']!r}, {case.project.get('task_number')} tasks"


# --- labels -----------------------------------------------------------------------------------------------------------


def _labels(case: Case) -> str:
    try:
        plan = case.plan = parse_label_config(case.project["label_config"])
    except ConfigError as error:
        case.wrong("config-control", error=str(error))
    for part in plan.not_served:
        case.note("note-not-served", part=str(part))
    asked = {query.name for query in plan.classes}
    said = []
    for image in plan.images:
        _look_at_labels(case, image, asked)
        kinds = ", ".join(dict.fromkeys(control.kind for control in image.drawn))
        name = f"{image.image_name}: " if len(plan.images) > 1 else ""
        of_task = " and those of each task" if any(control.is_dynamic for control in image.controls) else ""
        said.append(f"{name}{len(image.classes)} asked{of_task}, drawn as {kinds}")
    return "; ".join(said) + (f"; left to people: {', '.join(plan.by_people)}" if plan.by_people else "")


def _look_at_labels(case: Case, image: ImageConfig, asked: set[str]) -> None:
    for own in image.controls:
        for label in own.labels:
            other = own.label_written(list(label.path) or label.written)
            if other is not None and other is not label:
                labels = f"{other.value!r} and {label.value!r}"
                case.wrong("config-alias", labels=labels, control=own.name, written=label.written)
    unknown = sorted(value for value, _ in image.absent_values if value not in asked)
    if unknown and not any(control.is_dynamic for control in image.controls):
        case.wrong("config-absent", choices=", ".join(map(repr, unknown)))


# --- the connection ---------------------------------------------------------------------------------------------------


def _backend(case: Case) -> str:
    connected = case.connected = case.label_studio.backends(case.number)
    if not connected:
        _say_why_refused(case, case.backend_url)
        case.wrong("backend-none", project=case.number, url=case.backend_url)
    backend = case.backend
    url, is_ours, found = str(backend["url"]), *_look_at(str(backend["url"]))
    if is_ours is False:
        case.wrong("backend-other", count=len(connected), url=url, found=found)
    if backend["state"] == "DI":
        _say_why_refused(case, url)
        if is_ours is None:
            case.wrong("backend-down", url=url, detail=found)
        case.wrong("backend-password" if found else "backend-unreachable", url=url)
    if backend["state"] == "ER":
        said = str(backend.get("error_message") or "")
        if said.startswith("401"):
            case.wrong("backend-password", url=url)
        reason = re.fullmatch(r"\d+ \w+ Error: (.*) for url: .*", said, flags=re.DOTALL)
        case.wrong("backend-setup", url=url, error=reason[1] if reason else said)
    if case.has_redis:
        told = case.store.told(case.uid)
        if told is None or told > _JUST_NOW:
            case.wrong("backend-redis", url=url, redis=case.redis_url)
    plan = case.plan
    images = plan.images if plan is not None else ()
    is_smart = any(image.question_area or any(control.smart for control in image.controls) for image in images)
    if case.settings.predict_deadline > _GATEWAY_SECONDS:
        case.note("note-deadline", seconds=case.settings.predict_deadline)
    if is_smart and not backend.get("is_interactive"):
        case.note("note-interactive")
    if case.project.get("start_training_on_annotation_update"):
        case.note("note-train-on-submit")
    case.version = str(backend["model_version"])
    if plan is not None and case.has_redis:
        question = Provenance(case.store).question_of(case.uid, plan, case.settings)
        taught = TaughtNames(case.settings, Registry(registry_folder(case.settings)))
        if names := taught.unknown(case.uid, case.version, question):
            closed = taught.is_closed(case.version)
            words = unknown_in_words(without_question(case.version), names, closed)
            case.note("note-closed-list" if closed else "note-unknown", words=words)
    if case.has_redis and (words := why_not_trained(case.uid, Registry(registry_folder(case.settings)), case.store)):
        case.note("note-not-trained", words=words)
    return f"{url} is connected, and serves {case.version}"


def _say_why_refused(case: Case, url: str) -> None:
    """Raises where Label Studio would not connect this address, or not any more."""
    refusal = case.label_studio.refuses_backend(case.number, url)
    if refusal is not None:
        status, detail = refusal
        case.wrong("backend-blocked" if status == 403 else "backend-unresolved", url=url, detail=detail)


def _look_at(url: str) -> tuple[bool | None, str]:
    """Whether a backend is ours (None: it cannot be seen from here), and what else was found there."""
    try:
        answer = requests.get(url.rstrip("/") + "/health", timeout=_HERE, allow_redirects=False)
    except requests.RequestException as error:
        return None, connection_fault(error)
    try:
        said = answer.json().get("model_class")
    except (ValueError, AttributeError):
        said = None
    if said == "LasagnaBackend":
        return True, ""
    if answer.status_code in (401, 403):
        return True, "a gateway that wants a password"
    return False, f"it says that it is {said}" if said else f"/health is answered with {answer.status_code}"


def _host_name(case: Case) -> str:
    """Without a configured address, workers use what Label Studio calls itself."""
    hostname, settings = case.store.project(case.uid).url, case.settings
    if settings.label_studio_url and settings.origins["label_studio_url"] != "command line":
        return f"Label Studio calls itself {hostname}; LASAGNA_LABEL_STUDIO_URL is used instead"
    try:
        with LabelStudio(hostname, "", timeout=_HERE[1]).get_stream("/api/version") as answer:
            found = answer.json()
        if not (isinstance(found, dict) and "release" in found):
            case.wrong("host-name", hostname=hostname, error="that is not Label Studio")
    except ValueError:
        case.wrong("host-name", hostname=hostname, error="that is not Label Studio")
    except (ConfigError, LabelStudioError) as error:
        case.wrong("host-name", hostname=hostname, error=cause(error))
    return f"Label Studio calls itself {hostname}, which works"


# --- the webhook ------------------------------------------------------------------------------------------------------


def _webhook(case: Case) -> str:
    url = str(case.backend["url"]).rstrip("/") + "/webhook"
    webhooks = case.label_studio.webhooks(case.number)
    ours = [webhook for webhook in webhooks if _place(webhook["url"]) == _place(url)]
    if not ours:
        _say_why_no_webhook(case, url)
        case.wrong("webhook-none", url=url)
    faults = {webhook["url"]: _fault(webhook) for webhook in ours}
    if all(faults.values()):
        case.wrong("webhook-off", url=url, what=next(iter(faults.values())))
    webhook = next(webhook for webhook in ours if not faults[webhook["url"]])
    tells = webhook["send_for_all_actions"] or "PROJECT_UPDATED" in webhook["actions"]
    if tells:
        _send(case, webhook)
    places = {_place(str(one["url"]).rstrip("/") + "/webhook") for one in case.connected}
    for other in webhooks:
        place = _place(other["url"])
        if other["project"] is not None and place.endswith("/webhook") and place not in places:
            case.note("note-webhook-stale", url=place)
    return f"to {url}; " + (
        "an event that Label Studio sent arrived" if tells else "not tried: it is for annotations only"
    )


def _say_why_no_webhook(case: Case, url: str) -> None:
    refusal = case.label_studio.refuses_webhook(case.number, url)
    host = urlsplit(url).hostname or ""
    if refusal and "." not in host:
        case.wrong("webhook-dotless", url=url, host=host, detail=refusal)
    if refusal:
        case.wrong("webhook-blocked", url=url, detail=refusal)


def _fault(webhook: dict[str, Any]) -> str:
    if not webhook["is_active"]:
        return "is switched off"
    if not webhook["send_payload"]:
        return "sends no payload, so that nobody knows of which project"
    missing = _CORRECTIONS - set(webhook["actions"])
    return f"does not send {', '.join(sorted(missing))}" if missing and not webhook["send_for_all_actions"] else ""


def _send(case: Case, webhook: dict[str, Any]) -> None:
    """Has Label Studio send an event and waits until it is noted."""
    before = _last_noted(case)
    case.label_studio.touch(case.number)
    deadline = time.monotonic() + case.event_seconds
    while time.monotonic() < deadline:
        if _last_noted(case) > before:
            return
        time.sleep(0.1)
    _say_why_no_webhook(case, webhook["url"])
    url = _place(webhook["url"])
    body = {"action": "PROJECT_UPDATED", "project": {"id": case.number}}
    try:
        answer = requests.post(webhook["url"], json=body, headers=webhook["headers"], timeout=_HERE)
    except requests.RequestException as error:
        case.wrong("webhook-lost", url=url, detail=f"nor from here: {connection_fault(error)}")
    if answer.status_code in (401, 403):
        case.wrong("webhook-password", url=url, status=answer.status_code)
    case.wrong("webhook-lost", url=url, detail=f"from here it is answered with {answer.status_code}")


def _last_noted(case: Case) -> float:
    """When the last update of the project was noted; 0 where none was."""
    of_project = [event for event in case.store.events(200) if is_of(event.get("project") or "", case.uid)]
    return max((float(event["time"]) for event in of_project if event.get("action") == "PROJECT_UPDATED"), default=0.0)


def _place(url: str) -> str:
    """An address without user name, password and query."""
    parts = urlsplit(url)
    return urlunsplit((parts.scheme, parts.netloc.rpartition("@")[2], parts.path, "", ""))


PROJECT_CHECKS: tuple[Check, ...] = (
    Check("project", ("token",), _project),
    Check("labels", ("project",), _labels),
    Check("backend", ("project",), _backend),
    Check("host-name", ("redis", "backend"), _host_name),
    Check("webhook", ("redis", "backend"), _webhook),
)

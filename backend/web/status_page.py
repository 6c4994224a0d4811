"""GET /status: what runs, what waits, what failed and why, for people. And the gate's reports, which it links to.

What always holds: the page is one file without scripts, which a browser loads again by itself; what it shows comes from
Redis and the registry's files alone, so it is quick also while Label Studio is gone; every text of others (titles,
reasons, labels) is escaped. Looking changes nothing; its one button, "Try again", is a POST that other sites cannot
send (`backend.web.cross_site`).
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import redis
from flask import Blueprint, Response, redirect, request
from flask.typing import ResponseReturnValue
from werkzeug.exceptions import NotFound

from backend.instant.changes import Changes
from backend.instant.heads import ProjectHeads
from backend.instant.policy import learns_at_once
from backend.instant.taught import TaughtNames
from backend.loop.trainings import Trainings
from backend.queue.counters import REASONS
from backend.queue.freshness import Reasons
from backend.queue.jobs import find_jobs
from backend.queue.living_workers import current_job, living_workers
from backend.queue.provenance import Provenance
from backend.queue.store import PREFIX, Project, Store
from backend.registry.known_projects import KnownProjects
from backend.registry.label_histories import LabelHistories
from backend.registry.registry import Registry, Version
from backend.studio.project_id import is_project_name, number_of
from backend.web.overview import retry_failed
from backend.web.prelabel_jobs import PrelabelJobs
from lasagna.errors import ConfigError, RegistryError
from lasagna.labels.question import ProjectQuestion, name_version
from lasagna.pages import page_environment
from lasagna.progress import in_time
from lasagna.settings import Settings

_REFRESH = 5
"""Seconds after which a browser loads the page again."""
_RATE_SECONDS = 60.0
"""The rate is that of the last so many seconds."""
_LOOKED_AT = 1000
"""Failed tasks that are sorted by reason, and running ones by project."""
_SHOWN_TASKS, _SHOWN_REASONS, _SHOWN_JOBS, _SHOWN_RUNNING = 6, 3, 8, 12
_KINDS = {
    "image": "Image cannot be used",
    "configuration": "Labelling configuration",
    "label_studio": "Label Studio refused",
    "unreachable": "No answer",
    "version": "Version cannot be loaded",
    "model": "Model raised an error",
    "timeout": "Took too long",
    "crash": "Worker died",
    "other": "Other",
}


class TaskLink(NamedTuple):
    """A task with its address in Label Studio; "" where that is not known."""

    task: str
    url: str


@dataclass
class Failures:
    """Failed tasks of one project and kind of reason.

    Attributes:
        project: The uid.
        kind: One of `backend.queue.counters.REASONS`.
        count: How many; those beyond `_LOOKED_AT` are not counted.
        reasons: A few in words, the newest first.
        places: A few tasks.
        seconds_ago: Since the newest.
    """

    project: str
    kind: str
    seconds_ago: float
    count: int = 0
    reasons: list[str] = field(default_factory=list)
    places: list[TaskLink] = field(default_factory=list)

    @property
    def title(self) -> str:
        return _KINDS[self.kind]


@dataclass
class Running:
    """Tasks of one project and version that are worked on; `seconds`: the first of them, since it was begun."""

    project: str
    version: str
    seconds: float
    count: int = 0
    places: list[TaskLink] = field(default_factory=list)


@dataclass(frozen=True)
class Serving:
    """What serves a project: `champion`, or the worker's own model where that is None.

    `learnt` is the instant head in words, "" where there is none; `waiting` corrections are not learnt from yet;
    `aside` are tasks that cannot be learnt from, with the reason; `not_served` are parts of its labelling configuration
    that no prediction is made for. `fresh` tasks have a prediction that answers what is asked now; `outdated`: why
    those of others do not, and how many; of tasks that nobody has annotated, as far as is known here.
    `unknown` labels are those that it was never taught; `closed`: corrections do not teach it any.
    """

    project: str
    champion: Version | None
    candidate: Version | None
    training: dict[str, str]
    url: str
    problem: str = ""
    learnt: str = ""
    waiting: int = 0
    aside: Sequence[tuple[TaskLink, str]] = ()
    not_served: Sequence[str] = ()
    fresh: int = 0
    outdated: Sequence[tuple[str, int]] = ()
    unknown: Sequence[str] = ()
    closed: bool = False


@dataclass(frozen=True)
class WorkerSeen:
    """A living worker; `seconds_ago` since its last sign of life, `work` in words."""

    name: str
    queues: Sequence[str]
    state: str
    work: str
    seconds_ago: float
    done: int
    failed: int


def status_routes(settings: Settings, store: Store, registry: Registry) -> Blueprint:
    """GET /status, POST /status/retry, GET /gate/VERSION."""
    pages, taught = Blueprint("status", __name__), TaughtNames(settings, registry)

    @pages.get("/status")
    def status() -> ResponseReturnValue:
        try:
            shown, code = look(settings, store, registry, taught), 200
        except redis.RedisError as error:
            shown, code = {"problem": str(error)}, 503
        said = {name: request.args.get(name, type=int) for name in ("queued", "posted")}
        return Response(render_status(shown, **said), code, mimetype="text/html")

    @pages.post("/status/retry")
    def retry() -> ResponseReturnValue:
        project, kind = request.form.get("project", ""), request.form.get("kind", "")
        if (project and not is_project_name(project)) or (kind and kind not in REASONS):
            raise ConfigError(f"there is no project {project[:20]!r} or no kind of reason {kind[:20]!r}")
        chosen = KnownProjects.from_settings(settings, store).resolve(project) if project else None
        queued, posted = retry_failed(store, settings.batch_size, chosen, kind or None)
        return redirect(f"../status?queued={queued}&posted={posted}", 303)  # relative: a proxy may add a prefix

    @pages.get("/gate/<version>")
    def gate(version: str) -> ResponseReturnValue:
        """The report that came with a version of the registry: a name of ours, and no path."""
        try:
            report = gate_report(registry.version(version))
        except RegistryError as error:
            raise NotFound(str(error)) from error
        if report is None:
            raise NotFound(f"no report of the gate came with {version}")
        return Response(report.read_text(encoding="utf-8"), mimetype="text/html")

    return pages


def gate_report(version: Version) -> Path | None:
    """The page that the gate made of a version, if one came with it."""
    return next((path for path in version.reports if path.name == "report.html"), None)


def look(settings: Settings, store: Store, registry: Registry, taught: TaughtNames) -> dict[str, Any]:
    """What the page shows. Raises redis.RedisError."""
    now, counts, model = store.now(), store.counts(), store.model()
    workers = _workers(store, now)
    done = int(store.redis.zcount(f"{PREFIX}state:done", now - _RATE_SECONDS, "+inf"))
    left = counts["queued"] + counts["running"]
    projects = store.known_projects()
    urls = {uid: project.url for uid, project in projects.items()}
    jobs, open_jobs = PrelabelJobs(store).recent(), PrelabelJobs(store).under_way()
    open_ids = {job["id"] for job in open_jobs}
    known = KnownProjects.from_settings(settings, store)
    running, failures = _running(store, urls, now), _failures(store, urls, now)
    serving = _serving(settings, store, registry, taught, known, projects)
    shown_jobs = [*open_jobs, *(job for job in jobs if job["id"] not in open_ids)][:_SHOWN_JOBS]
    named = (
        {each.project for each in running} | {each.project for each in failures} | {each.project for each in serving}
    )
    named |= {job["uid"] for job in shown_jobs}
    return {
        "model": model["version"] if model else None,
        "counts": counts,
        "rate": done / _RATE_SECONDS if done else None,
        "seconds_left": left * _RATE_SECONDS / done if done and left else None,
        "jobs": shown_jobs,
        "now": now,
        "running": running,
        "failures": failures,
        "serving": serving,
        "names": known.names(named),
        "workers": workers,
        "someone_predicts": any("predict" in worker.queues for worker in workers),
    }


def render_status(shown: dict[str, Any], queued: int | None = None, posted: int | None = None) -> str:
    """The page; `queued` and `posted` say what a retry did."""
    said = None if queued is None or posted is None else (queued, posted)
    template = page_environment("backend").get_template("status.html")
    return template.render(
        **shown, said=said, refresh=_REFRESH, in_time=in_time, gate_report=gate_report, number_of=number_of
    )


def _place(fields: dict[str, str], urls: dict[str, str]) -> TaskLink:
    project, task = fields["project"], fields.get("task") or ""
    url = urls.get(project)
    place = f"{url}/projects/{number_of(project)}/data?task={task}" if url and task else ""
    return TaskLink(task or "without a number", place)


def _running(store: Store, urls: dict[str, str], now: float) -> list[Running]:
    groups: dict[tuple[str, str], Running] = {}
    for fields in store.fields(store.keys("running", _LOOKED_AT, oldest_first=True)):
        if not fields:
            continue
        project = fields["project"]
        ago = max(0.0, now - float(fields["changed"]))
        group = groups.setdefault((project, fields["version"]), Running(project, fields["version"], ago))
        group.count += 1
        if len(group.places) < _SHOWN_RUNNING:
            group.places.append(_place(fields, urls))
    return list(groups.values())


def _failures(store: Store, urls: dict[str, str], now: float) -> list[Failures]:
    groups: dict[tuple[str, str], Failures] = {}
    for fields in store.fields(store.keys("failed", _LOOKED_AT)):
        if not fields:
            continue
        project, kind = fields["project"], fields.get("kind", "other")
        ago = max(0.0, now - float(fields["changed"]))
        group = groups.setdefault((project, kind), Failures(project, kind, ago))
        group.count += 1
        reason = fields.get("reason") or "no reason was noted"
        if reason not in group.reasons and len(group.reasons) < _SHOWN_REASONS:
            group.reasons.append(reason)
        if len(group.places) < _SHOWN_TASKS:
            group.places.append(_place(fields, urls))
    return sorted(groups.values(), key=lambda group: group.seconds_ago)


def _serving(
    settings: Settings,
    store: Store,
    registry: Registry,
    taught: TaughtNames,
    known: KnownProjects,
    projects: Mapping[str, Project],
) -> list[Serving]:
    trainings, changes, heads = Trainings(store), Changes(store), ProjectHeads(registry.folder)
    urls = {uid: project.url for uid, project in projects.items()}
    corrected = set(changes.projects())
    own = (store.model() or {}).get("version", "")
    found = []
    for uid, _ in known.all([*registry.projects(), *trainings.projects()]):
        champion = candidate = None
        problem = ""
        learnt, waiting, aside = "", 0, list[tuple[TaskLink, str]]()
        fresh, outdated, unknown, closed = 0, list[tuple[str, int]](), list[str](), False
        try:
            champion, candidate = registry.champion(uid), registry.candidate(uid)
            if uid in projects:
                asked = _asked(settings, store, heads, uid, champion.id if champion else own)
                if asked is not None:
                    fresh, outdated = _fresh(store, registry, uid, *asked)
                    unknown, closed = taught.unknown(uid, *asked), taught.is_closed(asked[0])
            if uid in corrected:
                said = changes.said(uid)
                state = heads.current(uid, champion.id if champion else str(said.get("version") or ""))
                learnt = state.words if state else ""
                waiting = len(changes.waiting(uid))
                reasons = list(changes.aside(uid).items())[:_SHOWN_TASKS]
                aside = [(_place({"project": uid, "task": task}, urls), reason) for task, reason in reasons]
        except RegistryError as error:
            problem = str(error)
        here = projects.get(uid, Project())
        served = (champion, candidate, trainings.of(uid), here.url, problem)
        found.append(Serving(uid, *served, learnt, waiting, aside, here.not_served, fresh, outdated, unknown, closed))
    return found


def _asked(
    settings: Settings, store: Store, heads: ProjectHeads, uid: str, base: str
) -> tuple[str, ProjectQuestion] | None:
    """What the predictions of a project carry that are made now, and the question; None where none was asked yet."""
    question = Provenance(store).question_now(uid)
    if question is None:
        return None
    head = heads.current(uid, base) if learns_at_once(settings, store.project(uid)) else None
    return name_version(head.full_version if head else base, question), question


def _fresh(
    store: Store, registry: Registry, uid: str, version: str, question: ProjectQuestion
) -> tuple[int, list[tuple[str, int]]]:
    """How many predictions of a project are up to date, and why others are not."""
    provenance = Provenance(store)
    reasons = Reasons(provenance, version, question, LabelHistories(registry.folder).renamed(uid))
    fresh, outdated = reasons.counted(provenance.made_by(uid))
    return fresh, [(why.words, count) for why, count in outdated]


def _workers(store: Store, now: float) -> list[WorkerSeen]:
    found = []
    for worker in living_workers(store):
        id = current_job(store, worker)
        job = find_jobs(store.redis, [id])[0] if id else None
        found.append(
            WorkerSeen(
                worker.name,
                worker.queue_names(),
                str(worker.get_state()),
                str(job.description or "") if job else "",
                max(0.0, now - worker.last_heartbeat.timestamp()) if worker.last_heartbeat else 0.0,
                int(worker.successful_job_count or 0),
                int(worker.failed_job_count or 0),
            )
        )
    return found

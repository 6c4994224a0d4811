"""Pre-labelling of whole projects as jobs: `POST /jobs`, who runs them, and how far each is.

What always holds:

- A job's record is in Redis (`lasagna:prelabel:ID`); a run of `lasagna prelabel` has one too, so that `GET /jobs` and
  the status page show both.
- Jobs of `POST /jobs` are run by threads of the web process, which mostly wait: the work goes through the queue. Who
  runs a job holds a claim that ends by itself, so that another web process, or the next one, takes up a job whose
  process died. Should two run it for a moment, nothing is done twice (`backend.web.prelabel`).
- While Redis or Label Studio is gone a job waits; it fails when Label Studio does not answer for `delivery_timeout`
  seconds, or refuses.
"""

import json
import logging
import threading
import time
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, suppress
from typing import Any
from uuid import uuid4

import redis
from flask import Blueprint, jsonify, request, url_for
from flask.typing import ResponseReturnValue
from werkzeug.exceptions import NotFound

from backend.queue.connections import Connections
from backend.queue.heartbeat import beating
from backend.queue.store import KEEP_WORK, PREFIX, Store, connect
from backend.registry.known_projects import KnownProjects
from backend.studio.client import LabelStudioError
from backend.studio.project_id import is_of, number_of
from backend.web.predictions import Predictor
from backend.web.prelabel import Outcome, ProjectRun
from lasagna.errors import ConfigError, LasagnaError, in_words
from lasagna.logs import logged
from lasagna.settings import Settings

logger = logging.getLogger(__name__)

_CLAIM = 30
"""Seconds after which a job whose process gives no sign of life belongs to nobody."""
_NOTE_EVERY = 0.5
_LOOK_EVERY = 1.0
_PAUSE = 5.0
"""Seconds between two attempts while Label Studio is gone."""
_AT_ONCE = 4
"""Jobs that one process runs at the same time; more wait."""
_MAX_FAILURES = 100
"""Failed tasks that a record names; `lasagna jobs --state failed` lists all."""
_NUMBERS = ("project", "tab", "total", "predicted", "had_one", "annotated", "deleted", "cancelled", "failed")
_TIMES = ("created", "started", "ended")


class PrelabelJobs:
    """The records. Every method raises `redis.RedisError` where Redis is gone."""

    def __init__(self, store: Store) -> None:
        self._redis, self._store = store.redis, store

    def add(
        self, project: str, *, tab: int | None = None, refresh: bool = False, dry_run: bool = False, by: str = "api"
    ) -> str:
        """Notes a job for a project (uid) and returns its id; who is not "api" claims it at once and runs it."""
        id = uuid4().hex[:16]
        now = self._store.now()
        values = {"project": number_of(project), "uid": project, "tab": tab or "", "by": by}
        values |= {"refresh": int(refresh), "dry_run": int(dry_run)}
        with self._redis.pipeline(transaction=True) as pipe:
            pipe.hset(_key(id), mapping={**values, "state": "queued", "created": now})
            pipe.expire(_key(id), KEEP_WORK)
            pipe.zremrangebyscore(f"{PREFIX}prelabels", "-inf", now - KEEP_WORK)
            pipe.zadd(f"{PREFIX}prelabels", {id: now})
            pipe.execute()
        return id

    def now(self) -> float:
        """Seconds since 1970 by Redis's clock, which all processes share."""
        return self._store.now()

    def claim(self, id: str, owner: str) -> bool:
        """Takes a job that belongs to nobody."""
        return bool(self._redis.set(_key(id) + ":owner", owner, nx=True, ex=_CLAIM))

    def keep_claim(self, id: str, owner: str) -> None:
        self._redis.set(_key(id) + ":owner", owner, ex=_CLAIM)

    def holding(self, id: str, owner: str) -> AbstractContextManager[None]:
        """Keeps a claim alive while something may take long without a word: a list of many tasks, a slow answer."""
        return beating(_CLAIM / 4, lambda: self.keep_claim(id, owner), "prelabel-beat")

    def drop_claim(self, id: str) -> None:
        self._redis.delete(_key(id) + ":owner")

    def note(self, id: str, **values: Any) -> None:
        self._redis.hset(_key(id), mapping={name: "" if v is None else v for name, v in values.items()})

    def progress(self, id: str, owner: str, outcome: Outcome) -> None:
        """How far it is, with a sign of life."""
        self.keep_claim(id, owner)
        counts = {"predicted": outcome.done, "had_one": outcome.had_one, "annotated": outcome.annotated}
        counts |= {"deleted": outcome.deleted, "cancelled": outcome.cancelled}
        failures = {str(task): reason for task, reason in list(outcome.failed.items())[:_MAX_FAILURES]}
        lists = {"failures": json.dumps(failures), "why": json.dumps(outcome.why)}
        self.note(id, **counts, failed=len(outcome.failed), **lists, seen=self._store.now())

    def end(self, id: str, state: str, reason: str = "", **values: Any) -> None:
        """Notes that a job has ended, "done", "cancelled" or "failed", and lets go of it."""
        self.note(id, state=state, reason=reason, ended=self._store.now(), **values)
        self.drop_claim(id)

    def cancel(self, id: str) -> None:
        """Has a job end: whoever runs it sees this within a second, and lets its waiting tasks go."""
        self.note(id, cancel=1)
        if not self._redis.exists(_key(id) + ":owner") and self._redis.hget(_key(id), "state") in _OPEN:
            self.end(id, "cancelled")

    def is_cancelled(self, id: str) -> bool:
        return bool(self._redis.hget(_key(id), "cancel"))

    def cancel_project(self, project: str | None) -> tuple[int, int]:
        """Cancels all that pre-labels a project (uid; None: any), and takes out its tasks that no worker has begun and
        nobody waits for; returns how many jobs, and how many tasks."""
        running = [job for job in self.recent(1000) if job["state"] in ("running", "queued", "interrupted")]
        chosen = [job["id"] for job in running if project is None or is_of(job["uid"], project)]
        for id in chosen:
            self.cancel(id)
        waiting = self._store.keys("queued")
        of_project = [
            key
            for key, fields in zip(waiting, self._store.fields(waiting), strict=True)
            if fields and (project is None or is_of(fields["project"], project))
        ]
        return len(chosen), self._store.cancel(of_project)

    def unfinished(self) -> list[str]:
        """Jobs of the API that have not ended, oldest first."""
        ids = [id.decode() for id in self._redis.zrange(f"{PREFIX}prelabels", 0, -1)]
        with self._redis.pipeline(transaction=False) as pipe:
            for id in ids:
                pipe.hmget(_key(id), "state", "by")
            found = pipe.execute()
        return [id for id, (state, by) in zip(ids, found, strict=True) if by == b"api" and state in _OPEN]

    def recent(self, limit: int = 20) -> list[dict[str, Any]]:
        """The last jobs, the newest first."""
        ids = [id.decode() for id in self._redis.zrange(f"{PREFIX}prelabels", 0, limit - 1, desc=True)]
        return [job for id in ids if (job := self.of(id)) is not None]

    def under_way(self) -> list[dict[str, Any]]:
        """Those of the newest that run or wait."""
        return [job for job in self.recent() if job["state"] in ("running", "queued")]

    def of(self, id: str) -> dict[str, Any] | None:
        """A job as `GET /jobs/ID` shows it (docs/operations.md), or None."""
        raw = self._redis.hgetall(_key(id))
        if not raw:
            return None
        found = {name.decode(): value.decode() for name, value in raw.items()}
        job: dict[str, Any] = {"id": id, "state": found["state"], "by": found["by"]}
        if found["state"] == "running" and not self._redis.exists(_key(id) + ":owner"):
            job["state"] = "interrupted" if found["by"] != "api" else "queued"
        for name in ("refresh", "dry_run"):
            job[name] = found[name] == "1"
        job["uid"] = found.get("uid") or found["project"]  # jobs of 1.0 have the number alone
        for name in _NUMBERS:
            job[name] = int(found[name]) if found.get(name) else None
        for name in ("title", "version", "reason"):
            job[name] = found.get(name) or None
        for name in ("failures", "why"):
            job[name] = json.loads(found.get(name) or "{}")
        job["plan"] = json.loads(found["plan"]) if found.get("plan") else None
        for name in _TIMES:
            job[name] = round(float(found[name]), 3) if found.get(name) else None
        return {**job, **_pace(job, float(found.get("seen") or 0))}


_OPEN = (b"queued", b"running")


def _key(id: str) -> str:
    return f"{PREFIX}prelabel:{id}"


def _pace(job: Mapping[str, Any], seen: float) -> dict[str, Any]:
    """Tasks that are through, how many of them workers did per second, and the seconds that are left at that rate."""
    worked = (job["predicted"] or 0) + (job["failed"] or 0)
    through = worked + sum(job[name] or 0 for name in ("had_one", "annotated", "deleted", "cancelled"))
    seconds = seen - (job["started"] or seen)
    rate = worked / seconds if worked and seconds > 0 else None
    left = max(0, (job["total"] or 0) - through)
    seconds_left = left / rate if rate and job["state"] == "running" else None
    return {
        "through": through,
        "rate": None if rate is None else round(rate, 4),
        "seconds_left": None if seconds_left is None else round(seconds_left, 1),
    }


# --- running ----------------------------------------------------------------------------------------------------------


def work_on(jobs: PrelabelJobs, id: str, owner: str, run: ProjectRun, advance: Callable[[str], None]) -> Outcome:
    """Runs a job to its end, and notes how far it is. The caller holds the claim (`PrelabelJobs.holding`).

    Args:
        jobs: The records.
        id: The job.
        owner: Who claimed it.
        run: What it does.
        advance: Called once per task, with the reason if it failed.
    """
    outcome, noted = Outcome(), 0.0

    def note(reason: str) -> None:
        nonlocal noted
        advance(reason)
        if time.monotonic() - noted > _NOTE_EVERY:
            noted = time.monotonic()
            jobs.progress(id, owner, outcome)

    about = {"title": run.project["title"], "version": run.version, "total": run.total, "reason": None}
    jobs.note(id, state="running", started=jobs.now(), **about)
    run.run(note, outcome, lambda: jobs.is_cancelled(id))
    jobs.progress(id, owner, outcome)
    jobs.end(id, "cancelled" if jobs.is_cancelled(id) else "done")
    return outcome


class PrelabelRunner(threading.Thread):
    """Takes jobs that belong to nobody and runs each in a thread. All of them end with the process."""

    def __init__(self, settings: Settings) -> None:
        super().__init__(name="prelabel", daemon=True)
        self._settings = settings
        self._store = Store(connect(settings.redis_url, timeout=10.0))
        self._jobs = PrelabelJobs(self._store)
        self._predictor = Predictor(settings, self._store)
        self._connections = Connections(settings, self._store)
        self._owner = uuid4().hex
        self._places = threading.BoundedSemaphore(_AT_ONCE)

    def run(self) -> None:
        while True:
            time.sleep(_LOOK_EVERY)
            try:
                for id in self._jobs.unfinished():
                    self._take(id)
            except redis.RedisError as error:
                logger.debug("pre-labelling waits for Redis: %s", error)
            except Exception:  # the thread lives as long as the process: nobody else would run a job
                logger.exception("looking for pre-labelling jobs failed; it goes on")

    def _take(self, id: str) -> None:
        if not self._places.acquire(blocking=False):
            return
        try:
            mine = self._jobs.claim(id, self._owner)
        except redis.RedisError:
            self._places.release()
            raise
        if not mine:
            self._places.release()
            return
        threading.Thread(target=self._run, args=[id], name=f"prelabel-{id}", daemon=True).start()

    def _run(self, id: str) -> None:
        try:
            with logged(job=id), self._jobs.holding(id, self._owner):
                self._patiently(id)
        finally:
            self._places.release()

    def _patiently(self, id: str) -> None:
        """Runs a job; again and again while Label Studio is gone. Each task that gets through ends such a time."""
        gone_since: float | None = None

        def advance(reason: str) -> None:
            nonlocal gone_since
            gone_since = None

        while True:
            try:
                self._work(id, advance)
                return
            except redis.RedisError as error:
                logger.warning("job %s waits for Redis: %s", id, error)
                return  # the claim ends by itself, and somebody takes the job up
            except LabelStudioError as error:
                gone_since = gone_since or time.monotonic()
                too_long = time.monotonic() - gone_since > self._settings.delivery_timeout
                if not error.is_temporary or too_long:
                    self._fail(id, str(error))
                    return
                logger.warning("job %s: %s; tried again", id, error)
                with suppress(redis.RedisError):
                    self._jobs.note(id, reason=f"{error}; tried again")
                time.sleep(_PAUSE)
            except LasagnaError as error:
                self._fail(id, str(error))
                return
            except Exception as error:  # whatever it is, it is about this job
                logger.exception("job %s failed", id)
                self._fail(id, in_words(error))
                return

    def _work(self, id: str, advance: Callable[[str], None]) -> None:
        job = self._jobs.of(id)
        if job is None:
            return
        number = int(job["project"])
        with logged(project=number):
            label_studio, _ = self._connections.of(self._predictor.known.resolve(job["uid"]))
            run = ProjectRun(self._predictor, label_studio, number, tab=job["tab"], refresh=job["refresh"])
            if job["dry_run"]:
                self._jobs.note(id, state="running", started=self._store.now(), total=run.total)
                plan = run.dry_run(advance)
                about = {"title": run.project["title"], "version": run.version}
                self._jobs.end(id, "done", plan=json.dumps(plan.as_dict()), **about)
                return
            logger.info("pre-labelling project %d: %d tasks, %s", number, run.total, run.version)
            outcome = work_on(self._jobs, id, self._owner, run, advance)
            logger.info("pre-labelled project %d: %d predicted, %d failed", number, outcome.done, len(outcome.failed))

    def _fail(self, id: str, reason: str) -> None:
        logger.error("job %s failed: %s", id, reason)
        with suppress(redis.RedisError):
            self._jobs.end(id, "failed", reason)


# --- the API ----------------------------------------------------------------------------------------------------------


def prelabel_routes(settings: Settings, store: Store) -> Blueprint:
    """POST /jobs, GET /jobs, GET /jobs/ID and DELETE /jobs/ID, which cancels."""
    pages, jobs, connections = Blueprint("jobs", __name__), PrelabelJobs(store), Connections(settings, store)
    known = KnownProjects.from_settings(settings, store)

    @pages.post("/jobs")
    def add() -> ResponseReturnValue:
        asked = parse_request(request.get_json(silent=True))
        uid = known.resolve(str(asked.pop("project")), asked.pop("server"))
        connections.of(uid)  # says at once where no address is known
        id = jobs.add(uid, **asked)
        place = url_for("jobs.show", id=id)
        return jsonify(jobs.of(id)), 202, {"Location": place}

    @pages.get("/jobs")
    def every() -> ResponseReturnValue:
        return jsonify({"jobs": jobs.recent()})

    @pages.get("/jobs/<id>")
    def show(id: str) -> ResponseReturnValue:
        job = jobs.of(id)
        if job is None:
            raise NotFound(f"there is no job {id!r}; jobs are kept for {KEEP_WORK // 86400} days")
        return jsonify(job)

    @pages.delete("/jobs/<id>")
    def cancel(id: str) -> ResponseReturnValue:
        job = jobs.of(id)
        if job is None:
            raise NotFound(f"there is no job {id!r}; jobs are kept for {KEEP_WORK // 86400} days")
        if job["state"] in ("queued", "running", "interrupted"):
            jobs.cancel(id)
        return jsonify(jobs.of(id)), 202

    return pages


def parse_request(body: Any) -> dict[str, Any]:
    """`project`, `server` ("" where it names none), `tab`, `refresh` and `dry_run` of a request.

    Raises:
        ConfigError: It is no JSON object with a project, or holds anything else.
    """
    if not isinstance(body, Mapping):
        raise ConfigError('the body of the request is not a JSON object such as {"project": 3}')
    unknown = sorted(set(body) - {"project", "server", "tab", "refresh", "dry_run"})
    if unknown:
        raise ConfigError(f"{', '.join(unknown)}: not known here; a job has project, server, tab, refresh and dry_run")
    server = body.get("server", "")
    if not isinstance(server, str):
        raise ConfigError(f"server is the address of a Label Studio, not {server!r}")
    numbers = {name: body.get(name) for name in ("project", "tab")}
    for name, number in numbers.items():
        is_number = isinstance(number, int) and not isinstance(number, bool) and 0 < number < 1 << 31
        if not is_number and not (name == "tab" and number is None):
            raise ConfigError(f"{name} is a number in Label Studio, from 1 on, not {number!r}")
    switches = {name: body.get(name, False) for name in ("refresh", "dry_run")}
    for name, switch in switches.items():
        if not isinstance(switch, bool):
            raise ConfigError(f"{name} is true or false, not {switch!r}")
    return {**numbers, **switches, "server": server}

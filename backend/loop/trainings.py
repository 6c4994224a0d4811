"""When a project is trained: the policy, what is known of each project's fine-tunes, and the one who decides.

Everything that may start a fine-tune comes as an event: Label Studio's webhooks, and what `lasagna train --project`
asks for. `/webhook` only puts it into a stream of Redis. The training process reads the stream (`Triggers`), counts,
and starts jobs. What always holds:

- Per project one job is queued or running. Whatever asks for another meanwhile causes one more afterwards, not several.
- Events are read in order, and one that is read twice counts once; what came while nobody read waits in the stream. At
  its start the process also asks Label Studio what has changed since the newest snapshot, since webhooks are sent once
  and may have been missed.
- A job's folder (`backend.loop.job`) is the truth about it: one without `end.json` is taken up again at the next
  start, also when Redis has forgotten it.
- A project that another maker's model serves is not fine-tuned: no job begins, whatever asks. It is said in the log
  once, and as the outcome "refused"; its corrections are counted on.
"""

import json
import logging
import re
import threading
import time
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any
from uuid import uuid4

import redis
from rq.cron import CronJob

from backend.instant.heads import ProjectHeads
from backend.instant.policy import learns_at_once
from backend.queue import jobs
from backend.queue.counters import Meter
from backend.queue.store import KEEP_WORK, PREFIX, TRAINING, Store
from backend.registry.abilities import why_not_trained
from backend.registry.known_projects import KnownProjects
from backend.registry.records import project_key, project_number
from backend.registry.registry import Registry
from backend.studio.client import LabelStudioError
from backend.studio.project_id import is_project_name, made_at, number_of
from lasagna.errors import ConfigError, LasagnaError, RegistryError, in_words
from lasagna.files import write_atomically
from lasagna.settings import Settings

logger = logging.getLogger(__name__)

ASKED = "TRAIN"
"""The action of the event by which `lasagna train --project` asks for a fine-tune."""
STARTED = "START_TRAINING"
"""The action of Label Studio's "Start Training"."""
CHANGES = {
    "ANNOTATION_CREATED",
    "ANNOTATIONS_CREATED",
    "ANNOTATION_UPDATED",
    "ANNOTATIONS_UPDATED",
    "ANNOTATION_DELETED",
    "ANNOTATIONS_DELETED",
    "TASKS_CREATED",
    "TASKS_DELETED",
}
_ASK_AGAIN = 30.0
"""Seconds after which projects are asked again that could not be asked what was missed."""
_TRIES = 3
"""So often an event is tried that fails for no reason of its own."""
_WAIT = 2.0
"""Seconds for which events are waited for before schedules are looked at."""


@dataclass(frozen=True)
class Policy:
    """When a project is trained.

    Attributes:
        every: After so many corrected tasks, or None.
        beside_head: The same while an instant head draws; None: `every`.
        cron: By this schedule ("0 3 * * *", local time) where something was corrected, or "".
        by_button: Label Studio's "Start training" starts one.
    """

    every: int | None = None
    beside_head: int | None = None
    cron: str = ""
    by_button: bool = True

    @classmethod
    def parse(cls, text: str) -> "Policy":
        """Reads "auto", "every 20", "cron 0 3 * * *", "by hand" or "never". Raises ConfigError."""
        words = text.strip().lower()
        if len(words) > _LONGEST_POLICY:
            words = ""
        if words == "auto":
            return cls(every=20, beside_head=100)
        if found := re.fullmatch(r"every ([0-9]{1,9})", words):
            if int(found[1]) > 0:
                return cls(every=int(found[1]))
        elif words.startswith("cron "):
            cron = words.removeprefix("cron ").strip()
            with suppress(ValueError, KeyError):  # croniter's errors are ValueErrors
                _schedule(cron)
                return cls(cron=cron)
        elif words in ("by hand", "never"):
            return cls(by_button=words == "by hand")
        raise ConfigError(
            'when a project is trained is "auto" (after 20 corrections, after 100 while an instant head draws), "every '
            '20" (corrections), "cron 0 3 * * *" (minute, hour, day, month, weekday), "by hand" or "never", not '
            f"{text[:80]!r}"
        )

    def is_due(self, changed: int, head_draws: Callable[[], bool]) -> bool:
        """Whether so many corrected tasks are enough.

        Args:
            head_draws: Says whether the project's instant head draws; asked where the answer depends on it.
        """
        if self.every is None or changed < self.every:
            return False
        return self.beside_head is None or changed >= self.beside_head or not head_draws()


_LONGEST_POLICY = 500
"""Characters."""


def _schedule(cron: str) -> CronJob:
    return CronJob(queue_name="train", func_name="backend.loop.process.run_job", cron=cron)


def new_job(registry: Path, project: str, reason: str, *, again: bool = False) -> str:
    """Notes a job in the registry and returns its id, which sorts by time.

    Args:
        registry: The registry's folder.
        project: The project's uid.
        reason: Why it was started, in words.
        again: Whether it trains also where nothing changed since a version that is there.
    """
    now = datetime.now(UTC)
    id = f"{now:%Y%m%d-%H%M%S}-{project_number(project)}-{uuid4().hex[:4]}"
    values = {"id": id, "project": project, "reason": reason, "again": again, "created": now.isoformat("T", "seconds")}
    write_atomically(registry / "jobs" / id / "job.json", json.dumps(values))
    return id


def unfinished_jobs(registry: Path) -> list[str]:
    """Ids of the jobs that have not ended, oldest first."""
    folders = sorted(path.parent for path in (registry / "jobs").glob("[!.]*/job.json"))
    return [folder.name for folder in folders if not (folder / "end.json").exists()]


class Trainings:
    """What is known of each project's fine-tunes, in Redis.

    The hash `lasagna:training:P`, of the project with the uid P, has `state` ("queued", "running", "idle"), `job`,
    `reason`, `again`, progress (`stage`, `step`, `steps`, `left`) and how the last one ended or why none began
    (`outcome`, `summary`, `version`, `ended`); the set `lasagna:training:P:changed` has the tasks that were corrected
    since.

    Every method raises `redis.RedisError` where Redis is gone.
    """

    def __init__(self, store: Store) -> None:
        self.store, self._redis = store, store.redis

    def ask(self, project: str, *, again: bool = False) -> None:
        """Asks for a fine-tune, as a person does, of a project by its uid (or its number)."""
        event = {"action": ASKED, "project": project, "tasks": "[]", "annotations": "[]", "again": "1" if again else ""}
        self.store.record_event(event)

    def projects(self) -> list[str]:
        return sorted(_text(uid) for uid in self._redis.smembers(f"{PREFIX}trainings"))

    def of(self, project: str) -> dict[str, str]:
        """What is known of a project, with `changed`: how many tasks were corrected since the last snapshot began."""
        found = {_text(k): _text(v) for k, v in self._redis.hgetall(_key(project)).items()}
        return {"state": "idle", **found, "changed": str(self.changed(project))}

    def changed(self, project: str) -> int:
        return int(self._redis.scard(_key(project) + ":changed"))

    def note(self, project: str, **values: Any) -> None:
        self._redis.sadd(f"{PREFIX}trainings", project)
        self._redis.hset(_key(project), mapping={name: str(value) for name, value in values.items()})

    def add_changes(self, project: str, members: list[str]) -> int:
        """Notes corrected tasks; returns how many there are."""
        self._redis.sadd(f"{PREFIX}trainings", project)
        if members:
            self._redis.sadd(_key(project) + ":changed", *members)
        return self.changed(project)

    def take_changes(self, project: str) -> None:
        """A job is about to read the project: what changed before is in its snapshot."""
        taken = _key(project) + ":taken"
        self._redis.sunionstore(taken, taken, _key(project) + ":changed")
        self._redis.delete(_key(project) + ":changed")

    def drop_taken(self, project: str, *, put_back: bool) -> None:
        """The job has ended; where it failed its changes count again."""
        key = _key(project)
        if put_back:
            self._redis.sunionstore(key + ":changed", key + ":changed", key + ":taken")
        self._redis.delete(key + ":taken")

    def forget(self, project: str) -> None:
        """Takes away all that is known of a project."""
        key = _key(project)
        self._redis.delete(key, key + ":changed", key + ":taken")
        self._redis.srem(f"{PREFIX}trainings", project)

    def overview(self) -> dict[str, dict[str, str]]:
        """For `lasagna jobs`: by project."""
        return {project: self.of(project) for project in self.projects()}


def _key(project: str) -> str:
    return TRAINING + project


class Triggers:
    """The one who decides, in the training process; a thread reads events.

    Args:
        settings: `train_when`.
        store: A connection of its own.
        registry: The registry's folder.
        changed: Asks Label Studio for the tasks of a project (uid) that changed since its newest snapshot.
        find_uid: Asks Label Studio for the uid of a number that nobody has told; that number again where it cannot.
    """

    def __init__(
        self,
        settings: Settings,
        store: Store,
        registry: Path,
        changed: Callable[[str], set[int]] | None = None,
        find_uid: Callable[[str], str] = lambda number: number,
    ) -> None:
        self.trainings = Trainings(store)
        self._known = KnownProjects(registry, store, is_one_server=bool(settings.label_studio_url))
        self._find_uid = find_uid
        self._settings, self._store, self._registry, self._changed = settings, store, registry, changed
        self._meter = Meter(store.redis)
        self._lock = threading.RLock()  # a job ends in another thread than that of the events
        self._schedules: dict[str, CronJob] = {}
        self._unscheduled: set[str] = set()
        self._unasked: dict[str, str] = {}  # why projects could not be asked what was missed
        self._tries: dict[str, int] = {}  # of the event at hand
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._run, name="triggers", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        self._stopped.set()
        self._thread.join(_WAIT + 1)

    def _run(self) -> None:
        unasked, ask_at = None, 0.0
        while not self._stopped.is_set():
            try:
                # Label Studio may be starting as we are: those that did not answer are asked again.
                if (unasked is None or unasked) and time.monotonic() >= ask_at:
                    unasked = self.catch_up(unasked)
                    ask_at = time.monotonic() + _ASK_AGAIN
                self.read_events(_WAIT)
                self.look_at_schedules()
            except redis.RedisError as error:
                logger.warning("Redis is gone (%s)", error)
                self._stopped.wait(_WAIT)
            except Exception:  # the thread lives as long as the process: nobody else would start a fine-tune
                logger.exception("what starts a fine-tune failed; it goes on")
                self._stopped.wait(_WAIT)

    # --- events -------------------------------------------------------------------------------------------------------

    def read_events(self, seconds: float) -> int:
        """Waits so long for events, and handles those that are there; returns how many."""
        key, mark = f"{PREFIX}events", f"{PREFIX}events:seen"
        last = _text(self._store.redis.get(mark) or "0-0")
        found = self._store.redis.xread({key: last}, count=500, block=max(1, int(seconds * 1000)))
        events = found[0][1] if found else []
        for id, event in events:
            read = {_text(k): _text(v) for k, v in event.items()}
            try:
                self.handle(read)
            except redis.RedisError:
                raise
            except Exception as error:  # one event's, which must not hold up the others
                self._failed(_text(id), read, error)
            self._store.redis.set(mark, id)
        return len(events)

    def _failed(self, id: str, event: Mapping[str, str], error: Exception) -> None:
        """An event that cannot be handled is tried again a few times (a disk may be full), then set aside.

        Raises:
            Exception: The error, where it is worth another try.
        """
        tries = self._tries.get(id, 0) + 1
        if not isinstance(error, LasagnaError | ValueError) and tries < _TRIES:
            self._tries = {id: tries}
            raise error
        self._tries = {}
        what = f"event {event.get('action', '')[:60]} of project {event.get('project', '')[:40]}"
        logger.error("%s is set aside: %s", what, error)
        self._store.set_aside(what, in_words(error))
        self._meter.count("events:aside")
        self._meter.flush()

    def handle(self, event: Mapping[str, str]) -> None:
        """Counts an event, and starts a job where it is time."""
        name = event.get("project") or ""
        if is_project_name(name):
            for project in self._projects(name):
                self._handle(event, project)

    def _projects(self, name: str) -> list[str]:
        """The project that an event is about. One that gives the number alone (of an earlier release, or of a server
        that says no more) may be about any project of that number: it is a hint, and each is looked at."""
        if made_at(name):
            return [name]
        return [known.uid for known in self._known.of(name)] or [self._find_uid(name)]

    def _handle(self, event: Mapping[str, str], project: str) -> None:
        action, policy = event.get("action", ""), self._policy(project)
        if action == ASKED or (action == STARTED and policy.by_button):
            self.request(project, "asked for" if action == ASKED else "Start training", again=bool(event.get("again")))
        elif action in CHANGES:
            tasks = [str(task) for task in json.loads(event.get("tasks") or "[]")]
            annotations = [f"annotation {one}" for one in json.loads(event.get("annotations") or "[]")]
            count = self.trainings.add_changes(project, tasks or annotations)
            if policy.is_due(count, partial(self._head_draws, project)):
                self.request(project, f"{count} corrections")

    def look_at_schedules(self) -> None:
        for project in self._living():
            try:
                self._look_at_schedule(project)
            except redis.RedisError:
                raise
            except Exception as error:  # one project's
                if project not in self._unscheduled:  # said once
                    logger.error("the schedule of project %s is passed over: %s", number_of(project), error)
                    self._store.set_aside(f"schedule of project {project[:40]}", str(error))
                self._unscheduled.add(project)

    def _living(self) -> list[str]:
        """The connected projects, without those whose number another one has taken in the same Label Studio."""
        urls = {uid: project.url for uid, project in self._store.known_projects().items()}
        return [known.uid for known in self._known.living(urls)]

    def _look_at_schedule(self, project: str) -> None:
        cron = self._policy(project).cron
        schedule = self._schedules.get(project)
        if not cron:
            self._schedules.pop(project, None)
        elif schedule is None or schedule.cron != cron:
            self._schedules[project] = _schedule(cron)
        elif schedule.should_run():
            schedule.set_enqueue_time(datetime.now(UTC))
            if self.trainings.changed(project):
                self.request(project, f"schedule {cron}")

    def catch_up(self, projects: Iterable[str] | None = None) -> list[str]:
        """Asks Label Studio what was missed.

        Args:
            projects: Uids; None: all that are known.

        Returns:
            Those that could not be asked, and may be later: not those that Label Studio does not have any more.
        """
        unasked: list[str] = []
        if self._changed is None:
            return unasked
        for uid in self._living() if projects is None else projects:
            number = number_of(uid)
            try:
                policy = self._policy(uid)
                if not (policy.every or policy.cron):
                    continue
                missed = self._changed(uid)
            except redis.RedisError:
                raise
            except Exception as error:  # one project's Label Studio, which may be anything
                is_gone = isinstance(error, LabelStudioError) and error.status == 404
                level = logging.DEBUG if self._unasked.get(uid) == str(error) else logging.WARNING  # said once
                logger.log(level, "project %s: what was corrected meanwhile is not known: %s", number, error)
                self._unasked[uid] = str(error)
                unasked += [] if is_gone else [uid]
                continue
            self._unasked.pop(uid, None)
            count = self.trainings.add_changes(uid, [str(task) for task in missed])
            if missed:
                logger.info("project %s: %d tasks were corrected since the last snapshot", number, len(missed))
            if policy.is_due(count, partial(self._head_draws, uid)):
                self.request(uid, f"{count} corrections")
        return unasked

    def _policy(self, project: str) -> Policy:
        own = self._store.project(project).train
        return Policy.parse(own or self._settings.train_when)

    def _head_draws(self, project: str) -> bool:
        """Whether the instant head that a project used last draws. One that cannot be read draws nothing."""
        if not learns_at_once(self._settings, self._store.project(project)):
            return False
        try:
            states = ProjectHeads(self._registry).states(project)
        except LasagnaError as error:
            logger.warning("project %s: its instant heads cannot be read: %s", number_of(project), error)
            return False
        return bool(states) and bool(states[-1].decision.get("serves"))

    # --- jobs ---------------------------------------------------------------------------------------------------------

    def request(self, project: str, reason: str, *, again: bool = False) -> None:
        """Starts a job for a project, or notes that one more is wanted after the one that runs."""
        with self._lock:
            known = self.trainings.of(project)
            if known["state"] == "queued":
                return
            if known["state"] == "idle" and (words := self._why_not(project)):
                self._refuse(project, known, words)
                return
            if known["state"] == "running":
                self.trainings.note(project, again=reason)
                return
            self._enqueue(project, new_job(self._registry, project, reason, again=again), reason)

    def _why_not(self, project: str) -> str:
        try:
            return why_not_trained(project, Registry(self._registry), self._store)
        except RegistryError:  # the job says it
            return ""

    def _refuse(self, project: str, known: Mapping[str, str], words: str) -> None:
        if (known.get("outcome"), known.get("summary")) != ("refused", words):  # said once
            logger.warning("project %s: no fine-tune: %s", number_of(project), words)
        self.trainings.note(project, outcome="refused", summary=words, version="", ended=f"{time.time():.0f}")

    def resume(self) -> None:
        """Queues what an earlier process left. Called before any job runs."""
        left = unfinished_jobs(self._registry)
        with self._lock:
            for project in self.trainings.projects():  # jobs whose folder is gone
                if (known := self.trainings.of(project))["state"] != "idle" and known.get("job") not in left:
                    self.trainings.note(project, state="idle")
            for id in left:
                path = self._registry / "jobs" / id / "job.json"
                try:
                    asked = json.loads(path.read_text(encoding="utf-8"))
                    project, reason = project_key(asked["project"]), str(asked["reason"])
                except (OSError, ValueError, KeyError, TypeError, LasagnaError) as error:
                    logger.error("%s cannot be read and is set aside (%s); remove its folder", path, error)
                    self._store.set_aside(f"job {id}", f"{path} cannot be read: {error}")
                    continue
                logger.info("job %s goes on", id)
                self._enqueue(project, id, reason)

    def begin(self, project: str) -> None:
        """A job begins to run."""
        with self._lock:
            self.trainings.take_changes(project)
            self.trainings.note(project, state="running", again="", stage="snapshot", step=0, steps=0, left="")

    def end(self, project: str, id: str, result: Mapping[str, Any]) -> None:
        """A job has ended: `outcome` and `summary`; what was asked for meanwhile is started."""
        write_atomically(self._registry / "jobs" / id / "end.json", json.dumps(dict(result), ensure_ascii=False))
        with self._lock:
            failed = result["outcome"] == "failed"
            wanted = self.trainings.of(project).get("again")
            self.trainings.drop_taken(project, put_back=failed)
            shown = {name: result.get(name, "") for name in ("outcome", "summary", "version")}
            self.trainings.note(project, state="idle", again="", stage="", left="", ended=f"{time.time():.0f}", **shown)
            self._meter.count(f"trainings:{result['outcome']}")
            self._meter.flush()
            count = self.trainings.changed(project)
            if wanted:
                self.request(project, wanted)
            elif not failed and self._policy(project).is_due(count, partial(self._head_draws, project)):
                # of a job that failed: one that cannot succeed would begin again at once
                self.request(project, f"{count} corrections")

    def _enqueue(self, project: str, id: str, reason: str) -> None:
        rq_id = f"train-{id}"
        if (left := jobs.find_jobs(self._store.redis, [rq_id])[0]) is not None:
            left.delete()  # of a process that died; it is known nowhere else
        self.trainings.note(project, state="queued", job=id, reason=reason, again="")
        jobs.queue(self._store.redis, "train").enqueue(
            "backend.loop.process.run_job",
            args=[project, id],
            job_id=rq_id,
            job_timeout=-1,
            result_ttl=600,
            failure_ttl=KEEP_WORK,
            description=f"fine-tune of project {number_of(project)}: {reason}",
        )
        logger.info("project %s: a fine-tune is queued (%s)", number_of(project), reason)


def _text(value: bytes | str) -> str:
    return value.decode() if isinstance(value, bytes) else value

"""What was asked, what is running and what came of it: the state of every task, in Redis.

A `Work` is one task of Label Studio under one labelling configuration and one model version. Overlapping requests for
the same work share one record (`lasagna:work:KEY`), which moves through these states, each change one atomic script:

    queued ──▶ running ──▶ ready ──▶ done        ready: predicted, and not yet with Label Studio
       ▲          │          │
       └── later ─┤          │                   later: Label Studio is gone, tried again after a pause
                  └──────────┴─▶ failed          with a reason in words

Who delivers a prediction is decided once, by whoever sets `delivery` first:

- A `/predict` request holds a lease on its works until its deadline. Its last step, `collect`, takes what is ready into
  its answer (delivery = "answered") and gives its lease back. Of two overlapping requests one gets the prediction.
- A ready prediction is also put into the outbox, to be posted when the lease ends. `collect` takes it out. The poster
  sets delivery = "posting" before it posts, so a request that comes late leaves it alone. A web process that dies while
  it waits never collects; its lease ends, and the prediction is posted.

Times are Redis's own (TIME), so that machines may disagree about theirs. Nothing here is a pickle.
"""

import hashlib
import json
import zlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Any, NamedTuple

import redis

from backend.queue.scripts import KEEP_PROJECT, KEEP_WORK, PREFIX, SCRIPTS
from backend.studio.project_id import is_project_name, made_at, number_of
from lasagna.errors import ConfigError

if TYPE_CHECKING:
    from backend.queue.made import Made

__all__ = [
    "KEEP_PROJECT",
    "KEEP_WORK",
    "PREFIX",
    "STATES",
    "Post",
    "Project",
    "Registration",
    "Store",
    "Work",
    "connect",
]

STATES = ("queued", "running", "ready", "done", "failed")

KEEP_RESULT = 24 * 3600
"""Seconds for which a prediction is not computed again for the same image, query, parameters and version."""
LOOK_AFTER = (60, 600)
"""Seconds after which Label Studio is looked at for what it stored twice: a request that it works on takes less."""
THRESHOLDS, GUESS_UNKNOWN = "thresholds", "guess_unknown"
"""Extra parameters: the labels' own thresholds, and whether the model is asked for what it was never taught."""
IMAGE_OF_OLD = "image of 0.1"
"""The key under which a work that was queued by 0.1 has its image's address in `Work.data`."""
TRAINING = f"{PREFIX}training:"
"""Keys of what is known of a project's fine-tunes (`backend.loop.trainings.Trainings`) begin so."""
_UIDS = f"{PREFIX}uids:"
"""The uids of a number: of each Label Studio that has a project of it."""
_NONE_SECONDS = 60
"""Seconds for which a number that no project has is not looked for again."""
_MAX_EVENTS = 10_000
_MAX_ASIDE = 100


@dataclass(frozen=True)
class Work:
    """One task to predict.

    Attributes:
        project: Label Studio's name of the project towards backends, "ID.SECONDS".
        task: The task's id; None for a task without one, which can be answered but not posted.
        data: What the labelling configuration reads of the task's data, as JSON (`LabelConfig.data_read`).
        config: Key of the labelling configuration (`Store.keep_config`).
        version: Model version that was asked for.
        replace: Older predictions of this version, whatever their head, are removed once this one is posted.
    """

    project: str
    task: int | None
    data: str
    config: str
    version: str
    replace: bool = False

    @property
    def key(self) -> str:
        identity = [self.project, self.task, self.data, self.config, self.version]
        return hashlib.sha256(json.dumps(identity).encode("utf-8", "surrogatepass")).hexdigest()[:24]

    def fields(self) -> dict[str, str]:
        task = "" if self.task is None else str(self.task)
        return {**asdict(self), "task": task, "replace": "1" if self.replace else "0", "image": _first_text(self.data)}

    @classmethod
    def from_fields(cls, fields: Mapping[str, str]) -> "Work":
        task = int(fields["task"]) if fields.get("task") else None
        names = ("project", "config", "version")
        data = fields.get("data", "")  # what is done has none any more
        if not data and fields.get("image"):  # queued by 0.1, which kept the address alone
            data = json.dumps({IMAGE_OF_OLD: fields["image"]})
        return cls(**{name: fields[name] for name in names}, data=data, task=task, replace=fields.get("replace") == "1")


@dataclass(frozen=True)
class Project:
    """How to reach a project: what its `/setup` said.

    Attributes:
        url: Label Studio's address ("" if it was never told).
        token: The token that came with it, "" if none.
        given_token: A token that a person gave for it (`lasagna prelabel --token`); it is tried before the other.
        params: Parameters of the model from the backend's extra parameters: threshold, exclusive, chunk_size,
            `GUESS_UNKNOWN`, and `THRESHOLDS`, the labels' own.
        train: When it is trained, from the same place (`backend.loop.trainings.Policy`); "": as the setting says.
        instant: Whether it learns from each correction at once, from there too; None: as the setting says.
        not_served: Parts of its labelling configuration that no prediction is made for, in words.
        data_fields: Whether fields about its predictions are written into the data of its tasks.
    """

    url: str = ""
    token: str = ""
    given_token: str = ""
    params: Mapping[str, Any] | None = None
    train: str = ""
    instant: bool | None = None
    not_served: Sequence[str] = ()
    data_fields: bool = False


class Registration(NamedTuple):
    """What `register` found: "new" (to be put into a queue), a state, or "posted" (delivered a moment ago)."""

    key: str
    status: str
    lease: str


class Post(NamedTuple):
    """A prediction to post. `is_first`: no earlier attempt is in doubt."""

    key: str
    work: Work
    prediction: dict[str, Any]
    is_first: bool


class Doubt(NamedTuple):
    """A task that was sent a prediction of a version twice, the first time with no answer."""

    project: str
    task: int
    version: str


def connect(url: str, *, timeout: float = 2.0) -> redis.Redis:
    """A client of Redis that gives up quickly: a web request must not hang because Redis is gone.

    Raises:
        ConfigError: The address cannot be read.
    """
    try:
        return redis.Redis.from_url(
            url, socket_connect_timeout=min(timeout, 2.0), socket_timeout=timeout, health_check_interval=30
        )
    except ValueError as error:
        raise ConfigError(f"the address of Redis cannot be read: {error}; expected redis://HOST:PORT/0") from error


class Store:
    """The records. Every method is one round trip and raises `redis.RedisError` where Redis is gone."""

    def __init__(self, connection: "redis.Redis") -> None:
        self.redis: Any = connection  # redis-py types every answer as any of several
        self._scripts = {name: connection.register_script(text) for name, text in SCRIPTS.items()}

    # --- requests -----------------------------------------------------------------------------------------------------

    def register(self, works: Sequence[Work], lease: float) -> list[Registration]:
        """Records works as asked for, or joins what is under way, with a lease of so many seconds (0: none)."""
        answers = self._each("register", [(work.key, lease, json.dumps(work.fields())) for work in works])
        return [
            Registration(work.key, as_text(status), as_text(until))
            for work, (status, until) in zip(works, answers, strict=True)
        ]

    def run(self, script: str, *args: Any) -> Any:
        """Runs one of `backend.queue.scripts.SCRIPTS`."""
        return self._scripts[script](args=list(args))

    def pending(self, keys: Sequence[str]) -> int:
        """How many of these are queued or running."""
        return int(self._scripts["pending"](args=list(keys))) if keys else 0

    def collect(self, registrations: Sequence[Registration]) -> list[tuple[str, str]]:
        """Takes what is ready and gives the leases back: ("prediction", JSON) or (state, reason) for each."""
        answers = self._each("collect", [(entry.key, entry.lease) for entry in registrations])
        return [(as_text(status), as_text(value)) for status, value in answers]

    # --- worker -------------------------------------------------------------------------------------------------------

    def start(self, keys: Sequence[str], job: str) -> list[tuple[str, Work]]:
        """Takes those that are queued (or were left running by an earlier run of the same job)."""
        taken = [as_text(key) for key in self._scripts["start"](args=[job, *keys])] if keys else []
        return [(key, Work.from_fields(fields)) for key, fields in zip(taken, self.fields(taken), strict=True)]

    def finish(
        self,
        key: str,
        prediction: Mapping[str, Any],
        note: str = "",
        made: "Made | None" = None,
        fields: Mapping[str, str | float] | None = None,
    ) -> None:
        """Takes a prediction.

        Args:
            note: What of the task has none.
            made: What it was made of.
            fields: To be written into the task's data once it is delivered (`fields_to_write`).
        """
        texts = ["" if made is None else json.dumps(asdict(made)), json.dumps(dict(fields)) if fields else ""]
        self._scripts["finish"](args=[key, json.dumps(prediction), note.encode("utf-8", "replace"), *texts])

    def fail(self, key: str, reason: str, kind: str = "other") -> None:
        """Records why a task failed: in words, and of which kind that is (`backend.queue.counters.REASONS`)."""
        self._scripts["fail"](args=[key, reason.encode("utf-8", "replace"), kind])

    def try_later(self, key: str, reason: str, timeout: float, kind: str = "unreachable") -> str:
        """Label Studio is gone, say: "later", or "failed" where that lasts longer than `timeout` seconds.

        Args:
            kind: One of `backend.queue.counters.REASONS`, for when it has failed.
        """
        return as_text(self._scripts["later"](args=[key, reason.encode("utf-8", "replace"), timeout, kind]))

    def due_later(self, limit: int = 100) -> list[str]:
        """Works whose pause is over; the caller puts them into a queue."""
        return [as_text(key) for key in self._scripts["due_later"](args=[limit])]

    def assign(self, keys: Iterable[str], job: str) -> None:
        """Notes which job has these works, so that a lost job is noticed."""
        with self.redis.pipeline(transaction=False) as pipe:
            for key in keys:
                pipe.hset(_work(key), "job", job)
            pipe.execute()

    def forget(self, keys: Sequence[str]) -> int:
        """Takes those out of every list whose record is gone, and counts them as lost; returns how many."""
        return sum(int(self._scripts["forget"](args=keys[at : at + 1000])) for at in range(0, len(keys), 1000))

    def requeue(self, key: str) -> None:
        """Back to "queued": its job is lost. The caller enqueues it."""
        self._scripts["requeue"](args=[key])

    # --- delivery -----------------------------------------------------------------------------------------------------

    def take_posts(self, limit: int = 1, max_bytes: int = 1 << 22) -> list[Post]:
        """The next predictions to post, of one project; [] where there is none. Ours for `POST_VISIBILITY` seconds.

        Args:
            limit: At most so many. A post that replaces others, or was sent back by `post_alone`, comes by itself.
            max_bytes: Of their JSON together; the first is taken whatever its size.
        """
        taken = [as_text(one) for one in self._scripts["take_posts"](args=[limit, max_bytes])]
        keys = taken[::2]
        return [
            Post(key, Work.from_fields(fields), json.loads(fields["prediction"]), is_first=tried != "1")
            for key, tried, fields in zip(keys, taken[1::2], self.fields(keys), strict=True)
        ]

    def note_doubt(self, doubts: Sequence[Doubt]) -> None:
        """Notes tasks that may get a prediction twice; `take_doubts` gives each of them out after each of `LOOK_AFTER`
        seconds."""
        now = self.now()
        with self.redis.pipeline(transaction=False) as pipe:
            for seconds in LOOK_AFTER:
                pipe.zadd(f"{PREFIX}doubts", {json.dumps([seconds, *doubt]): now + seconds for doubt in doubts})
            pipe.execute()

    def take_doubts(self, limit: int) -> list[Doubt]:
        """Those that are due, taken out."""
        due = [as_text(one) for one in self.redis.zrangebyscore(f"{PREFIX}doubts", "-inf", self.now(), 0, limit)]
        taken = [one for one in due if self.redis.zrem(f"{PREFIX}doubts", one)]
        return [Doubt(*json.loads(one)[1:]) for one in taken]

    def post_alone(self, keys: Sequence[str]) -> None:
        """Back into the outbox, each to be posted by itself: Label Studio refused them together, or left them out."""
        self._each("post_alone", [(key,) for key in keys])

    def posted(self, key: str, prediction_id: int | None = None) -> None:
        """Label Studio has this prediction, under the id if that is known."""
        self.posted_all([key], prediction_id)

    def posted_all(self, keys: Sequence[str], prediction_id: int | None = None) -> None:
        """As `posted`, of several in one round trip."""
        self._each("posted", [(key, "" if prediction_id is None else prediction_id, "posted") for key in keys])

    def gone(self, key: str) -> None:
        """The task was deleted meanwhile: nothing is left to do, and nothing failed."""
        self._each("posted", [(key, "", "gone")])

    def retry(self, key: str) -> str | None:
        """Failed work once more: "ready" (only the post), "queued" (the caller enqueues it), or None if not failed."""
        answer = self._scripts["retry"](args=[key])
        return as_text(answer) if answer else None

    def cancel(self, keys: Sequence[str]) -> int:
        """Takes works out that wait for a worker, but for those that somebody waits for with an open page; returns how
        many. A worker finds nothing to do in their jobs; asked for again, they are new."""
        return sum(bool(answer) for answer in self._each("cancel", [(key,) for key in keys]))

    def fields_to_write(self, limit: int) -> dict[str, dict[str, str]]:
        """Projects with some of their tasks whose fields are to be written: uid -> task -> fields as JSON."""
        uids = sorted(as_text(uid) for uid in self.redis.smembers(f"{PREFIX}fields"))
        found: dict[str, dict[str, str]] = {}
        for uid in uids:
            some = [as_text(part) for part in self.redis.hrandfield(f"{PREFIX}fields:{uid}", limit, withvalues=True)]
            found[uid] = dict(zip(some[::2], some[1::2], strict=True))
        return found

    def fields_written(self, uid: str, fields: Mapping[str, str]) -> None:
        """The fields of these tasks are written, or never will be."""
        self.run("fields_written", uid, *(part for entry in fields.items() for part in entry))

    # --- looking ------------------------------------------------------------------------------------------------------

    def counts(self) -> dict[str, int]:
        with self.redis.pipeline(transaction=False) as pipe:
            for state in STATES:
                pipe.zcard(f"{PREFIX}state:{state}")
            return dict(zip(STATES, map(int, pipe.execute()), strict=True))

    def keys(self, state: str, limit: int = -1, oldest_first: bool = False) -> list[str]:
        """Keys of the works in a state, latest change first."""
        found = self.redis.zrange(f"{PREFIX}state:{state}", 0, -1 if limit < 0 else limit - 1, desc=not oldest_first)
        return [as_text(key) for key in found]

    def fields(self, keys: Sequence[str]) -> list[dict[str, str]]:
        """The record of each; {} where there is none."""
        with self.redis.pipeline(transaction=False) as pipe:
            for key in keys:
                pipe.hgetall(_work(key))
            return [{as_text(k): as_text(v) for k, v in found.items()} for found in pipe.execute()]

    def states(self, keys: Sequence[str]) -> list[str]:
        """The state of each; "" where there is no record."""
        with self.redis.pipeline(transaction=False) as pipe:
            for key in keys:
                pipe.hget(_work(key), "state")
            return [as_text(state) if state else "" for state in pipe.execute()]

    def is_waiting_for_label_studio(self, key: str) -> bool:
        return self.redis.zscore(f"{PREFIX}later", key) is not None

    def now(self) -> float:
        seconds, micros = self.redis.time()
        return float(seconds) + float(micros) / 1e6

    # --- labelling configurations, projects, results, model, events ---------------------------------------------------

    def keep_config(self, xml: str) -> str:
        """Keeps a labelling configuration and returns its key."""
        key = hashlib.sha256(xml.encode("utf-8", "surrogatepass")).hexdigest()[:24]
        self.redis.set(f"{PREFIX}config:{key}", xml.encode("utf-8", "surrogatepass"), ex=KEEP_PROJECT)
        return key

    def config(self, key: str) -> str | None:
        found = self.redis.get(f"{PREFIX}config:{key}")
        return None if found is None else as_text(found)

    def keep_project(self, uid: str, project: Project) -> None:
        self.redis.set(_project(uid), json.dumps(asdict(project)), ex=KEEP_PROJECT)
        number = number_of(uid)
        others = [] if self.redis.exists(_UIDS + number) else self._scan(number)
        self.redis.sadd(_UIDS + number, uid, *others)

    def project(self, uid: str) -> Project:
        found = self.redis.get(_project(uid))
        return Project() if found is None else _read_project(found)

    def keep_not_served(self, uid: str, parts: Sequence[str]) -> None:
        """What is not served of the configuration that a project has now; when it was told last stays (`told`)."""
        known = self.project(uid)
        if known.not_served != tuple(parts):
            changed = replace(known, not_served=tuple(parts))
            self.redis.set(_project(uid), json.dumps(asdict(changed)), keepttl=True, xx=True)

    def told(self, uid: str) -> float | None:
        """Seconds since a project was kept last; None where it never was."""
        left = int(self.redis.ttl(_project(uid)))
        return float(KEEP_PROJECT - left) if left >= 0 else None

    def projects(self) -> list[str]:
        """The projects that were kept, by Label Studio's name for them; the latest of a number first."""
        start = f"{PREFIX}project:"
        found = [as_text(key).removeprefix(start) for key in self.redis.scan_iter(f"{start}*", count=500)]
        return sorted(found, key=lambda uid: [int(part) for part in uid.split(".") if part.isdigit()], reverse=True)

    def known_projects(self) -> dict[str, Project]:
        """Every project that was kept, as `projects` sorts them; without records that no project can have left."""
        uids = [uid for uid in self.projects() if is_project_name(uid)]
        found = self.redis.mget([_project(uid) for uid in uids]) if uids else []
        known = {}
        for uid, text in zip(uids, found, strict=True):
            with suppress(ValueError, TypeError, AttributeError):
                known.update({} if text is None else {uid: _read_project(text)})
        return known

    def uids(self, number: str) -> list[str]:
        """The projects of a number that were kept, that which was made last first; [] where no `/setup` was seen."""
        known = [as_text(uid) for uid in self.redis.smembers(_UIDS + number)]
        gone = [uid for uid in known if not self.redis.exists(_project(uid))]
        if gone:
            self.redis.srem(_UIDS + number, *gone)
        found = [uid for uid in known if uid not in gone]
        if not found and not self.redis.exists(f"{_UIDS}none:{number}"):
            found = self._scan(number)  # kept by an earlier release
            if found:
                self.redis.sadd(_UIDS + number, *found)
            else:
                self.redis.set(f"{_UIDS}none:{number}", "", ex=_NONE_SECONDS)
        return sorted(found, key=made_at, reverse=True)

    def _scan(self, number: str) -> list[str]:
        """As `uids`, looked for among all projects."""
        return [uid for uid in self.projects() if number_of(uid) == number and is_project_name(uid)]

    def keep_result(self, key: str, prediction: Mapping[str, Any]) -> None:
        self.redis.set(f"{PREFIX}result:{key}", zlib.compress(json.dumps(prediction).encode(), 1), ex=KEEP_RESULT)

    def result(self, key: str) -> dict[str, Any] | None:
        found = self.redis.get(f"{PREFIX}result:{key}")
        return None if found is None else json.loads(zlib.decompress(found))

    def publish_model(self, model: Mapping[str, Any]) -> None:
        """What the worker has loaded: `version`, `name`, `cannot` (in words)."""
        self.redis.set(f"{PREFIX}model", json.dumps(dict(model)))

    def model(self) -> dict[str, Any] | None:
        found = self.redis.get(f"{PREFIX}model")
        return None if found is None else json.loads(found)

    def answer(self, key: str, answer: Mapping[str, Any]) -> None:
        """The answer to an interactive request, for the one that waits for it."""
        self.redis.set(f"{PREFIX}answer:{key}", json.dumps(dict(answer)), ex=60)

    def take_answer(self, key: str) -> dict[str, Any] | None:
        found = self.redis.getdel(f"{PREFIX}answer:{key}")
        return None if found is None else json.loads(found)

    def record_event(self, event: Mapping[str, str]) -> None:
        """Notes a webhook event; the last 10 000 are kept."""
        self.redis.xadd(f"{PREFIX}events", dict(event), maxlen=_MAX_EVENTS, approximate=True)

    def set_aside(self, what: str, reason: str) -> None:
        """Notes what is passed over so that the rest goes on; the last `_MAX_ASIDE` are kept, for `lasagna jobs`."""
        entry = json.dumps({"what": what[:200], "reason": reason[:500], "at": self.now()})
        self.redis.lpush(f"{PREFIX}aside", entry)
        self.redis.ltrim(f"{PREFIX}aside", 0, _MAX_ASIDE - 1)

    def aside(self) -> list[dict[str, Any]]:
        """What was set aside, newest first."""
        return [json.loads(entry) for entry in self.redis.lrange(f"{PREFIX}aside", 0, -1)]

    def events(self, count: int = 100) -> list[dict[str, str]]:
        """The latest events, newest first."""
        found = self.redis.xrevrange(f"{PREFIX}events", count=count)
        return [{as_text(k): as_text(v) for k, v in event.items()} for _, event in found]

    def _each(self, script: str, arguments: Iterable[Sequence[Any]]) -> list[Any]:
        with self.redis.pipeline(transaction=False) as pipe:
            for args in arguments:
                self._scripts[script](args=list(args), client=pipe)
            return list(pipe.execute())


def _first_text(data: str) -> str:
    """The first text in JSON, for people who look at the jobs: of a task's data, the image's address."""

    def texts(value: Any) -> Iterator[str]:
        if isinstance(value, str):
            yield value
        for inner in value.values() if isinstance(value, dict) else value if isinstance(value, list) else ():
            yield from texts(inner)

    try:
        found = next(texts(json.loads(data or "{}")), "")
    except ValueError:
        found = data
    return found if len(found) <= 200 else found[:197] + "..."


def _work(key: str) -> str:
    return f"{PREFIX}work:{key}"


def as_text(value: bytes | str) -> str:
    """A value of Redis as text."""
    return value.decode("utf-8", "surrogatepass") if isinstance(value, bytes) else value


def _project(uid: str) -> str:
    return f"{PREFIX}project:{uid}"


def _read_project(text: bytes) -> Project:
    values = json.loads(text)
    return Project(**{**values, "not_served": tuple(values.get("not_served") or ())})

"""Answering Label Studio's `/setup` and `/predict`: what both the web app and `LasagnaBackend` do.

What always holds for an answer to `/predict`: one entry per task, in order, each a prediction or `[]` (not ready yet or
failed; Label Studio skips it), never null. What is not ready at the deadline is posted by the worker later.
"""

import functools
import json
import logging
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from backend.instant.changes import EVERYTHING, Changes
from backend.instant.heads import ProjectHeads
from backend.instant.policy import learns_at_once
from backend.instant.taught import TaughtNames
from backend.loop.trainings import CHANGES, STARTED, Policy
from backend.queue.jobs import enqueue_click, enqueue_works
from backend.queue.provenance import Provenance
from backend.queue.store import GUESS_UNKNOWN, THRESHOLDS, Project, Registration, Store, Work
from backend.queue.works import task_number, work_of
from backend.registry.abilities import cannot, why_not_trained
from backend.registry.known_projects import KnownProjects
from backend.registry.label_histories import LabelHistories
from backend.registry.registry import Registry
from backend.registry.takeover import take_over
from backend.studio.address import normalise_url
from backend.studio.data_fields import check_names
from backend.studio.project_id import made_at, number_of, uid_of_event
from lasagna.checkpoint.folder import checkpoint_version, shipped_checkpoints
from lasagna.errors import CheckpointError, ConfigError, ImageError, RegistryError, ServiceError
from lasagna.files import parse_json
from lasagna.labels.configuration import LabelConfig, parse_label_config
from lasagna.labels.question import ProjectQuestion, name_version
from lasagna.logs import logged
from lasagna.settings import Settings, registry_folder

logger = logging.getLogger(__name__)

PARAMETERS = ("threshold", "exclusive", "chunk_size", GUESS_UNKNOWN)
"""What a backend's extra parameters may hold for the model; see `Lasagna.segment`."""
TRAIN_WHEN, INSTANT, DATA_FIELDS = "train_when", "instant", "data_fields"
"""The extra parameters that say when the project is trained, and whether it learns from each correction at once, as the
settings of these names do."""

_CLICK_SECONDS = 15.0
_POLL = (0.02, 0.25)
"""Seconds between two looks at what a request waits for: the first, and the longest."""


@dataclass
class PredictReply:
    """An answer to `/predict`.

    Attributes:
        results: One entry per task: a prediction or [].
        model_version: The version that was asked for.
        errors: Reason of each failed task, by its position.
        waiting: Tasks that are still worked on; their predictions are posted.
        elsewhere: Tasks that an overlapping request or a post has just delivered.
    """

    results: list[Any]
    model_version: str
    errors: dict[int, str] = field(default_factory=dict)
    waiting: int = 0
    elsewhere: int = 0


def parse_parameters(extra: Any) -> dict[str, Any]:
    """The project's parameters from a backend's extra parameters: a JSON text (from the UI), an object, or nothing.

    Names that are not ours are left alone.

    Raises:
        ConfigError: Not a JSON object, or a value that cannot be.
    """
    if isinstance(extra, str) and extra.strip():
        try:
            extra = parse_json(extra)
        except ValueError as error:
            raise ConfigError(f"the extra parameters are no JSON ({error}): {extra[:80]!r}") from error
    if not extra:
        return {}
    if not isinstance(extra, Mapping):
        raise ConfigError(
            f'the extra parameters are a JSON object such as {{"threshold": 0.5}}, not {str(extra)[:80]!r}'
        )
    names = (*PARAMETERS, THRESHOLDS, TRAIN_WHEN, INSTANT, DATA_FIELDS)
    unknown = sorted(str(name) for name in extra if name not in names)
    if unknown:
        logger.warning("extra parameters not used: %s (known: %s)", ", ".join(unknown), ", ".join(names))
    found = {name: extra[name] for name in names if extra.get(name) is not None}
    threshold, exclusive, chunk, guess = (found.get(name) for name in PARAMETERS)
    if threshold is not None:
        _check_threshold("threshold", threshold)
    own = found.get(THRESHOLDS, {})
    if not isinstance(own, Mapping):
        raise ConfigError(f'{THRESHOLDS} are those of labels, such as {{"sky": 0.3}}, not {own!r}')
    for label, value in own.items():
        _check_threshold(f"the threshold of {label!r}", value)
    if exclusive is not None and not isinstance(exclusive, bool):
        raise ConfigError(f"exclusive is true or false, not {exclusive!r}")
    if guess is not None and not isinstance(guess, bool):
        raise ConfigError(f"{GUESS_UNKNOWN} is true or false, not {guess!r}")
    if chunk is not None and (isinstance(chunk, bool) or not isinstance(chunk, int) or chunk < 1):
        raise ConfigError(f"chunk_size is a whole number from 1, not {chunk!r}")
    for name in (INSTANT, DATA_FIELDS):
        if not isinstance(found.get(name, True), bool):
            raise ConfigError(f"{name} is true or false, not {found[name]!r}")
    if TRAIN_WHEN in found:
        Policy.parse(str(found[TRAIN_WHEN]))
    return found


def _check_threshold(what: str, value: Any) -> None:
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise ConfigError(f"{what} is a number between 0 and 1, not {value!r}")
    if not 0 < value < 1:
        raise ConfigError(f"{what} is a probability between 0 and 1, not {value!r}")


@dataclass(frozen=True)
class SetUp:
    """An answer to `/setup`.

    Attributes:
        model_version: That its predictions carry from now on.
        not_served: Parts of the labelling configuration that no prediction is made for, in words.
        by_people: Names of the tags that people fill in.
        unknown: Labels that the version was never taught: people draw them, and it learns them from corrections.
        cannot: What the model cannot do beside answering class lists, in words.
    """

    model_version: str
    not_served: tuple[str, ...]
    by_people: tuple[str, ...]
    unknown: tuple[str, ...] = ()
    cannot: tuple[str, ...] = ()


def label_config(xml: str) -> LabelConfig:
    """`parse_label_config`, remembered, refusals too: every request carries the whole configuration."""
    found = _read_config(xml)
    if isinstance(found, str):
        raise ConfigError(found)
    return found


@functools.lru_cache(maxsize=64)
def _read_config(xml: str) -> LabelConfig | str:
    """The configuration, or why it cannot be used."""
    try:
        return parse_label_config(xml)
    except ConfigError as error:
        return str(error)


def _say_not_served(project: str, before: Sequence[str], now: Sequence[str]) -> None:
    """Logs parts that are not served; once, though Label Studio calls `/setup` before every prediction."""
    with logged(project=number_of(project)):
        for part in now:
            if part not in before:
                logger.warning("%s", part)


class Predictor:
    """The web side of the queue.

    Args:
        settings: `model`, `registry`, `batch_size` and `predict_deadline` are read.
        store: The records in Redis.
    """

    def __init__(self, settings: Settings, store: Store) -> None:
        self.settings = settings
        self.store = store
        self.registry = Registry(registry_folder(settings))
        self.histories = LabelHistories(self.registry.folder)
        self.heads = ProjectHeads(self.registry.folder)
        self.taught = TaughtNames(settings, self.registry)
        self.changes = Changes(store)
        self.provenance = Provenance(store)
        self.known = KnownProjects.from_settings(settings, store)
        self._connected: set[str] = set()
        self._checkpoint_version: str | None = None

    # --- /setup -------------------------------------------------------------------------------------------------------

    def setup(self, project: str, config: str, hostname: str, token: str, extra: Any = None) -> SetUp:
        """Notes how to reach a project, and says what it is served by.

        Raises:
            ConfigError: The labelling configuration or the parameters cannot be used.
            ServiceError: There is no model version yet.
        """
        plan, params = self._plan(config), parse_parameters(extra)
        names = [query.name for query in plan.classes]
        unknown = [label for label in params.get(THRESHOLDS, {}) if label not in names]
        if unknown and not plan.has_dynamic_labels:
            raise ConfigError(
                f"{THRESHOLDS} names {', '.join(map(repr, unknown))}, and the labelling configuration has the labels "
                f"{', '.join(map(repr, names))}"
            )
        url = normalise_url(hostname) if hostname else ""
        before = self.store.project(project)
        self.connect(project, url)
        given = before.given_token if before.url == url else ""
        train, instant = str(params.pop(TRAIN_WHEN, "")), params.pop(INSTANT, None)
        not_served = tuple(map(str, plan.not_served))
        fields = bool(params.pop(DATA_FIELDS, False))
        if fields:
            check_names(plan)
        known = Project(url, token, given, params, train, instant, not_served, fields)
        self.store.keep_project(project, known)
        _say_not_served(project, before.not_served, not_served)
        if learns_at_once(self.settings, known):
            self.changes.note(project, [EVERYTHING])  # what was annotated before it was connected
        version = self.asked_version(project, plan)
        lacks = tuple(self.unknown_labels(project, plan, version))
        return SetUp(version, not_served, plan.by_people, lacks, cannot(project, self.registry, self.store))

    def refuses_training(self, event: Mapping[str, str]) -> str:
        """Why Label Studio's "Start Training" starts nothing, in words; "" where it starts one, or it is no such event.

        Raises:
            RegistryError: As `model_version`.
        """
        if event.get("action") != STARTED or not event.get("project"):
            return ""
        found = [why_not_trained(uid, self.registry, self.store) for uid in self.projects_of(event["project"])]
        return found[0] if found and all(found) else ""

    def unknown_labels(self, project: str, plan: LabelConfig, version: str) -> list[str]:
        """The labels of a project that a version cannot be asked for, as far as is known on this machine."""
        question = self.provenance.question_of(project, plan, self.settings)
        return self.taught.unknown(project, version, question)

    def connect(self, project: str, url: str) -> None:
        """A project has said where it is: notes it, and gives it what an earlier release kept by its number."""
        self.known.note(project, url or self.settings.label_studio_url)
        if project not in self._connected:
            take_over(self.registry.folder, self.store, project)
            self._connected.add(project)

    def _plan(self, config: str) -> LabelConfig:
        plan = label_config(config)
        if len(plan.classes) > self.settings.max_labels:
            raise ConfigError(
                f"the labelling configuration has {len(plan.classes)} classes, the limit is "
                f"{self.settings.max_labels} (LASAGNA_MAX_LABELS)"
            )
        return plan

    def model_version(self, project: str = "") -> str:
        """The version that serves a project: its champion, else the worker's own model, with its instant head.

        Before the first worker started, its model is taken to be the checkpoint of the setting `model`. The registry is
        read every time, so that a promotion counts from the next request on.

        Raises:
            RegistryError: The champion is not in the registry any more.
            ServiceError: There is no champion, and the worker's model is not known.
        """
        version = self._model_version(project)
        if not project or not learns_at_once(self.settings, self.store.project(project)):
            return version
        try:
            head = self.heads.current(project, version)
        except RegistryError as error:  # the worker answers without a head too
            logger.warning("%s", error)
            head = None
        return version if head is None else head.full_version

    def asked_version(self, project: str, plan: LabelConfig) -> str:
        """What predictions of a project carry that are asked for now: the version that serves it, and the question.

        Label Studio compares it with those of a task's predictions, and asks again where none has it.

        Raises:
            RegistryError, ServiceError: As `model_version`.
        """
        return name_version(self.model_version(project), self.question(project, plan))

    def question(self, project: str, plan: LabelConfig) -> ProjectQuestion:
        """What a project's tasks are asked from now on; it is noted, with the labels that stand in its configuration.
        Where it is another than before, every annotation is read again."""
        question = self.provenance.question_of(project, plan, self.settings)
        if project:
            self.histories.note(project, plan.images)
            if self.provenance.note(project, question) and learns_at_once(self.settings, self.store.project(project)):
                self.changes.note(project, [EVERYTHING])
        return question

    def _model_version(self, project: str) -> str:
        """Without a head."""
        champion = self.registry.champion(project)
        if champion is not None:
            return champion.id
        model = self.store.model()
        if model is not None:
            return str(model["version"])
        if self._checkpoint_version is None:
            name = str(self.settings.model)
            # a name of the hub could only be looked up by downloading it, which is the worker's work
            is_here = Path(name).expanduser().is_dir() or name in shipped_checkpoints()
            try:
                self._checkpoint_version = checkpoint_version(name) if is_here else None
            except CheckpointError as error:
                logger.warning("%s", error)
        if self._checkpoint_version is None:
            raise ServiceError("no worker has started yet, so there is no model version: start `lasagna worker`")
        return self._checkpoint_version

    # --- /webhook -----------------------------------------------------------------------------------------------------

    def project_updated(self, project: Any) -> None:
        """A project as Label Studio's webhook has it: notes the labels that stand in its configuration, the parts that
        are not served, and what its tasks are asked now. Nothing is noted of a project that was never connected."""
        for uid in self.projects_of(uid_of_event(project)):
            if self.store.told(uid) is not None:
                self._project_updated(uid, project)

    def projects_of(self, name: str) -> list[str]:
        """The projects that an event may be about: of a number alone, each that has it."""
        if not name or made_at(name):
            return [name] if name else []
        return [known.uid for known in self.known.of(name)] or [name]

    def _project_updated(self, uid: str, project: Mapping[str, Any]) -> None:
        try:
            plan = label_config(str(project.get("label_config") or ""))
        except ConfigError:
            return  # said at the next /setup
        not_served = tuple(map(str, plan.not_served))
        _say_not_served(uid, self.store.project(uid).not_served, not_served)
        self.store.keep_not_served(uid, not_served)
        self.question(uid, plan)

    def corrected(self, event: Mapping[str, str]) -> None:
        """An event of Label Studio (`Store.record_event`): what was annotated is learnt from at once, by the worker."""
        if event.get("action") not in (*CHANGES, "TASKS_DELETED") or not event.get("project"):
            return
        for project in self.projects_of(event["project"]):
            self._corrected(event, project)

    def _corrected(self, event: Mapping[str, str], project: str) -> None:
        if event["action"] in ("ANNOTATION_CREATED", "ANNOTATIONS_CREATED", "TASKS_DELETED"):
            # their predictions are not renewed any more
            self.provenance.forget_tasks(project, json.loads(event.get("tasks") or "[]"))
        if event["action"] not in CHANGES:
            return
        if learns_at_once(self.settings, self.store.project(project)):
            # a deleted annotation comes without its task
            self.changes.note(project, json.loads(event.get("tasks") or "[]") or [EVERYTHING])

    # --- /predict -----------------------------------------------------------------------------------------------------

    def predict(
        self,
        tasks: Sequence[Any],
        config: str,
        project: str,
        context: Mapping[str, Any] | None = None,
        deadline: float | None = None,
    ) -> PredictReply:
        """Answers with what is done within `deadline` seconds (default: the setting `predict_deadline`).

        Raises:
            ConfigError: The labelling configuration cannot be used.
            ServiceError: There is no model version yet.
            redis.RedisError: Redis is gone.
        """
        plan = self._plan(config)
        seconds = self.settings.predict_deadline if deadline is None else deadline
        if context and context.get("result"):
            if not isinstance(context["result"], list):
                raise ConfigError("the request's context has no list of regions")
            return self._click(tasks, config, project, context, min(seconds, _CLICK_SECONDS))
        return self._predict(tasks, plan, config, project, seconds)

    def _predict(
        self, tasks: Sequence[Any], plan: LabelConfig, config: str, project: str, seconds: float
    ) -> PredictReply:
        started = time.monotonic()
        version = self.asked_version(project, plan)
        config_key = self.store.keep_config(config)
        answer = PredictReply([[] for _ in tasks], version)
        works: dict[int, Work] = {}
        refused: list[Work] = []
        for position, task in enumerate(tasks):
            try:
                works[position] = work_of(plan, task, project, config_key, version)
            except ImageError as error:
                answer.errors[position] = str(error)
                refused.append(Work(project, task_number(task), "", config_key, version))
        self._refuse(refused, list(answer.errors.values()))

        positions, registrations = list(works), self.ask(list(works.values()), lease=seconds, urgent=len(tasks) == 1)
        waiting = [entry.key for entry in registrations if entry.status != "posted"]
        pause = _POLL[0]
        while self.store.pending(waiting) and time.monotonic() - started < seconds:
            time.sleep(pause)
            pause = min(pause * 1.5, _POLL[1])
        for position, (status, value) in zip(positions, self.store.collect(registrations), strict=True):
            if status == "prediction":
                answer.results[position] = json.loads(value)
            elif status == "failed":
                answer.errors[position] = value
            elif status == "done":
                answer.elsewhere += 1
            else:
                answer.waiting += 1
        return answer

    def ask(self, works: Sequence[Work], lease: float, *, urgent: bool = False) -> list[Registration]:
        """Records works and puts those that are not under way into the queue.

        Args:
            works: What to predict.
            lease: Seconds for which the caller waits for the predictions; 0: they are to be posted.
            urgent: A person waits: they go ahead of every batch, also where they are queued in one already.
        """
        registrations = self.store.register(works, lease)
        new = [entry.key for entry in registrations if entry.status == "new" or (urgent and entry.status == "queued")]
        enqueue_works(self.store, list(dict.fromkeys(new)), self.settings.batch_size, urgent=urgent)
        return registrations

    def _refuse(self, works: Sequence[Work], reasons: Sequence[str]) -> None:
        """Tasks that cannot be asked are recorded as failed, so that `lasagna jobs` says why."""
        for entry, reason in zip(self.store.register(works, 0), reasons, strict=True):
            self.store.fail(entry.key, reason, "image")

    def _click(
        self, tasks: Sequence[Any], config: str, project: str, context: Mapping[str, Any], seconds: float
    ) -> PredictReply:
        """Label Studio sends one task and uses results[0], which must be a dict with "result"."""
        version = self.model_version(project)
        nothing = {"model_version": version, "score": 0.0, "result": []}
        answer = PredictReply([nothing, *([] for _ in tasks[1:])], version)
        try:
            work = work_of(label_config(config), tasks[0] if tasks else None, project, "", version)
        except ImageError as error:
            answer.errors[0] = str(error)
            return answer
        request = {
            "project": project,
            "version": version,
            "task": work.task,
            "data": work.data,
            "config": self.store.keep_config(config),
            "context": list(context["result"]),
        }
        key = enqueue_click(self.store.redis, request, seconds)
        deadline = time.monotonic() + seconds
        while (found := self.store.take_answer(key)) is None and time.monotonic() < deadline:
            time.sleep(_POLL[0])
        if found is None:
            answer.errors[0] = f"the worker did not answer within {seconds:g} s; is `lasagna worker` running?"
        elif "error" in found:
            answer.errors[0] = str(found["error"])
        else:
            answer.results[0] = found["prediction"]
        return answer

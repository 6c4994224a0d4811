"""The job that learns from a project's corrections, in the worker.

What always holds:

- A task leaves the list of changes after what it teaches is on disk: whenever the worker dies, the next job sees it
  again, and doing it twice gives the same head.
- One unusable annotation is set aside with its reason, and the others count. A task that brought the worker down
  `CRASHES` times is set aside too.
- A champion's answers on photos that it was trained on are no evidence of how good it is; where nobody knows which
  these were (its snapshot is gone), none are.
- What an annotation teaches is read under the labels of its time, by the names and meanings that they have now: where
  these change, it is read again.
- Label Studio is the truth: where Redis or the files are new, every annotation is read again (the newest, as many as a
  store keeps).
"""

import hashlib
import json
import logging
import time
from collections.abc import Callable, Container, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from backend.instant.changes import CRASHES, EVERYTHING, Changes
from backend.instant.heads import HeadState, ProjectHeads
from backend.instant.reading import read_annotation
from backend.queue.connections import Connections
from backend.registry.label_histories import LabelHistories
from backend.registry.records import project_key, project_number
from backend.registry.registry import Registry
from backend.registry.trained import trained_photos
from backend.studio.client import LabelStudio, LabelStudioError
from backend.studio.images import ImageLimits, fetch_image, task_data
from lasagna.errors import ImageError, LasagnaError
from lasagna.files import write_atomically
from lasagna.formats.annotations import choose_annotation
from lasagna.formats.first_uses import FirstUses
from lasagna.formats.regions import read_regions
from lasagna.instant.store import HeadStore
from lasagna.labels.configuration import LabelConfig, TaskImage, parse_label_config
from lasagna.masks.image import image_format

if TYPE_CHECKING:
    from lasagna.contract.model import ClassListModel
    from lasagna.instant.correction import Correction

logger = logging.getLogger(__name__)

AT_ONCE = 8
"""Tasks of one job; what is left gets another one, so that clicks and predictions come between."""
_SEEN, _USES = "seen.json", "first_uses.json"


@dataclass(frozen=True)
class LearnOutcome:
    """What a job did: numbers of tasks, and the head that the project uses now."""

    learnt: int = 0
    removed: int = 0
    set_aside: int = 0
    waiting: int = 0
    head: HeadState | None = None


class Learning:
    """Learns from corrections.

    Args:
        model_of: The model of (project, version), without a head.
        features_of: A photo as a model encodes it, of (model, bytes, address).
        connections: Label Studio of each project.
        changes: What waits.
        registry: Versions and heads.
        own_version: The version of the worker's own model.
        limits: On fetching a photo.
    """

    def __init__(
        self,
        model_of: Callable[[str, str], "ClassListModel"],
        features_of: Callable[["ClassListModel", bytes, str], Any],
        connections: Connections,
        changes: Changes,
        registry: Registry,
        own_version: str,
        limits: ImageLimits,
    ) -> None:
        self._model_of, self._features_of = model_of, features_of
        self._connections, self.changes = connections, changes
        self._registry, self._own_version, self._limits = registry, own_version, limits
        self.heads = ProjectHeads(registry.folder)
        self.histories = LabelHistories(registry.folder)
        self._stores: dict[Path, HeadStore] = {}

    def version(self, project: str) -> str:
        """The version that serves a project, without a head."""
        champion = self._registry.champion(project)
        return champion.id if champion is not None else self._own_version

    def learn(self, project: str) -> LearnOutcome:
        """Learns from what has changed in a project.

        Raises:
            LabelStudioError: Label Studio cannot be reached; what waits goes on waiting.
        """
        started = time.monotonic()
        self.changes.begin(project)
        waiting = self.changes.waiting(project)
        if not waiting:
            return LearnOutcome()
        version = self.version(project)
        model = self._model_of(project, version)
        if model.version != version:
            raise LasagnaError(f"version {version} of project {project} cannot be had; {model.version} answers instead")
        if not model.abilities.instant:
            self.changes.forget(project)
            self.changes.say(project, version=version, head=None, reason=str(model.cannot("instant")), corrections=0)
            return LearnOutcome()
        label_studio, known = self._connections.of(project)
        store = self._store(project, version)
        with store.lock():
            batch = _Batch(self, project, model, label_studio, known.url, store, self._trained(project, version))
            if EVERYTHING in waiting:
                found = batch.unlike_label_studio()
                self.changes.note(project, found)
                self.changes.done(project, {EVERYTHING: waiting.pop(EVERYTHING)})
                waiting = self.changes.waiting(project)
                waiting.pop(EVERYTHING, None)
            outcome = batch.run(waiting)
            store.refresh()
        left = self.changes.done(project, {task: waiting[task] for task in batch.handled})
        self._prune(project, version)
        if left:
            self.changes.queue_job(project)
        head = self.heads.current(project, version)
        seconds = time.monotonic() - started
        self.changes.say(
            project,
            version=version,
            head=head.number if head else None,
            reason=head.decision["reason"] if head else "nothing is learnt yet",
            corrections=len(store.corrections),
            seconds=round(seconds, 3),
        )
        logger.info(
            "project %s: %d corrections learnt, %d taken away, %d set aside in %.2f s; %s",
            project_number(project),
            outcome.learnt,
            outcome.removed,
            outcome.set_aside,
            seconds,
            head.words if head else "no head",
        )
        return LearnOutcome(outcome.learnt, outcome.removed, outcome.set_aside, left, head)

    def _prune(self, project: str, version: str) -> None:
        """Stores beside versions to which the project can neither go back nor on are removed."""
        aliases = self._registry.aliases(project)
        kept = {version, self._own_version, aliases.champion, aliases.candidate, *aliases.former[-1:]}
        if gone := self.heads.prune(project, kept):
            logger.info("project %s: the heads of former versions were removed: %s", project, ", ".join(gone))
            self._stores = {folder: store for folder, store in self._stores.items() if folder.name not in gone}

    def look_after(self) -> None:
        """Queues the jobs that were lost, and has every annotation read again where another version serves since."""
        for project in self.changes.projects():
            try:
                version = self.version(project)
            except LasagnaError as error:  # one project's record, which must not hold up the others
                logger.error("what was corrected in project %s waits: %s", project, error)
                continue
            if self.changes.said(project).get("version") not in (None, version):
                self.changes.say(project, version=version)
                self.changes.note(project, [EVERYTHING])
            elif self.changes.waiting(project):
                self.changes.queue_job(project)

    def _store(self, project: str, version: str) -> HeadStore:
        folder = self.heads.folder(project, version)
        if folder not in self._stores:
            self._stores[folder] = HeadStore(folder)
        return self._stores[folder]

    def _trained(self, project: str, version: str) -> set[str] | None:
        """Hashes of the photos that a version was trained on; None where that is not known any more."""
        if version == self._own_version:
            return set()
        snapshot = self._registry.version(version).snapshot
        if not snapshot:
            return set()
        return trained_photos(self._registry.folder / "snapshots" / project_key(project) / snapshot)


class _Batch:
    """One job's work on a locked store."""

    def __init__(
        self,
        learning: Learning,
        project: str,
        model: "ClassListModel",
        label_studio: LabelStudio,
        known_as: str,
        store: HeadStore,
        trained: set[str] | None,
    ) -> None:
        self._learning, self._project, self._model = learning, project, model
        self._label_studio, self._known_as, self._store, self._trained = label_studio, known_as, store, trained
        self._number = int(project_number(project))
        self._seen: dict[str, list[Any]] = _read_json(store.folder / _SEEN)
        self._uses = FirstUses(learning.histories.of(project), _read_json(store.folder / _USES).get("uses", ()))
        self.handled: list[str] = []

    def unlike_label_studio(self) -> list[str]:
        """The tasks whose annotation may be another than the one that was learnt, or is gone; the newest, at most as
        many as the store keeps."""
        now = self._label_studio.annotated(self._number)
        gone = [task for task in self._seen if int(task) not in now]
        newest = sorted(now, key=lambda task: now[task])[-self._store.limit :]
        return gone + [str(task) for task in newest]

    def run(self, waiting: Mapping[str, str]) -> LearnOutcome:
        chunk = [int(task) for task in waiting][:AT_ONCE]
        exported = {int(task["id"]): task for task in self._label_studio.export(self._number, chunk)} if chunk else {}
        chosen = {
            number: choose_annotation(task["annotations"])
            for number, task in exported.items()
            if any(not annotation.get("was_cancelled") for annotation in task["annotations"])
        }
        xml = str(self._label_studio.project(self._number)["label_config"]) if chosen else ""
        plan = parse_label_config(xml) if chosen else None
        if plan is not None:
            for known in exported.values():
                self._note_uses(known, plan)
        counts = {"learnt": 0, "removed": 0, "set_aside": 0}
        for number in sorted(chunk, key=lambda n: str(chosen[n].get("updated_at") or "") if n in chosen else ""):
            task, ended = str(number), ""
            if number not in chosen:
                ended = "removed" if self._forget(task) else ""
                self._seen.pop(task, None)
                self._learning.changes.take_back(self._project, task)
            else:
                assert plan is not None
                images = plan.of_task(task_data(exported[number]))
                identity = _identity(chosen[number], images, self._uses)
                if self._seen.get(task) != identity:
                    ended = self._learn(exported[number], chosen[number], xml, images)
                    self._seen[task] = identity
            if ended:
                counts[ended] += 1
            self.handled.append(task)
        write_atomically(self._store.folder / _USES, json.dumps({"uses": self._uses.as_list()}))
        write_atomically(self._store.folder / _SEEN, json.dumps(self._seen))
        return LearnOutcome(counts["learnt"], counts["removed"], counts["set_aside"])

    def _note_uses(self, task: Mapping[str, Any], plan: LabelConfig) -> None:
        """Notes which labels people used: those stood in the configuration from then on, whoever noted it."""
        images = [image.config for image in plan.of_task(task_data(task))]
        for annotation in task["annotations"]:
            if not annotation.get("was_cancelled"):
                renamed = self._uses.history.renamed
                self._uses.add(annotation, read_regions(annotation.get("result") or (), images, renamed), images)

    def _learn(self, task: dict[str, Any], annotation: dict[str, Any], xml: str, images: Sequence[TaskImage]) -> str:
        changes, name = self._learning.changes, str(task["id"])
        if changes.attempt(self._project, name) > CRASHES:
            return self._set_aside(name, f"the worker died {CRASHES} times while it learnt from this task")
        corrections, reasons = [], []
        for image in images:
            try:
                if not image.address:
                    raise ImageError(image.problem)
                id = name if len(images) == 1 else f"{name}:{image.config.name}"
                corrections.append(self._observe(task, annotation, image, id, xml))
            except LabelStudioError as error:
                if error.is_temporary:
                    raise
                reasons.append(str(error))
            except LasagnaError as error:
                reasons.append(str(error))
        if not corrections:
            return self._set_aside(name, "; ".join(dict.fromkeys(reasons)) or "the task shows no image")
        self._forget(name, besides={correction.id for correction in corrections})
        for correction in corrections:
            self._store.put(correction)
        changes.take_back(self._project, name)
        return "learnt"

    def _observe(
        self, task: dict[str, Any], annotation: dict[str, Any], image: TaskImage, id: str, xml: str
    ) -> "Correction":
        """What the annotation teaches about one image of the task."""
        limits = self._learning._limits
        data = fetch_image(self._label_studio, image.address, int(task["id"]), limits, known_as=self._known_as)
        features, photo_key = self._learning._features_of(self._model, data, image.address)
        kind = image_format(data)
        chosen = {**task, "annotations": [annotation]}
        annotated = read_annotation(chosen, image.config, data, kind, xml, self._uses)
        return self._model.observe(
            features,
            annotated.masks,
            id,
            classes=annotated.classes,
            undecided=annotated.undecided,
            is_evidence=self._trained is not None and photo_key not in self._trained,
        )

    def _forget(self, task: str, besides: Container[str] = ()) -> bool:
        """Takes away what was learnt from the images of a task; whether there was anything."""
        ids = [known.id for known in self._store.corrections if known.id == task or known.id.startswith(f"{task}:")]
        gone = [id for id in ids if id not in besides and self._store.remove(id)]
        return bool(gone)

    def _set_aside(self, task: str, reason: str) -> str:
        """What was learnt from an earlier annotation of the task does not stand any more either."""
        self._forget(task)
        self._learning.changes.set_aside(self._project, task, reason)
        logger.warning("task %s is not learnt from: %s", task, reason)
        return "set_aside"


def _identity(annotation: Mapping[str, Any], images: Sequence[TaskImage], uses: FirstUses) -> list[Any]:
    """Which annotation it is, and what its labels mean now: those that it uses, and those that stood when it was made,
    with what the model reads for them. A label that came later means nothing to it."""
    configs = [image.config for image in images]
    reading = read_regions(annotation.get("result") or (), configs, uses.history.renamed)
    meant = []
    for config, regions in zip(configs, reading.of_image, strict=True):
        texts = {query.name: query.text for query in config.classes}
        used = {name for region in regions for name in (*(one.value for one in region.labels), *region.unknown_labels)}
        meant.append(sorted((name, texts.get(name, "")) for name in {*used, *uses.stood(config, annotation)}))
    digest = hashlib.sha256(json.dumps(meant).encode("utf-8", "surrogatepass")).hexdigest()[:12]
    return [int(annotation.get("id") or 0), str(annotation.get("updated_at") or ""), digest]


def _read_json(path: Path) -> dict[str, Any]:
    """A JSON object; an empty one where the file is missing or damaged: then every annotation is read again."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        return found if isinstance(found, dict) else {}
    except (OSError, ValueError):
        return {}

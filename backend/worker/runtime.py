"""What the worker does with its models: batches of tasks, and clicks.

What always holds: every task handed to `predict` ends as ready, failed with a reason, or queued for later. A task fails
alone: its image is fetched and decoded by itself, and a batch that the model cannot take is tried image by image. The
prediction of the same image, query, parameters and model version is computed once. A task is answered by the version
that it was asked of (`LoadedModels.of`), with the instant head that its project uses now (`backend.worker.serving`),
and its prediction says which these were.

Models are used by one thread at a time (the worker's main thread).
"""

import hashlib
import itertools
import json
import logging
import time
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Any
from uuid import uuid4

import numpy as np
import redis
from PIL import Image
from rq.timeouts import JobTimeoutException

from backend.instant.changes import Changes
from backend.instant.heads import base_version
from backend.instant.learning import Learning
from backend.instant.policy import learns_at_once
from backend.instant.renewal import renew_next
from backend.queue.connections import Connections
from backend.queue.counters import BATCH_BOUNDS, Meter, reason_of
from backend.queue.store import THRESHOLDS, Store, Work
from backend.registry.registry import Registry
from backend.studio.client import LabelStudioError
from backend.studio.images import DoubtfulImageError, ImageLimits, fetch_image
from backend.worker.clicks import parse_prompt, to_pixels, without_prompts
from backend.worker.loaded_models import LoadedModels
from backend.worker.questions import answer_question, parse_question
from backend.worker.serving import ServingHeads, ServingModel
from lasagna.assistant.each import segment_each
from lasagna.errors import ConfigError, LasagnaError, in_words
from lasagna.formats.hygiene import Hygiene, clean_segmentation, limit_region_bytes
from lasagna.formats.label_studio import segmentation_to_label_studio
from lasagna.labels.configuration import Control, LabelConfig, parse_label_config, with_thresholds
from lasagna.logs import logged
from lasagna.masks.image import load_image
from lasagna.masks.segmentation import ClassAnswer, Segmentation
from lasagna.settings import Settings, registry_folder

if TYPE_CHECKING:
    from lasagna.assistant.lasagna import Lasagna

logger = logging.getLogger(__name__)

_SAME_IMAGE = 300.0
_DOUBT_SECONDS = 60.0
"""For so long an image that may not have come as it is (`DoubtfulImageError`) is tried again, with growing pauses."""
_WARM_UP = """<View><Image name="i" value="$i"/>
<BrushLabels name="b" toName="i"><Label value="warm"/></BrushLabels>
<PolygonLabels name="p" toName="i"><Label value="warm"/></PolygonLabels>
<RectangleLabels name="r" toName="i"><Label value="warm"/></RectangleLabels></View>"""


@dataclass
class _Piece:
    """A work on its way through a batch."""

    key: str
    work: Work
    plan: LabelConfig
    params: Mapping[str, Any]
    image_key: str
    result_key: str
    data: bytes


class Runtime:
    """The loaded models with what they need around them.

    Args:
        model: The worker's own model, which serves projects without a champion.
        settings: Limits on images, `delivery_timeout`; for the other models `registry`, `loaded_versions`, `device` and
            `dtype`.
        store: The records in Redis.
        feature_images: How many images' features are kept for clicks.
    """

    def __init__(self, model: "Lasagna", settings: Settings, store: Store, feature_images: int = 8) -> None:
        self.model = model
        self.models = LoadedModels(
            model,
            Registry(registry_folder(settings)),
            settings.loaded_versions,
            device=settings.device,
            dtype=settings.dtype,
            quantise=settings.quantise,
        )
        self.store = store
        self.meter = Meter(store.redis)
        self.connections = Connections(settings, store)
        self._settings = settings
        self._hygiene = Hygiene.of(settings)
        self._limits = ImageLimits.from_settings(settings)
        self.learning = Learning(
            self.models.of,
            self._encoded,
            self.connections,
            Changes(store),
            self.models.registry,
            model.version,
            self._limits,
        )
        self._heads = ServingHeads(self.learning.heads)
        self._features: OrderedDict[tuple[str, str], Any] = OrderedDict()  # by version and image
        self._hashes: dict[tuple[str, str, int | None], tuple[str, float]] = {}
        self._feature_images = feature_images

    def warm_up(self) -> float:
        """Goes once through everything that a task and a click need, so that the first one does not pay for lazy
        imports and set-up. Returns the seconds it took."""
        started = time.monotonic()
        photo = Image.fromarray(np.random.default_rng(0).integers(0, 256, (480, 640, 3), dtype=np.uint8))
        self.model.segment(photo, ["sky", "road", "person"])
        mask, _ = self.model.segment_prompt(self.model.encode_image(photo), points=[(320.0, 240.0, True)])
        mask = np.zeros_like(mask)
        mask[100:200, 100:200] = True
        answer = Segmentation((480, 640), (ClassAnswer("warm", 1.0, mask),))
        segmentation_to_label_studio(answer, parse_label_config(_WARM_UP), "", self.model.version)
        return time.monotonic() - started

    # --- batches ------------------------------------------------------------------------------------------------------

    def release(self, keys: Sequence[str], job: str) -> list[str]:
        """Takes what an earlier run of this job left and returns those keys, to be queued in other jobs."""
        return [key for key, _ in self.store.start(keys, job)]

    def predict(self, keys: Sequence[str], job: str) -> dict[str, int]:
        """Predicts works; those that another job has taken or finished are left out. Returns how many ended how."""
        started = time.monotonic()
        taken = self.store.start(keys, job)
        counts = {"predicted": 0, "cached": 0, "failed": 0, "later": 0}
        groups: dict[tuple[str, str], list[tuple[str, Work]]] = {}
        for key, work in taken:
            groups.setdefault((work.project, work.version), []).append((key, work))
        try:
            for (project, version), group in groups.items():
                with logged(project=project.split(".")[0]):
                    self._predict(group, project, version, counts)
        except JobTimeoutException as error:
            states = self.store.states([key for key, _ in taken])
            for (key, work), state in zip(taken, states, strict=True):
                if state == "running":
                    self._failed(key, work, f"it took too long ({error})", "timeout", counts)
        finally:
            self.meter.count("images:computed", counts["predicted"])
            self.meter.count("images:reused", counts["cached"])
            self.meter.flush()
        if taken:
            logger.info(
                "%d tasks of project %s: %s, %.1f s",
                len(taken),
                taken[0][1].project.split(".")[0],
                ", ".join(f"{count} {name}" for name, count in counts.items() if count),
                time.monotonic() - started,
            )
        return counts

    def _predict(self, taken: Sequence[tuple[str, Work]], project: str, version: str, counts: dict[str, int]) -> None:
        """Works of one project and one version."""
        try:
            model = self._serving(project, version)
        except JobTimeoutException:
            raise
        except Exception as error:
            # out of memory, a broken file: about this version, not about the worker
            if not isinstance(error, LasagnaError):
                logger.exception("version %s cannot be loaded", version)
            reason = in_words(error)
            for key, work in taken:
                self._failed(key, work, f"version {version} cannot be used: {reason}", "version", counts)
            return
        started, before = time.monotonic(), counts["predicted"]
        pieces = self._fetch(taken, (model.version, model.precision), counts)
        self._compute(self._from_cache(pieces, counts), model, counts)
        if counts["predicted"] > before:
            self.meter.pace(base_version(model.version), counts["predicted"] - before, time.monotonic() - started)

    def _serving(self, project: str, version: str) -> ServingModel:
        """A version's model, with the head that the project uses beside it."""
        model = self.models.of(project, base_version(version))
        if not learns_at_once(self._settings, self.store.project(project)):
            return ServingModel(model)
        return self._heads.beside(model, project)

    def _fetch(
        self, taken: Sequence[tuple[str, Work]], answering: tuple[str, str], counts: dict[str, int]
    ) -> list[_Piece]:
        """Fetches the images side by side. `answering`: version and precision of the model."""
        with (
            self.meter.stage("fetch", len(taken)),
            ThreadPoolExecutor(max_workers=min(8, len(taken)), thread_name_prefix="fetch") as pool,
        ):
            outcomes = list(pool.map(self._piece, taken, itertools.repeat(answering)))
        pieces = []
        for (key, work), outcome in zip(taken, outcomes, strict=True):
            if isinstance(outcome, _Piece):
                pieces.append(outcome)
            elif (patience := self._patience(outcome)) > 0:
                state = self.store.try_later(key, str(outcome), patience, reason_of(outcome))
                counts[state] = counts.get(state, 0) + 1
                with logged(task=work.task):
                    words = "tried again" if state == "later" else "given up"
                    logger.warning("task %s: %s; %s", work.task, outcome, words)
            else:
                self._failed(key, work, str(outcome), reason_of(outcome), counts)
        return pieces

    def _patience(self, error: LasagnaError) -> float:
        """Seconds for which a task is tried again that could not be fetched."""
        if isinstance(error, DoubtfulImageError):
            return _DOUBT_SECONDS
        return self._settings.delivery_timeout if isinstance(error, LabelStudioError) and error.is_temporary else 0.0

    def _piece(self, item: tuple[str, Work], answering: tuple[str, str]) -> _Piece | LasagnaError:
        key, work = item
        try:
            plan = without_prompts(self._plan(work.config))
            label_studio, project = self.connections.of(work.project)
            data = fetch_image(label_studio, work.image, work.task, self._limits, known_as=project.url)
        except LasagnaError as error:
            return error
        params = dict(project.params or {})
        plan = with_thresholds(plan, params.pop(THRESHOLDS, {}))
        image_key = hashlib.sha256(data).hexdigest()
        result_key = _result_key(image_key, plan, params, answering, self._hygiene)
        return _Piece(key, work, plan, params, image_key, result_key, data)

    def _from_cache(self, pieces: Sequence[_Piece], counts: dict[str, int]) -> list[_Piece]:
        """Finishes what was computed before; returns the others."""
        fresh = []
        for piece in pieces:
            known = self.store.result(piece.result_key)
            if known is None:
                fresh.append(piece)
            else:
                self.store.finish(piece.key, known)
                counts["cached"] += 1
        return fresh

    def _compute(self, pieces: Sequence[_Piece], model: ServingModel, counts: dict[str, int]) -> None:
        """Runs the model on each different image, query and parameters once."""
        groups: OrderedDict[str, list[_Piece]] = OrderedDict()
        for piece in pieces:
            groups.setdefault(piece.result_key, []).append(piece)
        images: dict[str, Image.Image] = {}
        for result_key, group in list(groups.items()):
            try:
                with self.meter.stage("open", 1):
                    images[result_key] = self._load(group[0].data, group[0].work.image)
            except LasagnaError as error:
                for piece in groups.pop(result_key):
                    self._failed(piece.key, piece.work, str(error), reason_of(error), counts)
        batches: dict[str, list[str]] = {}
        for result_key, group in groups.items():
            batches.setdefault(json.dumps(group[0].params, sort_keys=True), []).append(result_key)
        for result_keys in batches.values():
            self._segment({key: images[key] for key in result_keys}, groups, model, counts)

    def _segment(
        self,
        images: Mapping[str, Image.Image],
        groups: Mapping[str, list[_Piece]],
        model: ServingModel,
        counts: dict[str, int],
    ) -> None:
        """One model batch; where it fails, each image by itself."""
        firsts = [groups[key][0] for key in images]
        self.meter.observe("batch", "", len(images), BATCH_BOUNDS)
        with self.meter.stage("model", len(images)):
            outcomes = segment_each(
                model.segment_batch,
                list(images.values()),
                [piece.plan.classes for piece in firsts],
                fatal=(JobTimeoutException,),
                **firsts[0].params,
            )
        for (key, _), outcome, piece in zip(images.items(), outcomes, firsts, strict=True):
            if isinstance(outcome, Exception):
                self._model_failed(groups[key], outcome, counts)
                continue
            with self.meter.stage("regions", 1):
                prediction = self._prediction(outcome, piece, model.version)
            self.store.keep_result(key, prediction)
            for each in groups[key]:
                self.store.finish(each.key, prediction)
            counts["predicted"] += 1
            counts["cached"] += len(groups[key]) - 1

    def _model_failed(self, pieces: Sequence[_Piece], error: Exception, counts: dict[str, int]) -> None:
        """Fails every work that asked what the model failed on."""
        if not isinstance(error, LasagnaError):
            logger.error("the model failed on %s", pieces[0].work.image, exc_info=error)
        kind = "configuration" if reason_of(error) == "configuration" else "model"
        for piece in pieces:
            self._failed(piece.key, piece.work, f"the model failed: {in_words(error)}", kind, counts)

    def _prediction(self, answer: Segmentation, piece: _Piece, version: str) -> dict[str, Any]:
        """The prediction of an answer, without what the settings of `Hygiene` leave out."""
        clean, left_out = clean_segmentation(answer, self._hygiene)
        prediction = segmentation_to_label_studio(clean, piece.plan, piece.image_key, version)
        prediction, shrunk = limit_region_bytes(prediction, piece.plan, self._hygiene.max_region_bytes)
        counts = {name: number for name, number in asdict(left_out + shrunk).items() if number}
        if counts:
            with logged(task=piece.work.task):
                logger.info("left out of the prediction of task %s: %s", piece.work.task, counts)
        return prediction

    def _failed(self, key: str, work: Work, reason: str, kind: str, counts: dict[str, int]) -> None:
        self.store.fail(key, reason, kind)
        counts["failed"] += 1
        with logged(task=work.task):
            logger.warning("task %s failed: %s", work.task, reason)

    def _plan(self, config_key: str) -> LabelConfig:
        xml = self.store.config(config_key)
        if xml is None:
            raise ConfigError("the labelling configuration of this task is gone from Redis; ask for it again")
        return parse_label_config(xml)

    # --- clicks -------------------------------------------------------------------------------------------------------

    def click(self, request: Mapping[str, Any]) -> dict[str, Any]:
        """Answers an interactive request: {"prediction": {...}} or {"error": reason}.

        Args:
            request: `project`, `version`, `task`, `image`, `config` (key) and `context`: the regions that the annotator
                drew, or the question that was written into a smart `TextArea`.
        """
        started = time.monotonic()
        try:
            plan = self._plan(request["config"])
            question = parse_question(request["context"], plan)
            prompt = None if question else parse_prompt(request["context"], plan)
            model = self.models.of(request["project"], base_version(request["version"]))
            features, width, height = self._features_of(model, request["project"], request["image"], request["task"])
            if question:
                return {"prediction": answer_question(model, features, question, plan, (height, width))}
            assert prompt is not None
            control, class_name, points, box = prompt
            mask, score = model.segment_prompt(
                features,
                points=[(x * width / 100, y * height / 100, positive) for x, y, positive in points],
                box=None if box is None else to_pixels(box, width, height),
            )
        except LasagnaError as error:
            logger.warning("click on task %s: %s", request.get("task"), error)
            return {"error": str(error)}
        except (JobTimeoutException, redis.RedisError):
            raise
        except Exception as error:  # whatever a model raises: the annotator waits for an answer
            logger.exception("the model failed on a click on task %s", request.get("task"))
            return {"error": f"the model failed: {in_words(error)}"}
        answer = Segmentation((height, width), (ClassAnswer(class_name, float(score), np.asarray(mask, dtype=bool)),))
        narrowed = replace(plan, controls=(control,), absent_choices=None, absent_values=())
        # the id is new each time: a second click must not replace the region of the first
        prediction = segmentation_to_label_studio(answer, narrowed, uuid4().hex, model.version)
        logger.info("click on task %s: %s, %.2f s", request.get("task"), class_name, time.monotonic() - started)
        return {"prediction": prediction}

    def _features_of(self, model: "Lasagna", project: str, address: str, task: int | None) -> tuple[Any, int, int]:
        """An image as a model encodes it, with its width and height, from the last few that were asked for.

        They are kept by version and by the hash of the image. What hash an address has is believed for `_SAME_IMAGE`
        seconds, so that the second click on an image need not fetch it.
        """
        image_key, looked_at = self._hashes.get((project, address, task), ("", 0.0))
        key = (model.version, image_key)
        if key not in self._features or time.monotonic() - looked_at > _SAME_IMAGE:
            label_studio, known = self.connections.of(project)
            data = fetch_image(label_studio, address, task, self._limits, known_as=known.url)
            key = (model.version, hashlib.sha256(data).hexdigest())
            self._encoded(model, data, address)
            kept = {image_key for _, image_key in self._features}
            self._hashes = {place: seen for place, seen in self._hashes.items() if seen[0] in kept}
            self._hashes[project, address, task] = (key[1], time.monotonic())
        self._features.move_to_end(key)
        return self._features[key]

    def _encoded(self, model: "Lasagna", data: bytes, name: str) -> tuple[Any, str]:
        """A photo as a model encodes it, and the hash of its bytes; the last few are kept."""
        image_key = hashlib.sha256(data).hexdigest()
        key = (model.version, image_key)
        if key not in self._features:
            image = self._load(data, name)
            self._features[key] = (model.encode_image(image), *image.size)
        self._features.move_to_end(key)
        while len(self._features) > self._feature_images:
            self._features.popitem(last=False)
        return self._features[key][0], image_key

    # --- corrections --------------------------------------------------------------------------------------------------

    def learn(self, project: str) -> None:
        """Learns from what was corrected in a project, and predicts anew what annotators open next. While Label Studio
        is gone the corrections wait; `Learning.look_after` queues them again."""
        if not learns_at_once(self._settings, self.store.project(project)):
            self.learning.changes.forget(project)
            return
        try:
            outcome = self.learning.learn(project)
            for name, number in (
                ("learnt", outcome.learnt),
                ("removed", outcome.removed),
                ("aside", outcome.set_aside),
            ):
                self.meter.count(f"corrections:{name}", number)
            if outcome.head is not None and not outcome.waiting:
                renew_next(self.store, self.connections.of(project)[0], project, outcome.head)
        except LasagnaError as error:
            logger.warning("what was corrected in project %s waits: %s", project, error)
        self.meter.flush()

    def _load(self, data: bytes, name: str) -> Image.Image:
        return load_image(
            data,
            max_bytes=self._settings.max_image_bytes,
            max_pixels=self._settings.max_image_pixels,
            max_memory=self._settings.max_image_memory,
            name=name,
        )


def _drawn(control: Control) -> list[Any]:
    return [control.name, control.kind, control.to_name, [(label.value, label.written) for label in control.labels]]


def _result_key(
    image_key: str, plan: LabelConfig, params: Mapping[str, Any], answering: tuple[str, str], hygiene: Hygiene
) -> str:
    """Identifies a prediction: image, query as far as it changes the answer, parameters, the model's version and
    precision, what is left out."""
    query = [plan.image_name, [_drawn(control) for control in plan.controls], plan.absent_values]
    asked = [(c.name, c.reads_as) if c.threshold is None else (c.name, c.reads_as, c.threshold) for c in plan.classes]
    identity = [image_key, query, asked, dict(params), answering, asdict(hygiene)]
    return hashlib.sha256(json.dumps(identity, sort_keys=True).encode("utf-8", "surrogatepass")).hexdigest()[:40]

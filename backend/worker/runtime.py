"""What the worker does with its models: batches of tasks, and clicks.

What always holds: every task handed to `predict` ends as ready, failed with a reason, or queued for later. A task fails
alone: its image is fetched and decoded by itself, and a batch that the model cannot take is tried image by image. The
prediction of the same image, query, parameters and model version is computed once. A task is answered by the version
that it was asked of (`LoadedModels.of`), with the instant head that its project uses now (`backend.worker.serving`),
and its prediction says which these were.

Models are used by one thread at a time (the worker's main thread).
"""

import functools
import hashlib
import itertools
import json
import logging
import time
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, replace
from typing import TYPE_CHECKING, Any
from uuid import uuid4

import numpy as np
import redis
from PIL import Image
from rq.timeouts import JobTimeoutException

from backend.instant.changes import Changes
from backend.instant.learning import Learning
from backend.instant.policy import learns_at_once
from backend.instant.renewal import renew_next
from backend.queue.connections import Connections
from backend.queue.counters import BATCH_BOUNDS, Meter, reason_of
from backend.queue.provenance import Provenance
from backend.queue.store import IMAGE_OF_OLD, THRESHOLDS, Store, Work
from backend.registry.registry import Registry
from backend.studio.client import LabelStudioError
from backend.studio.data_fields import fields_of
from backend.studio.images import DoubtfulImageError, ImageLimits, fetch_image
from backend.studio.version_names import base_version
from backend.worker.clicks import parse_prompt, to_pixels
from backend.worker.kept_features import KeptFeatures
from backend.worker.loaded_models import LoadedModels
from backend.worker.pieces import Picture, Piece, Place
from backend.worker.questions import answer_question, parse_question
from backend.worker.serving import ServingHeads, ServingModel
from lasagna.assistant.each import segment_each
from lasagna.errors import ConfigError, LasagnaError, in_words
from lasagna.formats.hygiene import Hygiene, clean_segmentation, limit_region_bytes
from lasagna.formats.label_studio import segmentation_to_label_studio
from lasagna.labels.configuration import LabelConfig, TaskImage, parse_label_config
from lasagna.labels.parts import with_thresholds
from lasagna.labels.question import ProjectQuestion
from lasagna.logs import logged
from lasagna.masks.image import load_image
from lasagna.masks.segmentation import ClassAnswer, Segmentation
from lasagna.settings import Settings, registry_folder

if TYPE_CHECKING:
    from lasagna.contract.model import ClassListModel

logger = logging.getLogger(__name__)

_SAME_IMAGE = 300.0
_DOUBT_SECONDS = 60.0
"""For so long an image that may not have come as it is (`DoubtfulImageError`) is tried again, with growing pauses."""
_WARM_UP = """<View><Image name="i" value="$i"/>
<BrushLabels name="b" toName="i"><Label value="warm"/></BrushLabels>
<PolygonLabels name="p" toName="i"><Label value="warm"/></PolygonLabels>
<RectangleLabels name="r" toName="i"><Label value="warm"/></RectangleLabels></View>"""


known_label_config = functools.lru_cache(maxsize=64)(parse_label_config)
"""`parse_label_config`, remembered: every task of a batch names the same one."""


class Runtime:
    """The loaded models with what they need around them.

    Args:
        model: The worker's own model, which serves projects without a champion.
        settings: Limits on images, `delivery_timeout`; for the other models `registry`, `loaded_versions`, `device` and
            `dtype`.
        store: The records in Redis.
        feature_images: How many images' features are kept for clicks and corrections.
    """

    def __init__(self, model: "ClassListModel", settings: Settings, store: Store, feature_images: int = 8) -> None:
        self.model = model
        self.models = LoadedModels(
            model,
            Registry(registry_folder(settings)),
            settings.loaded_versions,
            device=settings.device,
            dtype=settings.dtype,
            quantise=settings.quantise,
            encoder=settings.encoder,
        )
        self.store = store
        self.meter = Meter(store.redis)
        self.provenance = Provenance(store)
        self.connections = Connections(settings, store)
        self._settings = settings
        self._hygiene = Hygiene.of(settings)
        self._batch_size = settings.batch_size
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
        self._features = KeptFeatures(feature_images)
        self._hashes: dict[tuple[str, str, int | None], tuple[str, float]] = {}

    def warm_up(self) -> float:
        """Goes once through everything that a task and a click need, so that the first one does not pay for lazy
        imports and set-up. Returns the seconds it took."""
        started = time.monotonic()
        photo = Image.fromarray(np.random.default_rng(0).integers(0, 256, (480, 640, 3), dtype=np.uint8))
        self.model.segment(photo, ["sky", "road", "person"], guess_unknown=True)
        if self.model.abilities.clicks:
            self.model.segment_prompt(self.model.encode_image(photo), points=[(320.0, 240.0, True)])
        mask = np.zeros((480, 640), bool)
        mask[100:200, 100:200] = True
        answer = Segmentation((480, 640), (ClassAnswer("warm", 1.0, mask),))
        segmentation_to_label_studio(answer, parse_label_config(_WARM_UP).images[0], "", self.model.version)
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
        pieces = self._pieces(taken, counts)
        places = [Place(piece, picture) for piece in pieces for picture in piece.pictures]
        for first in range(0, len(places), self._batch_size):  # a task may have hundreds of pages
            chunk = places[first : first + self._batch_size]
            self._fetch(chunk, (model.version, model.precision))
            self._compute(self._without_answer(chunk), model)
            for place in chunk:
                place.picture.data = b""
        for piece in pieces:
            self._end(piece, counts)
        if counts["predicted"] > before:
            self.meter.pace(base_version(model.version), counts["predicted"] - before, time.monotonic() - started)

    def _serving(self, project: str, version: str) -> ServingModel:
        """A version's model, with the head that the project uses beside it."""
        model = self.models.of(project, base_version(version))
        if not learns_at_once(self._settings, self.store.project(project)):
            return ServingModel(model)
        return self._heads.beside(model, project)

    def _pieces(self, taken: Sequence[tuple[str, Work]], counts: dict[str, int]) -> list[Piece]:
        """Works with the images that they show; those that show none have failed."""
        pieces = []
        for key, work in taken:
            try:
                images = self._shown(work.config, work.data)
                given = self.provenance.params_of(work.project, self._settings)
            except LasagnaError as error:
                self._failed(key, work, str(error), reason_of(error), counts)
            else:
                question = ProjectQuestion.of(self._config(work.config).images, given, asdict(self._hygiene))
                params = dict(given)
                own = params.pop(THRESHOLDS, {})
                pictures = [Picture(replace(i, config=with_thresholds(i.config, own))) for i in images]
                pieces.append(Piece(key, work, params, question, pictures))
        return pieces

    def _fetch(self, places: Sequence[Place], answering: tuple[str, str]) -> None:
        """Fetches images side by side. `answering`: version and precision of the model."""
        with (
            self.meter.stage("fetch", len(places)),
            ThreadPoolExecutor(max_workers=min(8, len(places)), thread_name_prefix="fetch") as pool,
        ):
            list(pool.map(self._fetch_one, places, itertools.repeat(answering)))

    def _fetch_one(self, place: Place, answering: tuple[str, str]) -> None:
        piece, picture = place.piece, place.picture
        if piece.later is not None:
            return
        try:
            label_studio, project = self.connections.of(piece.work.project)
            address, task = picture.image.address, piece.work.task
            data = fetch_image(label_studio, address, task, self._limits, known_as=project.url)
        except LasagnaError as error:
            if self._patience(error):
                piece.later = error
            else:
                picture.problem = (str(error), reason_of(error))
        else:
            piece.take(picture, data, answering, self._hygiene)

    def _patience(self, error: LasagnaError) -> float:
        """Seconds for which a task is tried again that could not be fetched."""
        if isinstance(error, DoubtfulImageError):
            return _DOUBT_SECONDS
        return self._settings.delivery_timeout if isinstance(error, LabelStudioError) and error.is_temporary else 0.0

    def _shown(self, config_key: str, data: str) -> tuple[TaskImage, ...]:
        config, known = self._config(config_key), json.loads(data or "{}")
        if IMAGE_OF_OLD in known:
            if len(config.fields) != 1:
                raise ConfigError("this task was queued by an older release; ask for its prediction again")
            known = {config.fields[0]: known[IMAGE_OF_OLD]}
        return config.shown(known)

    def _without_answer(self, places: Sequence[Place]) -> list[Place]:
        """Takes what was computed before; returns the other pictures that have come."""
        fresh = []
        for place in places:
            if place.picture.result_key and place.piece.later is None:
                place.picture.prediction = self.store.result(place.picture.result_key)
                fresh += [place] if place.picture.prediction is None else []
        return fresh

    def _compute(self, places: Sequence[Place], model: ServingModel) -> None:
        """Runs the model on each different image, query and parameters once."""
        groups: OrderedDict[str, list[Place]] = OrderedDict()
        for place in places:
            groups.setdefault(place.picture.result_key, []).append(place)
        images: dict[str, Image.Image] = {}
        for result_key, group in groups.items():
            picture = group[0].picture
            try:
                with self.meter.stage("open", 1):
                    images[result_key] = self._load(picture.data, picture.image.address)
            except LasagnaError as error:
                for place in group:
                    place.picture.problem = (str(error), reason_of(error))
        batches: dict[str, list[str]] = {}
        for result_key in images:
            params = groups[result_key][0].piece.params
            batches.setdefault(json.dumps(params, sort_keys=True), []).append(result_key)
        for result_keys in batches.values():
            self._segment({key: images[key] for key in result_keys}, groups, model)

    def _segment(
        self, images: Mapping[str, Image.Image], groups: Mapping[str, list[Place]], model: ServingModel
    ) -> None:
        """One model batch; where it fails, each image by itself."""
        firsts = [groups[key][0] for key in images]
        self.meter.observe("batch", "", len(images), BATCH_BOUNDS)
        with self.meter.stage("model", len(images)):
            outcomes = segment_each(
                model.segment_batch,
                self._features.opened(model.model, firsts[0].picture.content, list(images.values())),
                [first.picture.image.config.classes for first in firsts],
                fatal=(JobTimeoutException,),
                **firsts[0].piece.params,
            )
        for (key, _), outcome, first in zip(images.items(), outcomes, firsts, strict=True):
            if isinstance(outcome, Exception):
                _model_failed(groups[key], outcome)
                continue
            with self.meter.stage("regions", 1):
                prediction = self._prediction(outcome, first, model.version)
            self.store.keep_result(key, prediction)
            for place in groups[key]:
                place.picture.prediction = prediction
            first.picture.is_computed = True

    def _prediction(self, answer: Segmentation, place: Place, version: str) -> dict[str, Any]:
        """The prediction of an answer, without what the settings of `Hygiene` leave out."""
        config = place.picture.image.config
        clean, left_out = clean_segmentation(answer, self._hygiene)
        prediction = segmentation_to_label_studio(clean, config, place.picture.key, version)
        prediction, shrunk = limit_region_bytes(prediction, config, self._hygiene.max_region_bytes)
        counts = {name: number for name, number in asdict(left_out + shrunk).items() if number}
        if counts:
            with logged(task=place.piece.work.task):
                logger.info("left out of the prediction of task %s: %s", place.piece.work.task, counts)
        return prediction

    def _end(self, piece: Piece, counts: dict[str, int]) -> None:
        """Hands a work on with what its images got; it fails where none got anything."""
        work, prediction, problems = piece.work, piece.prediction(), piece.problems()
        if piece.later is not None:
            reason = str(piece.later)
            state = self.store.try_later(piece.key, reason, self._patience(piece.later), reason_of(piece.later))
            counts[state] = counts.get(state, 0) + 1
            with logged(task=work.task):
                logger.warning("task %s: %s; %s", work.task, reason, "tried again" if state == "later" else "given up")
            return
        words = "; ".join(reason for reason, _ in problems)
        if prediction is None:
            self._failed(piece.key, work, words, problems[0][1], counts)
            return
        if problems:
            with logged(task=work.task):
                logger.warning("task %s is predicted in part: %s", work.task, words)
        fields = fields_of(prediction) if self.store.project(work.project).data_fields else None
        self.store.finish(piece.key, prediction, words, piece.made(prediction), fields)
        counts["predicted" if any(picture.is_computed for picture in piece.pictures) else "cached"] += 1

    def _failed(self, key: str, work: Work, reason: str, kind: str, counts: dict[str, int]) -> None:
        self.store.fail(key, reason, kind)
        counts["failed"] += 1
        with logged(task=work.task):
            logger.warning("task %s failed: %s", work.task, reason)

    def _config(self, config_key: str) -> LabelConfig:
        xml = self.store.config(config_key)
        if xml is None:
            raise ConfigError("the labelling configuration of this task is gone from Redis; ask for it again")
        return known_label_config(xml)

    # --- clicks -------------------------------------------------------------------------------------------------------

    def click(self, request: Mapping[str, Any]) -> dict[str, Any]:
        """Answers an interactive request: {"prediction": {...}} or {"error": reason}.

        Args:
            request: `project`, `version`, `task`, `data` (as in `Work`), `config` (key) and `context`: the regions that
                the annotator drew, or the question that was written into a smart `TextArea`.
        """
        started = time.monotonic()
        try:
            images = self._shown(request["config"], request["data"])
            question = parse_question(request["context"], images)
            prompt = None if question else parse_prompt(request["context"], images)
            asked = (question or prompt).image  # type: ignore[union-attr]
            model = self.models.of(request["project"], base_version(request["version"]))
            if question and not model.abilities.questions:  # the answer says so, and needs no photo
                return {"prediction": answer_question(model, None, question, (0, 0))}
            if prompt and not model.abilities.clicks:
                raise model.cannot("clicks")
            features, width, height = self._features_of(model, request["project"], asked.address, request["task"])
            if question:
                return {"prediction": answer_question(model, features, question, (height, width))}
            assert prompt is not None
            mask, score = model.segment_prompt(
                features,
                points=[(x * width / 100, y * height / 100, positive) for x, y, positive in prompt.points],
                box=None if prompt.box is None else to_pixels(prompt.box, width, height),
            )
        except LasagnaError as error:
            logger.warning("click on task %s: %s", request.get("task"), error)
            return {"error": str(error)}
        except (JobTimeoutException, redis.RedisError):
            raise
        except Exception as error:  # whatever a model raises: the annotator waits for an answer
            logger.exception("the model failed on a click on task %s", request.get("task"))
            return {"error": f"the model failed: {in_words(error)}"}
        found = ClassAnswer(prompt.class_name, float(score), np.asarray(mask, dtype=bool))
        answer = Segmentation((height, width), (found,))
        narrowed = replace(asked.config, controls=(prompt.control,), absent_choices=None, absent_values=())
        # the id is new each time: a second click must not replace the region of the first
        prediction = segmentation_to_label_studio(answer, narrowed, uuid4().hex, model.version)
        logger.info("click on task %s: %s, %.2f s", request.get("task"), prompt.class_name, time.monotonic() - started)
        return {"prediction": prediction}

    def _features_of(
        self, model: "ClassListModel", project: str, address: str, task: int | None
    ) -> tuple[Any, int, int]:
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
            self.provenance.saw_image(project, task, key[1])
            self._encoded(model, data, address)
            self._hashes = {place: seen for place, seen in self._hashes.items() if seen[0] in self._features.asked}
            self._hashes[project, address, task] = (key[1], time.monotonic())
        features: tuple[Any, int, int] = self._features.get(key)
        return features

    def _encoded(self, model: "ClassListModel", data: bytes, name: str) -> tuple[Any, str]:
        """A photo as a model encodes it, and the hash of its bytes; the last few are kept."""
        image_key = hashlib.sha256(data).hexdigest()
        key = (model.version, image_key)
        if key in self._features:
            found = self._features.get(key)
        else:
            image = self._load(data, name)
            found = (model.encode_image(image), *image.size)
        return self._features.keep(key, found)[0], image_key

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
                renew_next(self.store, self.connections.of(project)[0], project, outcome.head, self._settings)
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


def _model_failed(places: Sequence[Place], error: Exception) -> None:
    """Every picture that asked what the model failed on has no answer."""
    if not isinstance(error, LasagnaError):
        logger.error("the model failed on %s", places[0].picture.image.address, exc_info=error)
    kind = "configuration" if reason_of(error) == "configuration" else "model"
    for place in places:
        place.picture.problem = (f"the model failed: {in_words(error)}", kind)

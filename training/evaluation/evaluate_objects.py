"""A model's objects on a data set that tells objects apart, with the connected parts of the same masks beside them.

What always holds: the ways are scored on the same answers of the model, so that they differ in nothing but how a class
is cut into objects; a class that the model cannot be asked for is in no figure.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from lasagna.assistant.objects import to_objects
from lasagna.contract.model import ClassListAnswerer
from lasagna.errors import LasagnaError
from lasagna.files import write_atomically
from lasagna.masks.objects import Objects
from lasagna.masks.segmentation import ClassAnswer, ClassQuery, Mask, Segmentation
from lasagna.masks.splitting import parts_of
from lasagna.pages import page_environment
from training.data.records import UNKNOWN, LabelMap
from training.data.sources.folder import Folder
from training.data.sources.instances import InstanceMaps, Instances
from training.data.spread import spread
from training.evaluation.objects import ObjectScores
from training.evaluation.samples import blank, sample_for_page
from training.evaluation.scoring import read_batches

PARTS, TOLD = "connected parts", "told apart"
"""The two ways: every connected part of a class an object, and as the model says."""


@dataclass
class ObjectEvaluation:
    """What was measured.

    Attributes:
        things: The classes whose objects were asked for.
        ways: Way -> its figures.
        images: Scored photos.
        failures: Image id -> why it could not be scored.
        unknown: Things that the model was never taught, and was not asked for; they are in no figure.
    """

    things: tuple[str, ...]
    ways: dict[str, ObjectScores] = field(default_factory=lambda: {PARTS: ObjectScores(), TOLD: ObjectScores()})
    images: int = 0
    failures: dict[str, str] = field(default_factory=dict)
    unknown: set[str] = field(default_factory=set)

    def as_dict(self) -> dict[str, Any]:
        """JSON-ready."""
        return {
            "images": self.images,
            "things": list(self.things),
            "ways": {way: scores.as_dict() for way, scores in self.ways.items()},
            "failures": self.failures,
            "unknown": sorted(self.unknown),
        }


def evaluate_objects(
    model: ClassListAnswerer,
    source: Folder,
    *,
    limit: int | None = None,
    batch_size: int = 4,
    on_image: Callable[[], None] = lambda: None,
    on_photo: Callable[[str, Any, Instances, dict[str, Segmentation]], None] | None = None,
    **options: Any,
) -> ObjectEvaluation:
    """Scores a model's objects on the photos of a split whose objects are annotated.

    Args:
        model: Asked for all classes of a photo at once, each pixel of at most one of them.
        source: The split.
        limit: At most so many photos, evenly spread over those that have objects annotated.
        batch_size: Photos of a batch.
        on_image: Called after every photo, scored or failed.
        on_photo: Called with each scored photo's id, the photo, its objects, and the answers by way.
        options: Of `segment_batch`.

    Raises:
        DataError: The set does not tell objects apart.
    """
    maps = InstanceMaps(source.root)
    result = ObjectEvaluation(tuple(name for name in source.classes if name in maps.things))
    places = [i for i in range(len(source)) if maps.has(source[i].image_id)]
    records = (source[places[i]] for i in spread(len(places), limit))
    for batch in read_batches(records, batch_size, result.failures.__setitem__, on_image):
        queries = [[ClassQuery(n, objects=n in maps.things) for n in record.classes] for record, _, _ in batch]
        answers = model.segment_batch([image for _, image, _ in batch], queries, exclusive=True, **options)
        for (record, image, truth), answer in zip(batch, answers, strict=True):
            try:
                instances = maps.read(record.image_id, answer.size)
            except LasagnaError as error:
                result.failures[record.image_id] = str(error)
                on_image()
                continue
            by_way = {PARTS: with_parts(answer, maps.things), TOLD: answer}
            for way, scores in result.ways.items():
                scores.add(_things(by_way[way], record.classes, truth, instances, maps.things))
            result.unknown |= {one.name for one in answer.unknown if one.name in maps.things}
            result.images += 1
            if on_photo is not None:
                on_photo(record.image_id, image, instances, by_way)
            on_image()
    return result


def with_parts(answer: Segmentation, things: frozenset[str]) -> Segmentation:
    """The answer with each connected part of a thing as an object."""

    def parts(one: ClassAnswer) -> ClassAnswer:
        if one.mask is None or one.name not in things:
            return one
        objects = to_objects(parts_of(one.mask), one.probability)
        return ClassAnswer(one.name, one.probability, one.mask, one.stability, objects=objects)

    return Segmentation(answer.size, tuple(map(parts, answer.classes)))


def _things(
    answer: Segmentation, names: tuple[str, ...], truth: LabelMap, instances: Instances, things: frozenset[str]
) -> dict[str, tuple[Any, Mask, Objects | None]]:
    """Of each thing that was asked: its objects, what is void for it, and the pieces of the answer."""
    unknown = (truth == UNKNOWN).any(0)
    found = {}
    for place, one in enumerate(answer.classes):
        if one.name in things and not one.is_unknown:
            own = instances.of_class(names[place])
            void = (unknown | (truth == place).any(0)) & (own == 0)
            found[one.name] = (own, void, one.objects)
    return found


# --- Pictures ---------------------------------------------------------------------------------------------------------


class ObjectPictures:
    """A page of photos with their objects: annotation, connected parts, and as the model says. Nobody picks a photo:
    shown are those with the most annotated objects.

    Args:
        shown: Photos on the page.
        photos: Whether photos and annotation are on it; else only the objects that were answered, on white.
    """

    def __init__(self, shown: int, photos: bool = True) -> None:
        self._shown, self._photos = shown, photos
        self._kept: list[tuple[int, str, dict[str, Any]]] = []

    def __call__(self, image_id: str, image: Any, instances: Instances, answers: dict[str, Segmentation]) -> None:
        """Takes a photo where it is among those with the most objects so far."""
        count = int((np.bincount(instances.numbers.reshape(-1))[1:] > 0).sum())
        if len(self._kept) == self._shown and count <= self._kept[-1][0]:
            return
        columns = []
        if self._photos:
            annotated = Objects.of_numbers(instances.numbers, [1.0] * len(instances.classes))
            columns.append(("annotation", _all_objects(answers[TOLD].size, [annotated])))
        for way, answer in answers.items():
            told = [one.objects for one in answer.classes if one.objects is not None]
            columns.append((f"{way}, {sum(map(len, told))} objects", _all_objects(answer.size, told)))
        note = f"{count} objects: {', '.join(dict.fromkeys(instances.classes))}"
        shown = image if self._photos else blank(image)
        sample = {**sample_for_page(image_id, shown, columns, note), "bare": True}  # colours only tell objects apart
        self._kept.append((count, image_id, sample))
        self._kept = sorted(self._kept, key=lambda one: (-one[0], one[1]))[: self._shown]

    def write(self, path: Path, title: str) -> None:
        """Writes the page: one file that needs no other."""
        facts = "The photos with the most annotated objects; every object has a colour of its own."
        page = page_environment("training").get_template("pictures.html")
        groups = [("Most objects first", [sample for *_, sample in self._kept])]
        write_atomically(path, page.render(title=title, facts=facts, groups=groups))


def _all_objects(size: tuple[int, int], told: list[Objects]) -> Segmentation:
    """Each object as a class of its own, so that it has a colour of its own."""
    each = (one for objects in told for one in objects)
    return Segmentation(size, tuple(ClassAnswer(f"{i}", one.score, one.mask) for i, one in enumerate(each, start=1)))

"""Answers for many image files: read ahead on a thread, asked in batches, kept in the result store at once.

Files with the same content are computed once, and what the store knows is not computed again. A file that cannot be
read or answered fails alone, with a reason.
"""

import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from PIL import Image

from lasagna.errors import CheckpointError, ConfigError, LasagnaError, QueryError
from lasagna.folder import ImageFile
from lasagna.formats.record import segmentation_to_record
from lasagna.gallery import image_to_thumbnail, thumbnail_name
from lasagna.image import load_image, read_image_bytes
from lasagna.results import ResultStore, content_hash, write_atomically
from lasagna.segmentation import ClassQuery
from lasagna.settings import Settings

if TYPE_CHECKING:
    from lasagna.assistant import Lasagna

BATCH_PIXELS = 32_000_000
"""Larger batches are cut: answers come at the image's size, one mask per present class."""


@dataclass
class _Prepared:
    """An image file on its way: read, and decoded unless its result is known or it failed."""

    file: ImageFile
    content: str | None = None
    image: Image.Image | None = None
    seconds: float = 0.0
    failure: str | None = None


@dataclass
class Outcome:
    """What became of each file: the hash of its content (its result is in the store), or why it failed."""

    contents: dict[ImageFile, str] = field(default_factory=dict)
    failures: dict[str, str] = field(default_factory=dict)
    computed: int = 0
    reused: int = 0


class Annotator:
    """Answers the class list for image files, through the result store.

    Args:
        load_model: Called once, and only if there is something to compute.
        queries: The class list.
        store: Where results are kept.
        out: The output folder, for thumbnails.
        settings: Limits of images, and the batch size.
        threshold, exclusive: As for `Lasagna.segment_batch`.
    """

    def __init__(
        self,
        load_model: "Callable[[], Lasagna]",
        queries: Sequence[ClassQuery],
        store: ResultStore,
        out: Path,
        settings: Settings,
        threshold: float | None = None,
        exclusive: bool = False,
    ) -> None:
        self._load_model = load_model
        self._model: Lasagna | None = None
        self._queries = list(queries)
        self._store = store
        self._out = out
        self._settings = settings
        self._threshold = threshold
        self._exclusive = exclusive

    def run(self, files: Sequence[ImageFile], outcome: Outcome, on_done: Callable[[Outcome], None]) -> None:
        """Annotates every file. Fills in `outcome` as it goes, so that an interrupted run can say how far it came."""
        batch: list[_Prepared] = []
        for prepared in self._prepare(files):
            if prepared.failure is not None:
                outcome.failures[prepared.file.name] = prepared.failure
                on_done(outcome)
            elif prepared.image is None:
                self._keep(prepared, outcome)
                outcome.reused += 1
                on_done(outcome)
            else:
                if batch and _pixels([*batch, prepared]) > BATCH_PIXELS:
                    self._compute(batch, outcome, on_done)
                    batch = []
                batch.append(prepared)
                if len(batch) >= self._settings["batch_size"]:
                    self._compute(batch, outcome, on_done)
                    batch = []
        self._compute(batch, outcome, on_done)

    def _prepare(self, files: Sequence[ImageFile]) -> Iterator[_Prepared]:
        """The files in order, read by a thread that is at most one batch ahead."""
        ahead = self._settings["batch_size"] + 1
        waiting: deque[Future[_Prepared]] = deque()
        pool = ThreadPoolExecutor(1, thread_name_prefix="images")
        try:
            for file in files:
                waiting.append(pool.submit(self._read, file))
                if len(waiting) > ahead:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        finally:
            pool.shutdown(wait=False, cancel_futures=True)

    def _read(self, file: ImageFile) -> _Prepared:
        started = time.perf_counter()
        prepared = _Prepared(file)
        try:
            data = read_image_bytes(file.path, max_bytes=self._settings["max_image_bytes"], name=file.name)
            prepared.content = content_hash(data)
            thumbnail = self._out / thumbnail_name(prepared.content)
            known = self._store.get(prepared.content) is not None
            if not known or not thumbnail.exists():
                image = load_image(
                    data,
                    max_bytes=self._settings["max_image_bytes"],
                    max_pixels=self._settings["max_image_pixels"],
                    name=file.name,
                )
                write_atomically(thumbnail, image_to_thumbnail(image))
                prepared.image = None if known else image
        except LasagnaError as error:
            prepared.failure = str(error)
        prepared.seconds = time.perf_counter() - started
        return prepared

    def _compute(self, batch: list[_Prepared], outcome: Outcome, on_done: Callable[[Outcome], None]) -> None:
        unknown = {p.content: p for p in batch if p.content is not None and self._store.get(p.content) is None}
        todo = list(unknown.values())
        reasons = self._answer(todo) if todo else {}
        for prepared in batch:
            reason = reasons.get(prepared.content or "")
            if reason is not None:
                outcome.failures[prepared.file.name] = reason
            else:
                self._keep(prepared, outcome)
                outcome.computed += any(prepared is p for p in todo)
                outcome.reused += all(prepared is not p for p in todo)
            on_done(outcome)

    def _answer(self, todo: list[_Prepared]) -> dict[str, str]:
        """Computes and stores the results of a batch. Returns the reason for each content that failed: where a batch
        fails, its images are tried one by one, so that one of them cannot take the others down."""
        if self._model is None:
            self._model = self._load_model()
        started = time.perf_counter()
        try:
            answers = self._model.segment_batch(
                [p.image for p in todo if p.image is not None],
                [self._queries for _ in todo],
                threshold=self._threshold,
                exclusive=self._exclusive,
            )
        except (QueryError, ConfigError, CheckpointError):
            raise  # what was asked cannot be answered for any image
        except Exception as error:
            if len(todo) == 1:
                said = str(error) if isinstance(error, LasagnaError) else f"{type(error).__name__}: {error}"
                return {todo[0].content or "": f"{todo[0].file.name}: the model failed on it: {said}"}
            reasons: dict[str, str] = {}
            for prepared in todo:
                reasons |= self._answer([prepared])
            return reasons
        each = (time.perf_counter() - started) / len(todo)
        for prepared, answer in zip(todo, answers, strict=True):
            record = segmentation_to_record(answer)
            self._store.put(prepared.content or "", {**record, "seconds": prepared.seconds + each})
        return {}

    @staticmethod
    def _keep(prepared: _Prepared, outcome: Outcome) -> None:
        outcome.contents[prepared.file] = prepared.content or ""


def _pixels(batch: list[_Prepared]) -> int:
    return sum(p.image.width * p.image.height for p in batch if p.image is not None)

"""Answers for many image files: loader threads, batches, the model, encoder threads.

    files ── read, decode ──▶ batches ── model ──▶ answers ── result store, formats ──▶ in order, one at a time
             `workers` threads            the caller's            `workers` threads

What always holds: what comes out is in the order of the files, and the same for any number of workers; between two
stages wait a few batches at most, so memory does not grow with the number of files; a batch is the files that stand
together in the list, whether or not some are known already, so a run that was killed and run again gives the same;
files with the same content are computed once, and what the store knows is not computed again; a file that cannot be
read or answered fails alone, with a reason.

The parts (`Reader`, `answer_batch`, `PieceEncoder`) are what each worker of `lasagna.annotate.ray_engine` does, too.
"""

import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

from PIL import Image

from lasagna.annotate.folder import ImageFile
from lasagna.annotate.gallery import image_to_thumbnail, thumbnail_name
from lasagna.annotate.results import Results, content_hash
from lasagna.assistant.each import segment_each
from lasagna.environment import usable_cores
from lasagna.errors import CheckpointError, ConfigError, LasagnaError, QueryError, in_words
from lasagna.files import write_atomically
from lasagna.formats.record import record_to_segmentation, segmentation_to_record
from lasagna.masks.image import load_image
from lasagna.masks.segmentation import ClassQuery, Segmentation

if TYPE_CHECKING:
    from lasagna.contract.model import ClassListModel

BATCH_PIXELS = 32_000_000
"""Larger batches are cut: answers come at the image's size, one mask per present class."""

_BATCHES_AHEAD = 2
_PIXELS_AHEAD = 2 * BATCH_PIXELS
"""Decoded and not yet asked: beyond either no further file is begun."""

Pieces = dict[str, Any]
"""What an image adds to each file of the output, JSON-ready, by format."""

Encode = Callable[[ImageFile, str, Segmentation, float], Pieces]
"""Image, the hash of its content, answers, seconds -> pieces. Called on several threads at once."""


def default_workers() -> int:
    """Threads that read, and as many that write: as many as there are cores, but at least 2 and at most 8."""
    return max(2, min(8, usable_cores()))


@dataclass(slots=True)
class Prepared:
    """An image file that was read: decoded unless its result is known or it failed."""

    file: ImageFile
    content: str = ""
    image: Image.Image | None = None
    record: dict[str, Any] | None = None
    seconds: float = 0.0
    failure: str | None = None

    @property
    def pixels(self) -> int:
        return self.image.width * self.image.height if self.image is not None else 0


@dataclass(frozen=True, slots=True)
class Annotated:
    """What became of a file: the pieces of the output, or why it failed. `computed`: the model was asked."""

    file: ImageFile
    content: str = ""
    failure: str | None = None
    computed: bool = False
    pieces: Pieces = field(default_factory=dict)


@dataclass(frozen=True)
class Reader:
    """Reads image files, each within the limits; makes thumbnails. Can be pickled.

    Attributes:
        results: What is known already.
        max_bytes, max_pixels, max_memory: As of `load_image`.
        thumbnails: The folder that they go to; None: none are made.
    """

    results: Results
    max_bytes: int
    max_pixels: int
    max_memory: int | None = None
    thumbnails: Path | None = None

    def __call__(self, file: ImageFile) -> Prepared:
        started = time.perf_counter()
        prepared = Prepared(file)
        try:
            data = file.source.read(self.max_bytes, file.name)
            prepared.content = content_hash(data)
            prepared.record = self.results.get(prepared.content)
            thumbnail = self.thumbnails and self.thumbnails / thumbnail_name(prepared.content)
            wants_thumbnail = thumbnail is not None and not thumbnail.exists()
            if prepared.record is None or wants_thumbnail:
                limits = {
                    "max_bytes": self.max_bytes,
                    "max_pixels": self.max_pixels,
                    "max_memory": self.max_memory,
                }
                image = load_image(data, name=file.name, **limits)
                if thumbnail is not None and wants_thumbnail:
                    write_atomically(thumbnail, image_to_thumbnail(image))
                prepared.image = image if prepared.record is None else None
        except ConfigError:
            raise
        except LasagnaError as error:
            prepared.failure = str(error)
        prepared.seconds = time.perf_counter() - started
        return prepared


def answer_batch(
    model: "ClassListModel",
    batch: Sequence[Prepared],
    queries: Sequence[ClassQuery],
    params: Mapping[str, Any],
) -> list[tuple[Segmentation | None, str | None]]:
    """The answers of images, or the reason why there is none.

    Args:
        params: Of `ClassListModel.segment_batch`.

    Raises:
        QueryError, ConfigError, CheckpointError: What was asked cannot be answered for any image.
    """
    images = [prepared.image for prepared in batch if prepared.image is not None]
    outcomes = segment_each(
        model.segment_batch,
        images,
        [list(queries) for _ in images],
        fatal=(QueryError, ConfigError, CheckpointError),
        **params,
    )
    return [
        (None, f"{prepared.file.name}: the model failed on it: {in_words(outcome)}")
        if isinstance(outcome, Exception)
        else (outcome, None)
        for prepared, outcome in zip(batch, outcomes, strict=True)
    ]


@dataclass(frozen=True)
class PieceEncoder:
    """The stage after the model. Can be pickled.

    Attributes:
        results: Where answers are kept.
        encode: Makes the pieces of the output.
    """

    results: Results
    encode: Encode

    def keep(self, prepared: Prepared, answer: Segmentation, seconds: float) -> None:
        """Puts an answer into the result store; it is the file's record from then on.

        Args:
            seconds: That the model took for it.
        """
        prepared.record = {**segmentation_to_record(answer), "seconds": prepared.seconds + seconds}
        self.results.put(prepared.content, prepared.record)

    def __call__(self, prepared: Prepared, answer: Segmentation | None = None, *, computed: bool = False) -> Annotated:
        """The file with its pieces, from its record.

        Args:
            answer: What the record says, where that is at hand.
            computed: Whether this run asked the model.
        """
        if prepared.record is None:
            raise ValueError(f"{prepared.file.name} has no record")
        segmentation = answer or record_to_segmentation(prepared.record)
        seconds = float(prepared.record["seconds"])
        pieces = self.encode(prepared.file, prepared.content, segmentation, seconds)
        return Annotated(prepared.file, prepared.content, computed=computed, pieces=pieces)


class Annotator:
    """Annotates image files on this machine.

    Args:
        load_model: Called once, and only if there is something to compute.
        queries: The class list.
        reader, encoder: The stages before and after the model.
        batch_size: Images per batch.
        workers: Loader threads, and encoder threads.
        params: Of `ClassListModel.segment_batch`.

    Attributes:
        busy: Seconds that the model worked.
        started: When it first did (`time.perf_counter`), None before.
    """

    def __init__(
        self,
        load_model: "Callable[[], ClassListModel]",
        queries: Sequence[ClassQuery],
        reader: Reader,
        encoder: PieceEncoder,
        *,
        batch_size: int,
        workers: int,
        params: Mapping[str, Any] | None = None,
    ) -> None:
        self._load_model = load_model
        self._model: ClassListModel | None = None
        self._queries = list(queries)
        self._reader, self._encoder = reader, encoder
        self._batch_size, self._workers = batch_size, workers
        self._params = params or {}
        self.busy = 0.0
        self.started: float | None = None

    def run(self, files: Sequence[ImageFile]) -> Iterator[Annotated]:
        """What became of each file, in order.

        Raises:
            QueryError, ConfigError, CheckpointError: The class list cannot be asked at all.
        """
        loaders = ThreadPoolExecutor(self._workers, thread_name_prefix="read")
        encoders = ThreadPoolExecutor(self._workers, thread_name_prefix="encode")
        waiting: deque[Future[Annotated]] = deque()
        most = 2 * self._batch_size + self._workers
        computing: dict[str, Future[Annotated]] = {}
        try:
            for batch in self._batches(files, loaders):
                for content, future in self._answer(batch, computing, encoders):
                    waiting.append(future)
                    if content:
                        computing[content] = future
                while waiting and (len(waiting) > most or waiting[0].done()):
                    done = waiting.popleft().result()
                    computing.pop(done.content, None)
                    yield done
            while waiting:
                yield waiting.popleft().result()
        finally:
            loaders.shutdown(cancel_futures=True)
            encoders.shutdown(cancel_futures=True)

    def _batches(self, files: Sequence[ImageFile], loaders: ThreadPoolExecutor) -> Iterator[list[Prepared]]:
        """The files in order, `batch_size` at a time, read ahead."""
        coming = iter(files)
        reading: deque[Future[Prepared]] = deque()
        most = _BATCHES_AHEAD * self._batch_size + self._workers

        def read_ahead() -> None:
            pixels = sum(future.result().pixels for future in reading if future.done())
            for file in islice(coming, most - len(reading) if pixels < _PIXELS_AHEAD or not reading else 0):
                reading.append(loaders.submit(self._reader, file))

        batch: list[Prepared] = []
        read_ahead()
        while reading:
            batch.append(reading.popleft().result())
            read_ahead()
            if len(batch) == self._batch_size or not reading:
                yield batch
                batch = []

    def _answer(
        self, batch: list[Prepared], computing: dict[str, Future[Annotated]], encoders: ThreadPoolExecutor
    ) -> Iterator[tuple[str, Future[Annotated]]]:
        """Each file of the batch on its way to the encoders; with its content where the model was asked."""
        first: dict[str, Prepared] = {}
        for prepared in batch:
            if prepared.image is None or prepared.content in computing:
                continue
            prepared.record = self._reader.results.get(prepared.content)  # it may have come after the file was read
            if prepared.record is not None:
                prepared.image = None
            else:
                first.setdefault(prepared.content, prepared)
        answers: dict[str, tuple[Segmentation | None, str | None, float]] = {}
        for part in cut_batch(list(first.values())):
            if self._model is None:
                self._model = self._load_model()
            started = time.perf_counter()
            self.started = self.started or started
            found = answer_batch(self._model, part, self._queries, self._params)
            seconds = time.perf_counter() - started
            self.busy += seconds
            for prepared, (answer, failure) in zip(part, found, strict=True):
                answers[prepared.content] = answer, failure, seconds / len(part)
        submitted: dict[str, Future[Annotated]] = {}
        for prepared in batch:
            content = prepared.content
            if prepared.failure is not None:
                yield "", encoders.submit(Annotated, prepared.file, failure=prepared.failure)
            elif prepared.image is None:
                yield "", encoders.submit(self._encoder, prepared)
            elif first.get(content) is prepared:
                prepared.image = None  # the decoded image is needed no more
                answer, failure, each = answers[content]
                if answer is None:
                    future = encoders.submit(Annotated, prepared.file, content, failure=failure)
                else:
                    future = encoders.submit(self._keep, prepared, answer, each)
                submitted[content] = future
                yield content, future
            else:
                prepared.image = None
                yield "", encoders.submit(self._as_before, prepared, computing.get(content) or submitted[content])

    def _as_before(self, prepared: Prepared, before: Future[Annotated]) -> Annotated:
        """A file with the content of an earlier one, which was submitted to the encoders before it."""
        done = before.result()
        if done.failure is not None:
            return Annotated(prepared.file, prepared.content, failure=done.failure)
        prepared.record = self._reader.results.get(prepared.content)
        return self._encoder(prepared)

    def _keep(self, prepared: Prepared, answer: Segmentation, seconds: float) -> Annotated:
        self._encoder.keep(prepared, answer, seconds)
        return self._encoder(prepared, answer, computed=True)


def cut_batch(batch: Sequence[Prepared]) -> Iterator[list[Prepared]]:
    """The batch, cut where it has more than `BATCH_PIXELS`."""
    part: list[Prepared] = []
    for prepared in batch:
        if part and sum(p.pixels for p in [*part, prepared]) > BATCH_PIXELS:
            yield part
            part = []
        part.append(prepared)
    if part:
        yield part

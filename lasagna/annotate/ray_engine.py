"""`lasagna annotate --engine ray`: the stages of `lasagna.annotate.pipeline` on the machines of a Ray cluster, by Ray
Data.

    batches of files ── read (tasks) ──▶ model (one actor per GPU) ──▶ encode, write shards (tasks)
                                                                               │
    OUT ◀── append in order (this process) ◀── where each batch lies ──────────┘

What always holds: a batch is the files that the local engine puts into one, so the answers are the same (up to rounding
where the number of threads differs); a shard is complete or not there, and the shards that a run which was stopped has
left are used by the next one; through this process go places of batches, no images and no masks; the output folder, the
checkpoint and the images are at the same path on every machine (a shared file system; images may be at an address
instead).

A shard is two files in `OUT/.results/<options>/shards/<output>/`: `<name>.jsonl`, a line per image with its pieces of
the output, and `<name>.index.json`, written last, which says of each batch where its lines begin.
"""

import hashlib
import json
import logging
import os
import time
import uuid
from collections.abc import Generator, Iterator, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from rich.console import Console

from lasagna.annotate.archives import ArchiveMember, open_archive
from lasagna.annotate.folder import ImageFile, ImageSet
from lasagna.annotate.pipeline import Annotated, PieceEncoder, Prepared, Reader, answer_batch, cut_batch
from lasagna.annotate.request import AnnotateRequest
from lasagna.annotate.results import Results
from lasagna.annotate.sources import without_query
from lasagna.errors import ConfigError, LasagnaError
from lasagna.extras import load_extra
from lasagna.files import write_atomically

SHARD_BATCHES = 16
"""Batches in a shard, at most."""


@dataclass(frozen=True)
class ShardLines:
    """Where the lines of a batch are: shard, first byte, number of lines; and how many of them are failures."""

    shard: str
    offset: int
    lines: int
    failed: int


def annotate_with_ray(
    request: AnnotateRequest, images: ImageSet, workers: int | None, results: Results, console: Console
) -> Iterator[Annotated]:
    """What became of each file, in order, as `Annotator.run` says it.

    Args:
        workers: Models at once; None: one per GPU of the cluster, else one for two cores.

    Raises:
        ConfigError: Ray is not installed, or the cluster has too few processors for the number of workers.
        QueryError, CheckpointError: The class list cannot be asked at all.
    """
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    ray = load_extra("ray", "ray", "--engine ray")
    load_extra("ray.data", "ray", "--engine ray")

    archives = {file.source.archive for file in images.files if isinstance(file.source, ArchiveMember)}
    slow = next((archive for archive in sorted(archives) if open_archive(archive).in_order), None)
    if slow is not None:
        raise ConfigError(
            f"{without_query(slow)} is compressed as a whole, so every worker would have to read all of it; make it a "
            ".zip or a .tar, unpack it, or use --engine local"
        )
    size = request.settings.batch_size
    batches = [images.files[first : first + size] for first in range(0, len(images.files), size)]
    keys = [batch_key(batch) for batch in batches]
    shards = results.folder / "shards" / request.output_key(results)
    shards.mkdir(parents=True, exist_ok=True)
    places = {key: place for key, place in read_places(shards).items() if not place.failed}
    before = set(places)
    missing = [(key, batch) for key, batch in zip(keys, batches, strict=True) if key not in places]
    if len(missing) < len(batches):
        console.print(f"{len(batches) - len(missing)} of {len(batches)} batches are in shards of an earlier run")
    ours = not ray.is_initialized()
    if ours:
        # What the workers print is in Ray's own logs; their errors come back as exceptions.
        ray.init(log_to_driver=False, logging_level=logging.ERROR)
    coming = _compute(request, workers, results, shards, missing, console)
    try:
        for key, batch in zip(keys, batches, strict=True):
            while key not in places:
                places |= next(coming)
            for done in _read_batch(shards, places[key], batch):
                yield replace(done, computed=False) if key in before else done
        for _ in coming:  # nothing more comes; Ray Data ends what it began
            pass
    finally:
        coming.close()
        if ours:
            ray.shutdown()


def batch_key(batch: Sequence[ImageFile]) -> str:
    """Identifies files of a batch as they are now: names, places, and of what is on disk size and time of change."""
    text = json.dumps([[file.name, repr(file.source), *_state(file)] for file in batch])
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()[:32]


def read_places(shards: Path) -> dict[str, ShardLines]:
    """The batches of the shards in a folder, by `batch_key`. What is no index is passed over."""
    places: dict[str, ShardLines] = {}
    for index in sorted(shards.glob("*.index.json")):
        try:
            found = json.loads(index.read_bytes())
            places |= {key: ShardLines(**place) for key, place in found.items()}
        except (OSError, ValueError, TypeError, AttributeError):
            continue
    return places


def _state(file: ImageFile) -> tuple[int, int]:
    path = file.source.archive if isinstance(file.source, ArchiveMember) else file.path
    try:
        stat = os.stat(path) if path is not None else None
    except OSError:
        stat = None
    return (stat.st_size, stat.st_mtime_ns) if stat is not None else (0, 0)


def _compute(
    request: AnnotateRequest,
    most: int | None,
    results: Results,
    shards: Path,
    missing: Sequence[tuple[str, Sequence[ImageFile]]],
    console: Console,
) -> Generator[dict[str, ShardLines]]:
    """Runs the stages on the cluster. Yields the places of a shard's batches as it is written."""
    import ray.data

    if not missing:
        return
    logging.getLogger("ray.data").setLevel(logging.ERROR)
    workers, gpus = _workers(request, most)
    console.print(f"Ray: {workers} models, {'a GPU each' if gpus else 'on processors'}")
    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False
    context.execution_options.preserve_order = True  # what is appended next is done first
    rows = [{"batch": _Batch(key, list(files))} for key, files in missing]
    blocks = max(-(-len(rows) // SHARD_BATCHES), min(len(rows), 4 * workers))
    data: Any = ray.data.from_items(rows, override_num_blocks=blocks)
    data = data.map(_read, fn_args=(request.reader(results),), num_cpus=0.25)
    actors = ray.data.ActorPoolStrategy(size=workers)
    data = data.map(_Model, fn_constructor_args=(request, results), compute=actors, num_gpus=float(gpus), num_cpus=1)
    encoder = request.encoder(results)
    data = data.map_batches(
        _write, fn_args=(encoder, shards), num_cpus=0.25, batch_size=SHARD_BATCHES, batch_format="numpy"
    )
    try:
        for row in data.iter_rows():
            yield {key: ShardLines(**place) for key, place in json.loads(row["places"]).items()}
    except ray.exceptions.RayTaskError as error:
        if isinstance(error.cause, LasagnaError):
            raise error.cause from None
        raise


def _workers(request: AnnotateRequest, wanted: int | None) -> tuple[int, int]:
    """Number of models, and GPUs for each."""
    import ray

    found = ray.cluster_resources()
    cores, cards = int(found.get("CPU", 1)), int(found.get("GPU", 0))
    gpus = int(cards > 0 and request.settings.device in ("auto", "cuda"))
    workers = wanted or (cards if gpus else max(1, cores // 2))
    most = min(cards, cores - 1) if gpus else cores - 1
    if workers > max(1, most):
        raise ConfigError(
            f"--workers {workers} is more than the Ray cluster has room for: {cores} processors and {cards} GPUs take "
            f"{max(1, most)} (a processor is left for reading and writing); lower it or add machines"
        )
    return workers, gpus


@dataclass
class _Batch:
    """A batch on its way: files, then what was read of them, at last which of those the model was asked about."""

    key: str
    files: list[ImageFile]
    read: list[Prepared] = field(default_factory=list)
    computed: set[int] = field(default_factory=set)


def _read(row: dict[str, Any], reader: Reader) -> dict[str, Any]:
    batch: _Batch = row["batch"]
    return {"batch": replace(batch, read=[reader(file) for file in batch.files])}


class _Model:
    """The model; answers go into the result store at once, and on as records."""

    def __init__(self, request: AnnotateRequest, results: Results) -> None:
        self._asked, self._results = request.asked, results
        self._encoder = request.encoder(results)
        self._load = request.load_model
        self._model: Any = None

    def __call__(self, row: dict[str, Any]) -> dict[str, Any]:
        batch: _Batch = row["batch"]
        first: dict[str, Prepared] = {}
        for prepared in batch.read:
            if prepared.image is not None:
                prepared.record = self._results.get(prepared.content)  # from another batch, meanwhile
                if prepared.record is None:
                    first.setdefault(prepared.content, prepared)
        asked = self._asked
        for part in cut_batch(list(first.values())):
            if self._model is None:
                self._model = self._load()
            started = time.perf_counter()
            answers = answer_batch(self._model, part, asked.queries, asked.params)
            each = (time.perf_counter() - started) / len(part)
            for prepared, (answer, failure) in zip(part, answers, strict=True):
                prepared.failure = failure
                if answer is not None:
                    self._encoder.keep(prepared, answer, each)
        for i, prepared in enumerate(batch.read):
            same = first.get(prepared.content)
            if prepared is same and prepared.failure is None:
                batch.computed.add(i)
            elif prepared.image is not None and same is not None:
                prepared.failure, prepared.record = same.failure, same.record
        for prepared in batch.read:
            prepared.image = None
        return {"batch": batch}


def _write(rows: dict[str, Any], encoder: PieceEncoder, shards: Path) -> dict[str, Any]:
    """Encodes batches and writes them as a shard; what goes on is its index."""
    name = uuid.uuid4().hex
    places: dict[str, ShardLines] = {}
    text = bytearray()
    for batch in rows["batch"]:
        offset, failed = len(text), 0
        for i, prepared in enumerate(batch.read):
            line: dict[str, Any] = {"content": prepared.content, "failure": prepared.failure}
            if prepared.failure is None:
                line |= {"computed": i in batch.computed, "pieces": encoder(prepared).pieces}
            failed += prepared.failure is not None
            text += json.dumps(line, separators=(",", ":")).encode() + b"\n"
        places[batch.key] = ShardLines(name, offset, len(batch.read), failed)
    write_atomically(shards / f"{name}.jsonl", bytes(text))
    index = json.dumps({key: asdict(place) for key, place in places.items()})
    write_atomically(shards / f"{name}.index.json", index)
    return {"places": [index]}


def _read_batch(shards: Path, place: ShardLines, batch: Sequence[ImageFile]) -> Iterator[Annotated]:
    with (shards / f"{place.shard}.jsonl").open("rb") as lines:
        lines.seek(place.offset)
        for file in batch:
            yield Annotated(file, **json.loads(lines.readline()))

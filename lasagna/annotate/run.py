"""One run of `lasagna annotate`, from the images that were found to the files in the output folder.

Can be pickled, without its images: a worker elsewhere makes its stages of it.

What always holds: images come in order, from whichever engine, and are appended to the output one by one; nothing of an
image is kept in memory after that but its failure; the output folder belongs to one run at a time.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

import click
from rich.console import Console

from lasagna.annotate.export import Export, Job
from lasagna.annotate.folder import ImageSet
from lasagna.annotate.pipeline import Annotated, Annotator, PieceEncoder, Reader, default_workers
from lasagna.annotate.results import OutputFolder, Results, ResultStore
from lasagna.errors import ConfigError, LasagnaError
from lasagna.masks.segmentation import ClassQuery
from lasagna.progress import progress_bar
from lasagna.settings import Settings

if TYPE_CHECKING:
    from lasagna.assistant.lasagna import Lasagna


class TooManyFailuresError(LasagnaError):
    """More files failed than `--max-failures` allows."""

    exit_code = 1


@dataclass(frozen=True)
class Asked:
    """What the model is asked; arguments as for `Lasagna.segment_batch`."""

    queries: Sequence[ClassQuery]
    threshold: float | None = None
    exclusive: bool = False


@dataclass
class AnnotateRun:
    """One run, from images to files; call it once.

    Attributes:
        job, images, formats, asked, settings: What was asked for.
        workers: Threads that read, and as many that encode; with Ray, models.
        gallery: Whether pages to look at are made.
        max_failures: More failures than this stop the run; None: nothing does.
        engine: "local" or "ray".
        failures: Why each file failed that did.
        computed, reused: Images that the model was asked about, and others that are done.
        on_done: Called after each image; a benchmark looks at the clock then.
        busy, started: As of `Annotator`.
    """

    job: Job
    images: ImageSet
    formats: Sequence[str]
    asked: Asked
    settings: Settings
    workers: int | None = None
    gallery: bool = True
    max_failures: int | None = None
    engine: str = "local"
    failures: dict[str, str] = field(default_factory=dict)
    computed: int = 0
    reused: int = 0
    on_done: Callable[[], None] | None = None
    busy: float = 0.0
    started: float | None = None

    @property
    def options(self) -> dict[str, Any]:
        """What the answers depend on besides the image."""
        return {
            "model_version": self.job.model_version,
            "classes": [[query.name, query.text] for query in self.asked.queries],
            "threshold": self.asked.threshold,
            "exclusive": self.asked.exclusive,
            "dtype": self.settings.dtype,
            "quantise": self.settings.quantise,
        }

    def __call__(self) -> dict[str, Any]:
        """Annotates and writes. Returns the report.

        Raises:
            ConfigError: The output cannot be written, or another run writes there.
            TooManyFailuresError: See `max_failures`.
            SystemExit: 130, interrupted.
        """
        out = self.job.out
        try:
            out.mkdir(parents=True, exist_ok=True)
            store = ResultStore(out, self.options)
        except OSError as error:
            raise ConfigError(f"cannot write to {out}: {error.strerror}; choose another --out") from error
        folder = OutputFolder(out)
        self.failures.update(self.images.unreadable)
        with store:
            try:
                return self._write(folder, store)
            except KeyboardInterrupt:
                click.secho(
                    f"interrupted: {self._kept()}; run the same command again to go on from there",
                    fg="yellow",
                    err=True,
                )
                raise SystemExit(130) from None
            except OSError as error:  # what cannot be read is that image's failure; this is about writing
                raise ConfigError(
                    f"writing to {out} failed: {error.strerror or error}; {self._kept()}; make room or repair it, and "
                    "run the same command again"
                ) from error
            finally:
                folder.close()

    def reader(self, results: Results) -> Reader:
        """The first stage of the pipeline, which reads photos."""
        limits = self.settings.max_image_bytes, self.settings.max_image_pixels
        return Reader(results, *limits, thumbnails=self.job.out if self.gallery else None)

    def encoder(self, results: Results) -> PieceEncoder:
        """The last stage of the pipeline, which encodes answers."""
        return PieceEncoder(results, Export(self.job, self.formats, gallery=self.gallery).encode)

    def load_model(self) -> "Lasagna":
        """The model, as the settings say."""
        from lasagna.assistant.lasagna import Lasagna

        settings = self.settings
        return Lasagna.from_pretrained(
            settings.model, device=settings.device, dtype=settings.dtype, quantise=settings.quantise
        )

    def _write(self, folder: OutputFolder, store: ResultStore) -> dict[str, Any]:
        console = Console(stderr=True)
        export = Export(self.job, self.formats, gallery=self.gallery)
        export.begin(folder, self.images)  # a format that cannot be written says so now, not after hours
        changed = store.changed_options()
        if changed:
            console.print(f"Since the last run into {self.job.out}: other {', '.join(sorted(changed))}.")
        with progress_bar(console, "Annotating", len(self.images.files)) as advance:
            for done in self._annotated(store.results, console):
                if done.failure is not None:
                    self.failures[done.file.name] = done.failure
                else:
                    export.append(done.file, done.pieces)
                    self.computed += done.computed
                    self.reused += not done.computed
                advance(f"{len(self.failures)} failed" if self.failures else "")
                if self.on_done is not None:
                    self.on_done()
                if self.max_failures is not None and len(self.failures) > self.max_failures:
                    raise TooManyFailuresError(self._stopped())
        report = export.finish(self.failures, {**self.options, **asdict(self.job.hygiene)})
        if self.engine == "ray":
            from lasagna.annotate.ray_engine import remove_shards

            remove_shards(store.results)
        return report

    def _annotated(self, results: Results, console: Console) -> Iterator[Annotated]:
        if self.engine == "ray":
            from lasagna.annotate.ray_engine import annotate_with_ray

            yield from annotate_with_ray(self, results, console)
            return

        def load_model() -> "Lasagna":
            console.print(f"Loading {self.settings.model}")
            return self.load_model()

        annotator = Annotator(
            load_model,
            self.asked.queries,
            self.reader(results),
            self.encoder(results),
            batch_size=self.settings.batch_size,
            workers=self.workers or default_workers(),
            threshold=self.asked.threshold,
            exclusive=self.asked.exclusive,
        )
        for done in annotator.run(self.images.files):
            self.busy, self.started = annotator.busy, annotator.started
            yield done

    def _kept(self) -> str:
        done = self.computed + self.reused
        return f"{done} of {len(self.images.files)} images are done and kept in {self.job.out / '.results'}"

    def _stopped(self) -> str:
        reasons = "".join(f"\n  {reason}" for reason in self.failures.values())
        return (
            f"stopped: {len(self.failures)} files failed, more than --max-failures {self.max_failures} allows. "
            f"{self._kept()}; repair or remove these files, or raise --max-failures, and run the same command "
            f"again:{reasons}"
        )

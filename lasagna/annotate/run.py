"""One run of `lasagna annotate`, from the images that were found to the files in the output folder.

What always holds: images come in order, from whichever engine, and are appended to the output one by one; nothing of an
image is kept in memory after that but its failure; the output folder belongs to one run at a time.
"""

from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

from rich.console import Console

from lasagna.annotate.folder import ImageSet
from lasagna.annotate.pipeline import Annotated, Annotator, default_workers
from lasagna.annotate.ray_engine import annotate_with_ray, remove_shards
from lasagna.annotate.request import AnnotateRequest, Execution
from lasagna.annotate.results import OutputFolder, Results, ResultStore
from lasagna.errors import ConfigError, LasagnaError
from lasagna.progress import progress_bar

if TYPE_CHECKING:
    from lasagna.assistant.lasagna import Lasagna


class TooManyFailuresError(LasagnaError):
    """More files failed than `--max-failures` allows."""

    exit_code = 1


@dataclass
class Progress:
    """How far a run is.

    Attributes:
        failures: Why each file failed that did.
        computed, reused: Images that the model was asked about, and others that are done.
        busy, started: As of `Annotator`.
    """

    failures: dict[str, str] = field(default_factory=dict)
    computed: int = 0
    reused: int = 0
    busy: float = 0.0
    started: float | None = None


class AnnotateRun:
    """One run, from images to files; call it once.

    Args:
        request: What is asked for.
        images: Those that were found.
        execution: How it is carried out.
        on_done: Called after each image; a benchmark looks at the clock then.
    """

    def __init__(
        self,
        request: AnnotateRequest,
        images: ImageSet,
        execution: Execution | None = None,
        on_done: Callable[[], None] = lambda: None,
    ) -> None:
        self.request, self.images = request, images
        self.execution = execution or Execution()
        self.progress = Progress()
        self._on_done = on_done

    def __call__(self) -> dict[str, Any]:
        """Annotates and writes. Returns the report.

        Raises:
            ConfigError: The output cannot be written, or another run writes there.
            TooManyFailuresError: See `Execution.max_failures`.
        """
        out = self.request.job.out
        try:
            out.mkdir(parents=True, exist_ok=True)
            store = ResultStore(out, self.request.options)
        except OSError as error:
            raise ConfigError(f"cannot write to {out}: {error.strerror}; choose another --out") from error
        folder = OutputFolder(out)
        self.progress.failures.update(self.images.unreadable)
        with store:
            try:
                return self._write(folder, store)
            except OSError as error:  # what cannot be read is that image's failure; this is about writing
                raise ConfigError(
                    f"writing to {out} failed: {error.strerror or error}; {self.kept()}; make room or repair it, and "
                    "run the same command again"
                ) from error
            finally:
                folder.close()

    def kept(self) -> str:
        """How much is done and where it is kept, in words, for a run that was stopped."""
        done = self.progress.computed + self.progress.reused
        return f"{done} of {len(self.images.files)} images are done and kept in {self.request.job.out / '.results'}"

    def _write(self, folder: OutputFolder, store: ResultStore) -> dict[str, Any]:
        console = Console(stderr=True)
        request, progress = self.request, self.progress
        export = request.export()
        export.begin(folder, self.images)  # a format that cannot be written says so now, not after hours
        changed = store.changed_options()
        if changed:
            console.print(f"Since the last run into {request.job.out}: other {', '.join(sorted(changed))}.")
        with progress_bar(console, "Annotating", len(self.images.files)) as advance:
            for done in self._annotated(store.results, console):
                if done.failure is not None:
                    progress.failures[done.file.name] = done.failure
                else:
                    export.append(done.file, done.pieces)
                    progress.computed += done.computed
                    progress.reused += not done.computed
                advance(f"{len(progress.failures)} failed" if progress.failures else "")
                self._on_done()
                if self.execution.max_failures is not None and len(progress.failures) > self.execution.max_failures:
                    raise TooManyFailuresError(self._stopped())
        report = export.finish(progress.failures, {**request.options, **asdict(request.job.hygiene)})
        if self.execution.engine == "ray":
            remove_shards(store.results)
        return report

    def _annotated(self, results: Results, console: Console) -> Iterator[Annotated]:
        request = self.request
        if self.execution.engine == "ray":
            yield from annotate_with_ray(request, self.images, self.execution.workers, results, console)
            return

        def load_model() -> "Lasagna":
            console.print(f"Loading {request.settings.model}")
            return request.load_model()

        annotator = Annotator(
            load_model,
            request.asked.queries,
            request.reader(results),
            request.encoder(results),
            batch_size=request.settings.batch_size,
            workers=self.execution.workers or default_workers(),
            threshold=request.asked.threshold,
            exclusive=request.asked.exclusive,
        )
        for done in annotator.run(self.images.files):
            self.progress.busy, self.progress.started = annotator.busy, annotator.started
            yield done

    def _stopped(self) -> str:
        failures = self.progress.failures
        reasons = "".join(f"\n  {reason}" for reason in failures.values())
        return (
            f"stopped: {len(failures)} files failed, more than --max-failures {self.execution.max_failures} allows. "
            f"{self.kept()}; repair or remove these files, or raise --max-failures, and run the same command "
            f"again:{reasons}"
        )

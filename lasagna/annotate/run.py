"""One run of `lasagna annotate`, from the images that were found to the files in the output folder.

What always holds: images come in order, from whichever engine, and are appended to the output one by one; nothing of an
image is kept in memory after that but its failure; the output folder belongs to one run at a time.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from rich.console import Console

from lasagna.annotate.folder import ImageSet, printable
from lasagna.annotate.output import OutputFolder, Written
from lasagna.annotate.pipeline import Annotated, Annotator, Prepared, default_workers
from lasagna.annotate.ray_engine import annotate_with_ray
from lasagna.annotate.request import AnnotateRequest, Execution
from lasagna.annotate.results import Results, ResultStore
from lasagna.errors import ConfigError, LasagnaError
from lasagna.progress import progress_bar

if TYPE_CHECKING:
    from lasagna.contract.model import ClassListModel


class TooManyFailuresError(LasagnaError):
    """More files failed than `--max-failures` allows."""

    exit_code = 1


@dataclass
class Progress:
    """How far a run is.

    Attributes:
        failures: Why each file failed that did.
        computed, reused: Images that the model was asked about, and others that are done.
        former: Images that failed, and keep the answer of an earlier run.
        busy, started: As of `Annotator`.
    """

    failures: dict[str, str] = field(default_factory=dict)
    computed: int = 0
    reused: int = 0
    former: int = 0
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
            ChangedFilesError: Files that somebody changed stand in the way.
            TooManyFailuresError: See `Execution.max_failures`.
        """
        out = self.request.job.out
        try:
            out.mkdir(parents=True, exist_ok=True)
            store = ResultStore(out, self.request.options)
        except OSError as error:
            raise ConfigError(f"cannot write to {out}: {error.strerror}; choose another --out") from error
        folder = OutputFolder(out, overwrite=self.execution.overwrite)
        self.progress.failures.update(self.images.unreadable)
        with store:
            try:
                return self._write(folder, store)
            except OSError as error:  # what cannot be read is that image's failure; this is about writing
                where = f" ({error.filename2 or error.filename})" if error.filename else ""
                raise ConfigError(
                    f"writing to {out} failed: {error.strerror or error}{where}; {self.kept()}; make room or repair "
                    "it, and run the same command again"
                ) from error
            finally:
                folder.close()

    def kept(self) -> str:
        """How much is done and where it is kept, in words, for a run that was stopped."""
        done = self.progress.computed + self.progress.reused
        return f"{done} of {len(self.images.files)} images are done and kept in {self.request.job.out / '.results'}"

    def _write(self, folder: OutputFolder, store: ResultStore) -> dict[str, Any]:
        console = Console(stderr=True, markup=False)
        request, progress = self.request, self.progress
        export = request.export()
        folder.clear(keep=request.output_key(store.results) if self.execution.engine == "ray" else None)
        # What cannot be written says so now, not after hours.
        notes = export.begin(folder, self.images, request.options)
        for note in [*notes, *self._changes(folder.before, store)]:
            console.print(note, markup=False, highlight=False, soft_wrap=True)
        with progress_bar(console, "Annotating", len(self.images.files)) as advance:
            for done in self._annotated(store.results, console):
                if done.failure is not None:
                    done = self._former_answer(done, folder.before, store.results) or done
                    progress.failures[done.file.name] = done.failure or ""
                    progress.former += bool(done.pieces)
                else:
                    progress.computed += done.computed
                    progress.reused += not done.computed
                if done.pieces:
                    export.append(done.file, done.content, done.pieces)
                advance(f"{len(progress.failures)} failed" if progress.failures else "")
                self._on_done()
                if self.execution.max_failures is not None and len(progress.failures) > self.execution.max_failures:
                    raise TooManyFailuresError(self._stopped())
        # Shards go first: the files that they speak of are moved then.
        return export.finish(progress.failures, store.results.remove_shards)

    def _former_answer(self, failed: Annotated, before: Written, results: Results) -> Annotated | None:
        """A file that failed with the answer that it had in the last run: it may be readable again tomorrow."""
        content, _ = before.images.get(failed.file.name, ("", None))
        record = results.get(content) if content else None
        if record is None:
            return None
        pieces = self.request.encoder(results)(Prepared(failed.file, content, record=record)).pieces
        return replace(failed, content=content, failure=f"{failed.failure}; its former answer is kept", pieces=pieces)

    def _changes(self, before: Written, store: ResultStore) -> Iterator[str]:
        """What is other than in the last run into the same folder, in words."""
        changed = sorted(store.changed_options())
        if changed:
            yield f"Since the last run into {printable(self.request.job.out)}: other {', '.join(changed)}."
        if before.root not in (None, self.images.root):
            yield f"Names are relative to {self.images.root} now, and were to {before.root}: files have other names."
        gone = before.images.keys() - {file.name for file in self.images.files}
        if gone:
            shown = ", ".join(sorted(gone)[:3]) + ", ..." * (len(gone) > 3)
            yield (
                f"Gone since the last run, or renamed: {len(gone)} of its images ({shown}). What was written of them "
                "is taken away."
            )

    def _annotated(self, results: Results, console: Console) -> Iterator[Annotated]:
        request = self.request
        if self.execution.engine == "ray":
            yield from annotate_with_ray(request, self.images, self.execution.workers, results, console)
            return

        def say(line: str) -> None:
            console.print(line, markup=False, highlight=False, soft_wrap=True)

        def load_model() -> "ClassListModel":
            console.print(f"Loading {request.settings.model}")
            return request.load_model(say)

        annotator = Annotator(
            load_model,
            request.asked.queries,
            request.reader(results),
            request.encoder(results),
            batch_size=request.settings.batch_size,
            workers=self.execution.workers or default_workers(),
            params=request.asked.params,
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

"""`lasagna annotate`: pre-labels for folders of images, without a server.

What always holds:

- A result is on disk as soon as its batch is done (`lasagna.results`); a run that was killed, run again, computes only
  what is missing.
- The files in OUT are assembled from the results when every image is done or has failed (`lasagna.export`), and are
  each complete or not there.
- A file that cannot be annotated fails alone, is listed with its reason, and makes the exit code 1.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from rich.console import Console

from lasagna.batch import Annotator, Outcome
from lasagna.errors import ConfigError, LasagnaError
from lasagna.export import OUTPUT_FOLDERS, WRITERS, Addresses, Job, assemble
from lasagna.folder import ImageSet, find_images
from lasagna.labels import (
    LabelConfig,
    make_label_config,
    parse_label_config,
    read_label_config,
    read_labels,
    read_labels_file,
)
from lasagna.progress import progress_bar
from lasagna.results import OutputFolder, ResultStore
from lasagna.segmentation import ClassQuery
from lasagna.settings import Settings

if TYPE_CHECKING:
    from lasagna.assistant import Lasagna


class TooManyFailuresError(LasagnaError):
    """More files failed than `--max-failures` allows."""

    exit_code = 1


def _formats(context: click.Context, parameter: click.Parameter, text: str) -> list[str]:
    names = list(dict.fromkeys(name.strip().lower() for name in text.split(",") if name.strip()))
    unknown = [name for name in names if name not in WRITERS]
    if unknown or not names:
        raise click.BadParameter(f"{', '.join(unknown) or 'nothing'} is no format; choose from {', '.join(WRITERS)}")
    return names


@click.command(
    epilog="""\b
Examples:
  lasagna annotate photos --labels sky,road,cat --out out
  lasagna annotate 'photos/**/*.jpg' extra.png --labels-file names.txt --out out --format coco,masks
  lasagna annotate photos --label-config project.xml --out out --format label-studio

\b
Labels, in --labels: separated by commas; one that contains a comma goes in double quotes: 'sky,"bag, purse"'.
Labels, in --labels-file: one per line; "name = what the model reads" gives the model other words; # starts a comment.

\b
OUT then holds gallery.html (open it in a browser), report.json, and per format
  label-studio  tasks.json with predictions, label_config.xml, IMPORT.md (how to import them)
  coco          coco.json (RLE), coco_polygons.json
  masks         masks/*.png (class indices with a palette), masks/classes.json
  yolo          yolo/ (polygons)          voc           voc/*.xml (boxes)

A run that was interrupted goes on where it was when the same command is run again.
Exit code: 0 all done, 1 some files failed, 2 nothing could be started, 130 interrupted."""
)
@click.argument("images", nargs=-1, required=True, metavar="IMAGES...")
@click.option("--labels", metavar="A,B,C", help="The classes to ask for.")
@click.option("--labels-file", type=click.Path(path_type=Path), help="Text file with one class per line.")
@click.option("--label-config", type=click.Path(path_type=Path), help="Label Studio labelling configuration (XML).")
@click.option("--out", "-o", required=True, type=click.Path(path_type=Path, file_okay=False), help="Output folder.")
@click.option("--format", "formats", default="label-studio,coco,masks", show_default=True, callback=_formats,
              metavar="A,B", help=f"What to write: {', '.join(WRITERS)}.")  # fmt: skip
@click.option("--model", help="Checkpoint: a shipped name, a folder or a hub id.  [default: nano]")
@click.option("--device", help="auto, cpu, cuda or cuda:N.  [default: auto]")
@click.option("--dtype", help="auto, float32, bfloat16 or float16.  [default: auto]")
@click.option("--quantise", help="none, int8 or int4: the language model in fewer bits.  [default: none]")
@click.option("--batch-size", type=click.IntRange(min=1), help="Images per model batch.  [default: 4]")
@click.option("--threshold", type=click.FloatRange(0, 1, min_open=True, max_open=True),
              help="Probability from which a class is present.  [default: as calibrated]")  # fmt: skip
@click.option("--exclusive", is_flag=True, help="Give each pixel to at most one class.")
@click.option("--max-failures", type=click.IntRange(min=0), metavar="N",
              help="Stop when more than N files have failed.  [default: never]")  # fmt: skip
@click.option("--image-root", type=click.Path(path_type=Path, exists=True, file_okay=False),
              help="Folder that addresses in tasks.json start at.  [default: the one above the images]")  # fmt: skip
@click.option("--image-url-prefix", metavar="URL",
              help="Put before each image's path in tasks.json.  [default: Label Studio's local files]")  # fmt: skip
def annotate(
    images: tuple[str, ...],
    labels: str | None,
    labels_file: Path | None,
    label_config: Path | None,
    out: Path,
    formats: list[str],
    model: str | None,
    device: str | None,
    dtype: str | None,
    quantise: str | None,
    batch_size: int | None,
    threshold: float | None,
    exclusive: bool,
    max_failures: int | None,
    image_root: Path | None,
    image_url_prefix: str | None,
) -> None:
    """Pre-label images: folders (searched with all below), glob patterns and single files."""
    from lasagna.checkpoint import checkpoint_version

    settings = Settings.load(model=model, device=device, dtype=dtype, quantise=quantise, batch_size=batch_size)
    queries, config, config_xml = _classes(labels, labels_file, label_config)
    found = find_images(images, exclude=[out / name for name in OUTPUT_FOLDERS])
    addresses = _addresses(found, image_root, image_url_prefix)
    version = checkpoint_version(settings["model"])
    options = {
        "model_version": version,
        "classes": [[query.name, query.text] for query in queries],
        "threshold": threshold,
        "exclusive": exclusive,
        "dtype": settings["dtype"],
        "quantise": settings["quantise"],
    }
    try:
        out.mkdir(parents=True, exist_ok=True)
        store = ResultStore(out, options)
    except OSError as error:
        raise ConfigError(f"cannot write to {out}: {error.strerror}; choose another --out") from error
    job = Job(OutputFolder(out), [q.name for q in queries], version, found, config, config_xml, addresses)
    with store:
        outcome = Outcome(failures=dict(found.unreadable))
        try:
            report = _run(job, formats, queries, store, outcome, settings, options, max_failures)
        except KeyboardInterrupt:
            click.secho(
                f"interrupted: {len(outcome.contents)} of {len(found.files)} images are done and kept in "
                f"{out / '.results'}; run the same command again to go on from there",
                fg="yellow",
                err=True,
            )
            raise SystemExit(130) from None
    _summary(report, outcome, out)
    if outcome.failures:
        raise SystemExit(1)


def _run(
    job: Job,
    formats: Sequence[str],
    queries: Sequence[ClassQuery],
    store: ResultStore,
    outcome: Outcome,
    settings: Settings,
    options: dict[str, Any],
    max_failures: int | None,
) -> dict[str, Any]:
    """Computes, then assembles. Returns the report."""
    for name in formats:  # a format that cannot be written for these images says so now, not after hours
        WRITERS[name](job)
    console = Console(stderr=True)
    changed = store.changed_options()
    if changed:
        console.print(f"Since the last run into {job.out.path}: other {', '.join(sorted(changed))}.")

    def load_model() -> "Lasagna":
        console.print(f"Loading {settings['model']}")
        from lasagna.assistant import Lasagna

        return Lasagna.from_pretrained(
            settings["model"], device=settings["device"], dtype=settings["dtype"], quantise=settings["quantise"]
        )

    def on_done(outcome: Outcome) -> None:
        advance(f"{len(outcome.failures)} failed" if outcome.failures else "")
        if max_failures is not None and len(outcome.failures) > max_failures:
            raise TooManyFailuresError(_stopped(outcome, job.images, max_failures))

    files = job.images.files
    annotator = Annotator(
        load_model, queries, store, job.out.path, settings, options["threshold"], options["exclusive"]
    )
    with progress_bar(console, "Annotating", len(files)) as advance:
        annotator.run(files, outcome, on_done)
    with progress_bar(console, "Writing", len(outcome.contents)) as advance:
        return assemble(job, formats, store, outcome, options, advance)


def _classes(
    labels: str | None, labels_file: Path | None, label_config: Path | None
) -> tuple[list[ClassQuery], LabelConfig, str]:
    """The class list, and a labelling configuration that fits it: the user's, or one made for the list."""
    given = [option for option in (labels, labels_file, label_config) if option is not None]
    if len(given) != 1:
        raise click.UsageError(
            f"{'no classes' if not given else 'classes in several ways'}: give one of --labels, --labels-file and "
            "--label-config"
        )
    if label_config is not None:
        config = read_label_config(label_config)
        return list(config.classes), config, label_config.read_text(encoding="utf-8-sig")
    queries = read_labels(labels) if labels is not None else read_labels_file(labels_file or "")
    xml = make_label_config(queries)
    return queries, parse_label_config(xml), xml


def _addresses(images: ImageSet, root: Path | None, prefix: str | None) -> Addresses:
    if prefix is None:
        # Label Studio serves files of storages, and a storage must lie strictly below the document root.
        return Addresses((root or images.root.parent).absolute(), "/data/local-files/?d=")
    return Addresses((root or images.root).absolute(), prefix)


def _stopped(outcome: Outcome, images: ImageSet, max_failures: int) -> str:
    reasons = "".join(f"\n  {reason}" for reason in outcome.failures.values())
    return (
        f"stopped: {len(outcome.failures)} files failed, more than --max-failures {max_failures} allows. "
        f"{len(outcome.contents)} of {len(images.files)} images are done and kept; repair or remove these files, or "
        f"raise --max-failures, and run the same command again:{reasons}"
    )


def _summary(report: dict[str, Any], outcome: Outcome, out: Path) -> None:
    done = len(report["images"])
    click.echo(f"{done} images annotated ({outcome.computed} now, {outcome.reused} known before or the same), in {out}")
    if done:
        click.echo(f"  look at {out / 'gallery.html'}")
    for failure in report["failures"]:
        click.secho(f"failed: {failure['reason']}", fg="red", err=True)
    if report["failures"]:
        click.secho(f"{len(report['failures'])} files failed; the rest is complete", fg="red", err=True)

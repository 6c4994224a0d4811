"""`lasagna annotate`: pre-labels for folders, lists, archives and buckets of images, without a server.

What always holds:

- A result is on disk as soon as it is computed (`lasagna.annotate.results`); a run that was killed, run again, computes
  only what is missing.
- The files of the whole set grow as the images come in, and appear in OUT when every image is done or has failed
  (`lasagna.annotate.export`): they are each complete or not there. Memory does not grow with them.
- The files are the same for any number of workers and for both engines (`lasagna.annotate.pipeline`,
  `lasagna.annotate.ray_engine`).
- A file that cannot be annotated fails alone, is listed with its reason, and makes the exit code 1.
"""

from collections.abc import Callable
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any, Literal

import click

from lasagna.annotate.addresses import Addresses
from lasagna.annotate.archives import close_archives, source_from_json
from lasagna.annotate.folder import ImageSet, find_images, read_list
from lasagna.annotate.output import MOST_SHOWN, Written
from lasagna.annotate.request import AnnotateRequest, Asked, Execution
from lasagna.annotate.run import AnnotateRun
from lasagna.annotate.writers import OUTPUT_FOLDERS, WRITERS, Job
from lasagna.checkpoint.vocabulary import load_vocabulary, unknown_in_words, vocabulary_that_binds
from lasagna.commands.classes import OBJECTS, choose_classes
from lasagna.errors import ConfigError
from lasagna.formats.hygiene import Hygiene
from lasagna.labels.classes import describe_classes
from lasagna.masks.segmentation import ClassQuery
from lasagna.settings import Settings


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
  lasagna annotate photos --labels sky,road,cat --corrected out/masks --out better
  lasagna annotate s3://bucket/photos/ photos.zip --list more.txt --labels sky,road --out out

\b
IMAGES: folders (searched with all below), patterns, files, archives (.zip, .tar, .tar.gz, ...; read in place), and
addresses: s3:// gs:// az:// and http(s)://, as one image, a folder that ends in "/", a pattern or an archive.

\b
Labels, in --labels: separated by commas; one that contains a comma goes in double quotes: 'sky,"bag, purse"'. @FILE,
and the name of a text file, are read as --labels-file.
Labels, in --labels-file: one per line; "name = what the model reads" gives the model other words; # starts a comment.

\b
OUT then holds gallery.html (open it in a browser), report.json, and per format
  label-studio  tasks.json with predictions, label_config.xml, IMPORT.md (how to import them)
  coco          coco.json (RLE), coco_polygons.json
  masks         masks/*.png (class indices with a palette), masks/classes.json
  instances     instances/*.png (numbers of objects), instances/instances.json
  yolo          yolo/ (polygons)          voc           voc/*.xml (boxes)

A run that was interrupted goes on where it was when the same command is run again.
Exit code: 0 all done, 1 some images failed or some files in OUT were kept, since somebody had changed them, 2 nothing
could be started, 130 interrupted."""
)
@click.argument("images", nargs=-1, metavar="IMAGES...")
@click.option("--list", "lists", multiple=True, type=click.Path(path_type=Path, dir_okay=False, allow_dash=True),
              metavar="FILE",
              help="File with an image, folder, archive or address per line; - is standard input.")  # fmt: skip
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
@click.option("--encoder", help="torch or openvino: what computes the image encoder on a CPU.  [default: torch]")
@click.option("--head", type=click.Path(path_type=Path, dir_okay=False, exists=True), metavar="FILE",
              help="Use what `lasagna learn` learnt from corrected photos.")  # fmt: skip
@click.option("--corrected", type=click.Path(path_type=Path, exists=True), metavar="PATH",
              help="Learn from these corrected photos first; what they can be: lasagna learn --help.")  # fmt: skip
@click.option(
    "--batch-size", type=click.IntRange(min=1), help="Images per model batch; on a CPU side by side.  [default: 4]"
)
@click.option("--threshold", type=click.FloatRange(0, 1, min_open=True, max_open=True),
              help="Probability from which a class is present.  [default: as calibrated]")  # fmt: skip
@click.option("--guess-unknown", is_flag=True, default=None,
              help="Ask also for classes that the model was never taught.  [default: they are listed]")  # fmt: skip
@click.option("--exclusive", is_flag=True, help="Give each pixel to at most one class.")
@click.option("--workers", type=click.IntRange(min=1), metavar="N",
              help="Threads that read, and as many that write.  [default: the cores, 2 to 8]  Of Ray: models.  "
                   "[default: one per GPU of the cluster, else one for two cores]")  # fmt: skip
@click.option("--engine", type=click.Choice(["local", "ray"]), default="local", show_default=True,
              help="ray: the machines of the Ray cluster at RAY_ADDRESS, else this one (docs/corpora.md).")  # fmt: skip
@click.option("--instances", type=click.Choice(["usual", "parts"]), default="usual", show_default=True,
              help="Of classes whose objects are not told apart. parts: each connected part is one in every format. "
                   "usual: a class is one in COCO and as a brush region, elsewhere each part is.")  # fmt: skip
@click.option("--objects", type=click.Choice(OBJECTS), default="things", show_default=True,
              help="Whose objects are told apart, each a region of its own: things (people, cars; a label of a "
                   "configuration may say otherwise), all classes, or off.")  # fmt: skip
@click.option("--min-area", type=click.IntRange(min=0), metavar="PIXELS",
              help="Leave out parts of masks with fewer pixels.  [default: 0]")  # fmt: skip
@click.option("--min-width", type=click.FloatRange(min=0), metavar="PIXELS",
              help="Leave out parts that are nowhere as wide.  [default: 0]")  # fmt: skip
@click.option("--duplicate-iou", type=click.FloatRange(0, 1), metavar="IOU",
              help="Leave out the less probable of two parts that overlap so much.  [default: 0]")  # fmt: skip
@click.option("--max-regions", type=click.IntRange(min=0), metavar="N",
              help="Keep the N largest parts of an image.  [default: 0, all]")  # fmt: skip
@click.option("--max-region-bytes", type=click.IntRange(min=0), metavar="N",
              help="Leave out larger brush regions of Label Studio where a polygon shows the same; 0: never.  "
                   "[default: 300000]")  # fmt: skip
@click.option("--gallery/--no-gallery", default=True, help="Whether to make pages to look at.  [default: yes]")
@click.option("--max-failures", type=click.IntRange(min=0), metavar="N",
              help="Stop when more than N files have failed.  [default: never]")  # fmt: skip
@click.option("--overwrite", is_flag=True,
              help="Write over files in OUT that somebody changed, or that are not of this command; else they are kept "
                   "and listed.")  # fmt: skip
@click.option("--image-root", type=click.Path(path_type=Path, exists=True, file_okay=False),
              help="Folder that addresses in tasks.json start at.  [default: the one above the images]")  # fmt: skip
@click.option("--image-url-prefix", metavar="URL",
              help="Put before each image's path in tasks.json.  [default: Label Studio's local files; "
                   "of s3://, http:// and so on: the image's own address]")  # fmt: skip
def annotate(
    images: tuple[str, ...],
    lists: tuple[Path, ...],
    labels: str | None,
    labels_file: Path | None,
    label_config: Path | None,
    out: Path,
    formats: list[str],
    threshold: float | None,
    exclusive: bool,
    instances: str,
    objects: Literal["off", "things", "all"],
    workers: int | None,
    engine: Literal["local", "ray"],
    gallery: bool,
    head: Path | None,
    corrected: Path | None,
    max_failures: int | None,
    overwrite: bool,
    image_root: Path | None,
    image_url_prefix: str | None,
    **chosen: Any,
) -> None:
    """Pre-label images in folders, lists, archives and buckets."""
    from lasagna.checkpoint.folder import checkpoint_version, find_checkpoint

    if not images and not lists:
        raise click.UsageError("Missing argument 'IMAGES...': name images, or give a --list of them")
    settings = Settings.load(**chosen)
    queries, config, config_xml = choose_classes(labels, labels_file, label_config, objects)
    if head is not None and corrected is not None:
        raise click.UsageError("--head and --corrected: a head is learnt from the corrections, so give one of them")
    click.echo(describe_classes(queries), err=True)
    folder = find_checkpoint(settings.model)
    version = checkpoint_version(folder)
    if corrected is not None:
        head = _learn(corrected, [Path(name) for name in images if Path(name).is_dir()], queries, settings, out)
    if head is not None:
        head = head.absolute()  # workers of Ray may have another folder of their own
    vocabulary = vocabulary_that_binds(load_vocabulary(folder), settings.guess_unknown)
    learnt: tuple[str, ...] = ()
    if head is not None:
        suffix, learnt = _read_head(head)
        version = f"{version}+{suffix}"
    unknown = [] if vocabulary is None else vocabulary.unknown(queries, learnt)
    try:
        listed = [line for path in lists for line in read_list(path)]
        before = Written.load(out / ".results" / "written.json")
        found = find_images(
            images,
            listed=listed,
            exclude=[out / name for name in OUTPUT_FOLDERS],
            ours={str(out.absolute() / name) for name in before.files},
            known=[source_from_json(place) for _, place in before.images.values()],
        )
        for note in found.notes:
            click.secho(note, fg="yellow", err=True)
        asked = Asked(queries, threshold, exclusive, settings.guess_unknown)
        job = Job(
            out=out.absolute(),
            class_names=[query.name for query in queries],
            model_version=version,
            params={**asked.params, "objects": None if objects == "things" or label_config is None else objects},
            label_config=config,
            label_config_xml=config_xml,
            addresses=_addresses(found, image_root, image_url_prefix),
            hygiene=Hygiene.of(settings),
            parts=instances == "parts",
            queries=queries,
            unknown=unknown,
        )
        request = AnnotateRequest(job, formats, asked, settings, gallery, head)
        run = AnnotateRun(request, found, Execution(engine, workers, max_failures, overwrite))
        report = _uninterrupted(run)
    finally:
        close_archives()
    _summary(report, run, out, vocabulary is not None and vocabulary.closed)
    if run.progress.failures or report["kept"]:
        raise SystemExit(1)


def _uninterrupted(run: AnnotateRun) -> dict[str, Any]:
    """The run's report; where Ctrl-C comes first, ends with exit code 130 and says what is kept."""
    try:
        return run()
    except KeyboardInterrupt:
        words = f"interrupted: {run.kept()}; run the same command again to go on from there"
        click.secho(words, fg="yellow", err=True)
        raise SystemExit(130) from None


def _learn(corrected: Path, photos: list[Path], queries: list[ClassQuery], settings: Settings, out: Path) -> Path:
    """The file of a head that was learnt from corrected photos; corrections are kept in OUT for the next run."""
    points = list(entry_points(group="lasagna.corrections"))
    if not points:
        raise ConfigError("--corrected needs the package training, which is not installed here")
    learn: Callable[..., Path] = points[0].load()
    return learn(corrected, photos, queries, settings, out / ".corrected")


def _read_head(head: Path) -> tuple[str, tuple[str, ...]]:
    """What a head adds to the version, and the classes that it answers."""
    from lasagna.instant.head import Head

    found = Head.load(head)
    return found.suffix, found.names if found.serves else ()


def _addresses(images: ImageSet, root: Path | None, prefix: str | None) -> Addresses:
    folder = root or images.folder
    if prefix is None and root is None and folder is not None:
        # Label Studio serves files of storages, and a storage must lie strictly below the document root.
        folder = folder.parent
    return Addresses(None if folder is None else folder.absolute(), prefix)


def _summary(report: dict[str, Any], run: AnnotateRun, out: Path, closed: bool) -> None:
    done = report["images"]
    now, known = run.progress.computed, run.progress.reused
    former = f", {run.progress.former} as before, since they cannot be read" if run.progress.former else ""
    click.echo(f"{done} images annotated ({now} now, {known} known before or the same{former}), in {out}")
    left_out = [f"{number} {name.replace('_', ' ')}" for name, number in report["left_out"].items() if number]
    if left_out:
        click.echo(f"  left out: {', '.join(left_out)}")
    if words := unknown_in_words(run.request.job.model_version, run.request.job.unknown, closed):
        click.secho(f"  {words}{'' if closed else ', or have it guess: --guess-unknown'}", fg="yellow")
    if done and run.request.gallery:
        click.echo(f"  look at {out / 'gallery.html'}")
    failures, kept = report["failures"], report["kept"]
    _list([f"failed: {failure['reason']}" for failure in failures])
    if failures:
        count = len(failures)
        click.secho(f"{count} file{'s' * (count > 1)} failed; the rest is complete", fg="red", err=True)
    _list([f"kept as it is: {file['name']}: {file['reason']}" for file in kept])
    if kept:
        click.secho("to write over what was kept: --overwrite", fg="red", err=True)


def _list(lines: list[str]) -> None:
    for line in lines[:MOST_SHOWN]:
        click.secho(line, fg="red", err=True)
    if len(lines) > MOST_SHOWN:
        click.secho(f"and {len(lines) - MOST_SHOWN} more, in report.json", fg="red", err=True)

"""The command `lasagna evaluate`: the figures of `training.evaluation.evaluate` for people and for programs, of one
data set or of a whole suite."""

import json
import sys
from collections.abc import Callable, Mapping, Sequence
from importlib.metadata import entry_points
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from rich.console import Console
from rich.table import Table

from lasagna.checkpoint.architectures import architecture_of
from lasagna.environment import describe_environment
from lasagna.errors import ConfigError, DataError
from lasagna.progress import progress_bar
from training.commands.options import DATA_HELP, DataSetFolder
from training.data.sources.folder import Folder
from training.data.spread import spread
from training.evaluation.chunks import ChunkSize, chunk_table, evaluate_chunk_sizes
from training.evaluation.evaluate import choose_distractors, evaluate_dataset, read_names
from training.evaluation.pictures import write_pictures

if TYPE_CHECKING:
    from lasagna.contract.model import ClassListModel


class ChunkSizeList(click.ParamType):
    """The command line's list of chunk sizes: `N,N/2,N/4,1`."""

    name = "sizes"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        if not isinstance(value, str):
            return value
        try:
            return tuple(ChunkSize.parse(part.strip()) for part in value.split(","))
        except ValueError as error:
            self.fail(str(error), param, ctx)


@click.command(
    epilog="""\b
Examples:
  lasagna evaluate --data photos --split val
  LASAGNA_DATA=../datasets lasagna evaluate --data camvid --classes-from coco_panoptic --json
  lasagna evaluate --model my-checkpoint --data photos --limit 50 --out report.json
  lasagna evaluate --data msrc --pictures msrc.html --shown 12
  lasagna evaluate --data coco_things --objects --pictures objects.html
  lasagna evaluate --data coco_things --objects --pictures objects.html --no-photos
  lasagna evaluate --data coco_panoptic --chunk-sizes N,N/2,N/3,N/4,1
  lasagna evaluate lab/paper/evaluations/nano.yaml --document docs/lab/results.md
"""
)
@click.argument("suite", required=False, type=click.Path(exists=True, dir_okay=False, path_type=Path))
@click.option("--model", "model_name", help="Shipped name, folder or hub id; default: nano.")
@click.option("--data", type=DataSetFolder(), help=f"What is scored: {DATA_HELP}.")
@click.option("--split", default="val", show_default=True, help="The list of ids: SPLIT.txt in the folder.")
@click.option(
    "--classes-from",
    "others",
    multiple=True,
    type=DataSetFolder(file_okay=True),
    metavar="OTHER",
    help="Ask this set's names too, as distractors: a data set folder or a text file, one name per line. Repeatable. "
    "Names that mean the same as a class of the data, or may be in its photos unannotated, are skipped and reported.",
)
@click.option("--limit", type=click.IntRange(1), help="At most so many images, spread evenly over the split.")
@click.option("--batch-size", type=click.IntRange(1), default=4, show_default=True, help="Images per model batch.")
@click.option("--chunk-size", type=click.IntRange(1), help="Most classes in one list; default: all that fit.")
@click.option(
    "--chunk-sizes",
    type=ChunkSizeList(),
    help="Evaluate once per chunk size, such as N,N/2,20, and print the paper's Table 6 with ours beside it.",
)
@click.option(
    "--threshold",
    type=click.FloatRange(0, 1, min_open=True, max_open=True),
    help="Probability from which on a class is present; default: 0.5.",
)
@click.option(
    "--guess-unknown", is_flag=True, help="Score also names that the model was never taught, by what it guesses."
)
@click.option("--device", default="auto", show_default=True, help="auto, cpu, cuda or cuda:N.")
@click.option("--dtype", default="auto", show_default=True, help="auto, float32, bfloat16 or float16.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object on stdout instead of the table.")
@click.option("--out", type=click.Path(path_type=Path, dir_okay=False), help="Write the JSON object to this file too.")
@click.option("--pictures", type=click.Path(path_type=Path, dir_okay=False), metavar="FILE.html",
              help="Write a page of photos, annotation and answer: best, middle and worst by rank.")  # fmt: skip
@click.option("--shown", default=10, show_default=True, type=click.IntRange(1), help="Photos on that page.")
@click.option("--no-photos", is_flag=True,
              help="Leave photos and annotation out of that page, where they may not be passed on.")  # fmt: skip
@click.option("--objects", is_flag=True,
              help="Score how objects are told apart (PQ, SQ, RQ, AP50), with the connected parts of the same masks "
                   "beside it; of sets with instances/ (docs/data.md). Pictures are of objects, too.")  # fmt: skip
@click.option("--document", type=click.Path(path_type=Path), help="Put a suite's tables into their blocks of it.")
def evaluate(
    suite: Path | None,
    model_name: str | None,
    data: Path | None,
    split: str,
    others: tuple[Path, ...],
    limit: int | None,
    batch_size: int,
    chunk_size: int | None,
    chunk_sizes: tuple[ChunkSize, ...] | None,
    threshold: float | None,
    guess_unknown: bool,
    device: str,
    dtype: str,
    as_json: bool,
    out: Path | None,
    pictures: Path | None,
    shown: int,
    no_photos: bool,
    objects: bool,
    document: Path | None,
) -> None:
    """Score a model on an annotated data set: mask IoU, and whether it knows which classes are absent.

    Each image is asked with all classes of the set in one query. With a SUITE file instead of --data: the paper's
    tables, of all models and data sets that it names; a suite that was killed goes on with what is missing.
    Exit code 1 when an image could not be scored.
    """
    if suite is not None:
        single = (model_name, data, others, limit, chunk_size, chunk_sizes, threshold, out, pictures)
        if objects or any(value not in (None, ()) for value in single):
            raise click.UsageError(
                "a suite file says what is evaluated; of the options only --device, --dtype, --json "
                "and --document go with it"
            )
        sys.exit(1 if _suite_runner()(suite, device, dtype, document, as_json) else 0)
    if data is None or document is not None:
        raise click.UsageError("give a suite file, with --document if you like, or --data and no --document")
    if chunk_size and chunk_sizes:
        raise click.UsageError("--chunk-size is for one evaluation, --chunk-sizes for a table of several; give one")
    if no_photos and pictures is None:
        raise click.UsageError("--no-photos is of the page that --pictures writes; give both")
    if pictures and chunk_sizes:
        raise click.UsageError("--pictures is of one evaluation, --chunk-sizes a table of several; give one")
    if objects and (others or chunk_sizes):
        raise click.UsageError(
            "--objects scores the things of the data alone, without --classes-from and --chunk-sizes"
        )
    for path in (out, pictures):
        if path is not None and not path.parent.is_dir():
            raise DataError(f"{path}: the folder {path.parent} does not exist")
    source = Folder(data, split)  # before the model is loaded: a wrong path should fail at once
    names = [name for other in others for name in read_names(other)]
    options = {
        "distractors": choose_distractors(source.name, source.classes, names),
        "limit": limit,
        "batch_size": batch_size,
        "threshold": threshold,
        "guess_unknown": guess_unknown,
    }

    from lasagna.models.loading import load_model

    model = load_model(model_name or "nano", device=device, dtype=dtype, say=lambda line: click.echo(line, err=True))
    report = _described(model, model_name or "nano", source, options, chunk_size)
    if objects:
        failures = _measure_objects(model, source, options, chunk_size, report, pictures, shown, not no_photos)
    else:
        failures = _measure(model, source, options, chunk_size, chunk_sizes, report, pictures, shown, not no_photos)
    text = json.dumps(report, indent=2, ensure_ascii=False, allow_nan=False)
    if out is not None:
        out.write_text(text + "\n", encoding="utf-8")
    if as_json:
        click.echo(text)
    elif objects:
        _print_objects(report)
    elif chunk_sizes:
        click.echo(chunk_table(report["chunk_sizes"]))
    else:
        _print_tables(report)
    for image_id, reason in failures.items():
        click.secho(f"not scored: {image_id}: {reason}", fg="red", err=True)
    if failures:
        sys.exit(1)


def _suite_runner() -> Callable[..., int]:
    """What runs suite files: the laboratory's, where it is installed."""
    for entry in entry_points(group="lasagna.suites"):
        runner: Callable[..., int] = entry.load()
        return runner
    raise ConfigError(
        "suite files are run by the laboratory (lab/), which is no part of the package; in a checkout, `make setup` "
        "installs it beside. Without it, --data evaluates one data set"
    )


def _described(
    model: "ClassListModel", name: str, source: Folder, options: Mapping[str, Any], chunk_size: int | None
) -> dict[str, Any]:
    """The report's heading: what is measured, on what, and where."""
    return {
        "data": str(source.root),
        "split": source.split,
        "model": name,
        "model_version": model.version,
        "closed_list": _is_closed(model),
        "batch_size": options["batch_size"],
        "chunk_size": chunk_size,
        "threshold": options["threshold"],
        "guess_unknown": options["guess_unknown"],
        "environment": describe_environment(model.device),
    }


def _is_closed(model: "ClassListModel") -> bool:
    """Whether it answers a list of its own and cannot guess at other names."""
    architecture = None if model.folder is None else architecture_of(model.folder)
    return architecture is not None and architecture.closed


def _measure(
    model: "ClassListModel",
    source: Folder,
    options: Mapping[str, Any],
    chunk_size: int | None,
    chunk_sizes: Sequence[ChunkSize] | None,
    report: dict[str, Any],
    pictures: Path | None,
    shown: int,
    photos: bool,
) -> dict[str, str]:
    """Adds the figures to the report, and writes the page of pictures; returns what could not be scored."""
    total = len(spread(len(source), options["limit"])) * len(chunk_sizes or (None,))
    with progress_bar(Console(stderr=True, markup=False), f"{source.name} {source.split}", total) as advance:
        if chunk_sizes:
            rows = evaluate_chunk_sizes(model, source, chunk_sizes, on_image=advance, **options)
            report["chunk_sizes"] = rows
            return dict(rows[0]["failures"])
        result = evaluate_dataset(model, source, chunk_size=chunk_size, on_image=advance, **options)
        report.update(result.as_dict())
        if pictures is not None:
            asked = {key: options[key] for key in ("threshold", "guess_unknown")}
            asked |= {"exclusive": True, "chunk_size": chunk_size}
            write_pictures(pictures, model, model.version, source, result.photo_iou, shown, photos, **asked)
        return result.failures


def _measure_objects(
    model: "ClassListModel",
    source: Folder,
    options: Mapping[str, Any],
    chunk_size: int | None,
    report: dict[str, Any],
    pictures: Path | None,
    shown: int,
    photos: bool,
) -> dict[str, str]:
    """Adds the figures of objects to the report, and writes the page; returns what could not be scored."""
    from training.evaluation.evaluate_objects import ObjectPictures, evaluate_objects

    page = None if pictures is None else ObjectPictures(shown, photos)
    asked = {key: options[key] for key in ("limit", "batch_size", "threshold", "guess_unknown")}
    total = len(spread(len(source), options["limit"]))
    with progress_bar(Console(stderr=True, markup=False), f"{source.name} {source.split}", total) as advance:
        result = evaluate_objects(model, source, on_image=advance, on_photo=page, chunk_size=chunk_size, **asked)
    report["objects"] = result.as_dict()
    if page is not None and pictures is not None:
        page.write(pictures, f"Objects of {model.version} on {source.name}")
    return result.failures


def _not_known(report: Mapping[str, Any]) -> str:
    return f"{'not in the list of' if report['closed_list'] else 'not known to'} the model, and in no figure"


def _how_to_ask(report: Mapping[str, Any]) -> str:
    return "" if report["closed_list"] else "; --guess-unknown scores what it guesses"


def _print_objects(report: dict[str, Any]) -> None:
    found = report["objects"]
    table = Table(title=f"{report['data']}, {report['split']}: {found['images']} images, {report['model_version']}")
    table.add_column("objects told apart by")
    for heading in ("PQ", "SQ", "RQ", "AP50", "objects", "matched", "wrong", "missed"):
        table.add_column(heading, justify="right")
    for way, row in found["ways"].items():
        figures = ("–" if row[key] is None else f"{row[key]:.3f}" for key in ("pq", "sq", "rq", "ap50"))
        table.add_row(way, *figures, *(str(row[key]) for key in ("objects", "matched", "wrong", "missed")))
    Console(markup=False).print(table)
    if found["unknown"]:
        click.echo(f"{_not_known(report)}: {', '.join(found['unknown'])}{_how_to_ask(report)}")


def _print_tables(report: dict[str, Any]) -> None:
    def figure(value: float | None) -> str:
        return "–" if value is None else f"{value:.3f}"

    console = Console(markup=False)
    distractors = report["distractors"]
    per_class = Table(
        title=f"{report['data']}, {report['split']}: {report['images']} images, {report['model_version']}"
    )
    for heading in ("class", "images", "IoU", "precision", "recall"):
        per_class.add_column(heading, justify="left" if heading == "class" else "right")
    for name, row in report["per_class"].items():
        figures = (figure(row[key]) for key in ("iou", "precision", "recall"))
        per_class.add_row(name, str(row["images"]), *figures)
    console.print(per_class)

    summary = Table(show_header=False)
    summary.add_column()
    summary.add_column(justify="right")
    summary.add_row("mIoU", figure(report["miou"]))
    summary.add_row("pixel accuracy", figure(report["pixel_accuracy"]))
    for name, value in report["presence"].items():
        summary.add_row(f"presence {name.replace('_', ' ')}", figure(value))
    summary.add_row("presence calibration error", figure(report["calibration_error"]))
    summary.add_row("  each half calibrated on the other", figure(report["calibration_error_of_halves"]))
    summary.add_row("absent classes said present", figure(report["absent_false_positive_rate"]))
    if distractors["names"]:
        among = f"  among {len(distractors['names'])} distractors"
        summary.add_row(among, figure(distractors["absent_false_positive_rate"]))
    summary.add_row("seconds per image", figure(report["seconds_per_image"]))
    console.print(summary)
    if report["unknown"]:
        names = ", ".join(f"{name} ({photos})" for name, photos in report["unknown"].items())
        click.echo(f"{_not_known(report)} (photos that have it): {names}{_how_to_ask(report)}")
    if distractors["skipped"]:
        click.echo(f"{len(distractors['skipped'])} names were not asked as distractors:")
        by_reason: dict[str, list[str]] = {}
        for name, reason in distractors["skipped"].items():
            by_reason.setdefault(reason, []).append(name)
        for reason, skipped in by_reason.items():
            click.echo(f"  {', '.join(skipped)}: {reason}")

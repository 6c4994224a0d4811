"""The command `lasagna evaluate`: the figures of `training.evaluation.evaluate` for people and for programs, of one
data set or of a whole suite."""

import json
import sys
from pathlib import Path
from typing import Any

import click

from lasagna.errors import DataError
from lasagna.progress import progress_bar
from training.data.sources.folder import Folder
from training.data.spread import spread
from training.evaluation.chunks import ChunkSize, chunk_table, evaluate_chunk_sizes
from training.evaluation.evaluate import choose_distractors, evaluate_dataset, read_names


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
  lasagna evaluate --data ../shared/data/camvid --split val
  lasagna evaluate --data ../shared/data/camvid --classes-from ../shared/data/coco_panoptic --json
  lasagna evaluate --model my-checkpoint --data photos --limit 50 --out report.json
  lasagna evaluate --data ../shared/data/coco_panoptic --chunk-sizes N,N/2,N/3,N/4,1
  lasagna evaluate lab/paper/evaluations/nano.yaml --document docs/lab/results.md
"""
)
@click.argument("suite", required=False, type=click.Path(exists=True, dir_okay=False, path_type=Path))
@click.option("--model", "model_name", help="Shipped name, folder or hub id; default: nano.")
@click.option(
    "--data",
    type=click.Path(path_type=Path),
    help="Folder with classes.json, images/, masks/ and lists of ids.",
)
@click.option("--split", default="val", show_default=True, help="The list of ids: SPLIT.txt in the folder.")
@click.option(
    "--classes-from",
    "others",
    multiple=True,
    type=click.Path(path_type=Path),
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
@click.option("--device", default="auto", show_default=True, help="auto, cpu, cuda or cuda:N.")
@click.option("--dtype", default="auto", show_default=True, help="auto, float32, bfloat16 or float16.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object on stdout instead of the table.")
@click.option("--out", type=click.Path(path_type=Path, dir_okay=False), help="Write the JSON object to this file too.")
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
    device: str,
    dtype: str,
    as_json: bool,
    out: Path | None,
    document: Path | None,
) -> None:
    """Score a model on an annotated data set: mask IoU, and whether it knows which classes are absent.

    Each image is asked with all classes of the set in one query. With a SUITE file instead of --data: the paper's
    tables, of all models and data sets that it names; a suite that was killed goes on with what is missing.
    Exit code 1 when an image could not be scored.
    """
    if suite is not None:
        single = (model_name, data, others, limit, chunk_size, chunk_sizes, threshold, out)
        if any(value not in (None, ()) for value in single):
            raise click.UsageError(
                "a suite file says what is evaluated; of the options only --device, --dtype, --json "
                "and --document go with it"
            )
        from lab.paper.suite_command import run_suite

        sys.exit(1 if run_suite(suite, device, dtype, document, as_json) else 0)
    if data is None or document is not None:
        raise click.UsageError("give a suite file, with --document if you like, or --data and no --document")
    model_name = model_name or "nano"
    dataset = Folder(data, split)  # before the model is loaded: a wrong path should fail at once
    names = [name for other in others for name in read_names(other)]
    distractors = choose_distractors(dataset.name, dataset.classes, names)
    if chunk_size and chunk_sizes:
        raise click.UsageError("--chunk-size is for one evaluation, --chunk-sizes for a table of several; give one")
    if out is not None and not out.parent.is_dir():
        raise DataError(f"{out}: the folder {out.parent} does not exist")

    from rich.console import Console

    from lasagna import Lasagna
    from lasagna.environment import describe_environment

    model = Lasagna.from_pretrained(model_name, device=device, dtype=dtype)
    report: dict[str, Any] = {
        "data": str(data),
        "split": split,
        "model": model_name,
        "model_version": model.version,
        "batch_size": batch_size,
        "chunk_size": chunk_size,
        "threshold": threshold,
        "environment": describe_environment(str(model.model.device)),
    }
    options: dict[str, Any] = {
        "distractors": distractors,
        "limit": limit,
        "batch_size": batch_size,
        "threshold": threshold,
    }
    total = len(spread(len(dataset), limit)) * len(chunk_sizes or (None,))
    with progress_bar(Console(stderr=True), f"{dataset.name} {split}", total) as advance:
        if chunk_sizes:
            rows = evaluate_chunk_sizes(model, dataset, chunk_sizes, on_image=advance, **options)
            report["chunk_sizes"], failures = rows, rows[0]["failures"]
        else:
            result = evaluate_dataset(model, dataset, chunk_size=chunk_size, on_image=advance, **options)
            report.update(result.as_dict())
            failures = result.failures
    text = json.dumps(report, indent=2, ensure_ascii=False, allow_nan=False)
    if out is not None:
        out.write_text(text + "\n", encoding="utf-8")
    if as_json:
        click.echo(text)
    elif chunk_sizes:
        click.echo(chunk_table(report["chunk_sizes"]))
    else:
        _print_tables(report)
    for image_id, reason in failures.items():
        click.secho(f"not scored: {image_id}: {reason}", fg="red", err=True)
    if failures:
        sys.exit(1)


def _print_tables(report: dict[str, Any]) -> None:
    from rich.console import Console
    from rich.table import Table

    def figure(value: float | None) -> str:
        return "–" if value is None else f"{value:.3f}"

    console = Console()
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
    if distractors["skipped"]:
        click.echo(f"{len(distractors['skipped'])} names were not asked as distractors:")
        by_reason: dict[str, list[str]] = {}
        for name, reason in distractors["skipped"].items():
            by_reason.setdefault(reason, []).append(name)
        for reason, skipped in by_reason.items():
            click.echo(f"  {', '.join(skipped)}: {reason}")

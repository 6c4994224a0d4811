"""`lasagna experiment`: what `nano` is measured against.

Each command prints one Markdown table (or, with `--json`, one object that also names the machine and the versions), and
can put the table into its marked block of a document.
"""

import json
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import click
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

from lab.bench.command import Numbers
from lab.names import asked_everything
from lab.paper.ablation_command import ablation, unseen
from lab.paper.machine import describe_machine
from lab.paper.presence_command import presence
from lasagna.progress import progress_bar
from training.commands.options import DATA_HELP, DataSetFolder
from training.data.sets import divide
from training.data.sources import Source
from training.data.sources.folder import Folder
from training.data.spread import spread
from training.evaluation.chunks import ChunkSize
from training.evaluation.evaluate import evaluate_dataset
from training.evaluation.tables import Cell, markdown_table, percent, replace_block

PACKAGES = ("timm", "scikit-learn")
"""Whose versions a report has besides."""


@click.group()
def experiment() -> None:
    """Measure nano beside a specialist and a linear probe; train it without a strategy, or without some names."""


experiment.add_command(ablation)
experiment.add_command(unseen)
experiment.add_command(presence)


def _data(command: Callable[..., None]) -> Callable[..., None]:
    option = click.option(
        "--data",
        "folders",
        multiple=True,
        required=True,
        type=DataSetFolder(),
        help=f"Repeatable: {DATA_HELP}.",
    )
    return option(command)


def _common(command: Callable[..., None]) -> Callable[..., None]:
    for option in (
        click.option("--document", type=click.Path(path_type=Path), help="Put the table into its block of this file."),
        click.option("--json", "as_json", is_flag=True, help="Print one JSON object on stdout instead of the table."),
    ):
        command = option(command)
    return command


def _show(name: str, report: dict[str, Any], table: str, as_json: bool, document: Path | None) -> None:
    click.echo(json.dumps(report, indent=2, ensure_ascii=False, allow_nan=False) if as_json else table)
    if document:
        replace_block(document, name, table)


def _evaluate(model: Any, dataset: Folder, what: str) -> dict[str, Any]:
    with progress_bar(Console(stderr=True), f"{what} on {dataset.name} {dataset.split}", len(dataset)) as advance:
        return evaluate_dataset(model, dataset, on_image=advance).as_dict()


@experiment.command(
    epilog="""\b
Examples:
  lasagna experiment specialist --data camvid --steps 400 --out runs/specialist
  lasagna experiment specialist --data camvid --data msrc --steps 400 \\
      --out runs/specialist --against nano --json
"""
)
@_data
@click.option("--steps", required=True, type=click.IntRange(1), help="Optimiser steps, for each data set.")
@click.option("--out", required=True, type=click.Path(path_type=Path), help="Each set's run is OUT/NAME; resumes.")
@click.option("--batch-size", default=6, show_default=True, type=click.IntRange(1), help="Photos per step.")
@click.option("--width", default=128, show_default=True, type=click.IntRange(8), help="Channels of the pyramid.")
@click.option("--image-size", default=512, show_default=True, type=click.IntRange(64), help="Longest side of a photo.")
@click.option("--view", default=384, show_default=True, type=click.IntRange(64), help="Side of the training views.")
@click.option("--holdout", default=0.06, show_default=True, help="Share of the train photos left out, as in nano.yaml.")
@click.option("--seed", default=1, show_default=True)
@click.option("--split", default="val", show_default=True, help="The split that is scored.")
@click.option("--against", "checkpoint", help="Score this checkpoint beside it (nano, a folder), and their ratio.")
@click.option("--device", default="cpu", show_default=True, help="cpu or cuda.")
@_common
def specialist(
    folders: tuple[Path, ...],
    steps: int,
    out: Path,
    batch_size: int,
    width: int,
    image_size: int,
    view: int,
    holdout: float,
    seed: int,
    split: str,
    checkpoint: str | None,
    device: str,
    as_json: bool,
    document: Path | None,
) -> None:
    """Train nano's backbone with a softmax over a set's own classes, and score it as `lasagna evaluate` does."""
    sets = [(divide(Folder(folder, "train"), holdout)[0], Folder(folder, split)) for folder in folders]

    from lab.paper.specialist import SpecialistOptions, nano_optimiser
    from lasagna import Lasagna

    model = asked_everything(Lasagna.from_pretrained(checkpoint, device=device)) if checkpoint else None
    options = SpecialistOptions(nano_optimiser(steps, batch_size), width, image_size, (view, view), seed=seed)
    report: dict[str, Any] = {
        "options": asdict(options),
        "sets": {},
        "environment": describe_machine(device, *PACKAGES),
    }
    if model:
        report["model_version"] = model.version
    for train, scored in sets:
        rival = _train_specialist(scored.name, train, options, out / scored.name, device)
        row = {"specialist": _evaluate(rival, scored, "specialist")}
        if model:
            row["model"] = _evaluate(model, scored, model.version)
        report["sets"][scored.name] = row
    _show("specialist", report, _specialist_table(report), as_json, document)


def _train_specialist(name: str, train: Source, options: Any, out: Path, device: str) -> Any:
    from lab.paper.specialist import Specialist, train_specialist
    from training.examples.photos import Photos

    columns = (TextColumn("{task.description}"), BarColumn(), TextColumn("{task.completed}/{task.total}"))
    with Progress(*columns, TimeRemainingColumn(), console=Console(stderr=True)) as progress:
        bar = progress.add_task(f"specialist of {name}", total=options.optimiser.steps)
        out.mkdir(parents=True, exist_ok=True)
        with (out / "log.jsonl").open("a", encoding="utf-8") as log:
            for line in train_specialist(Photos(train, name, 2 * options.image_size), options, out, device):
                log.write(json.dumps(line) + "\n")
                log.flush()
                progress.update(bar, completed=line["step"], description=f"{name}, loss {line['loss']:.3f}")
    return Specialist.load(out, device)


def _specialist_table(report: dict[str, Any]) -> str:
    headings = ["data set", "specialist mIoU", "pixel accuracy", "presence AP", "presence F1"]
    both = "model_version" in report
    if both:
        headings += [f"{report['model_version']} mIoU", "pixel accuracy", "presence AP", "presence F1", "mIoU ratio"]
    rows: list[list[Cell]] = []
    for name, row in report["sets"].items():
        cells: list[Cell] = [name]
        for who in ("specialist", "model")[: 1 + both]:
            found, presence = row[who], row[who]["presence"]
            cells += [found["miou"], found["pixel_accuracy"], presence["average_precision"], presence["f1"]]
        if both:
            cells.append(row["model"]["miou"] / row["specialist"]["miou"] if row["specialist"]["miou"] else None)
        rows.append(cells)
    return markdown_table(headings, rows)


@experiment.command(
    epilog="""\b
Examples:
  lasagna experiment probe --data coco_panoptic
  lasagna experiment probe --data msrc --data ccp --against nano --json
"""
)
@_data
@click.option("--image-size", default=512, show_default=True, type=click.IntRange(64), help="Longest side of a photo.")
@click.option("--split", default="val", show_default=True, help="The split that is scored.")
@click.option("--against", "checkpoint", help="Score this checkpoint beside it (nano, a folder).")
@_common
def probe(
    folders: tuple[Path, ...],
    image_size: int,
    split: str,
    checkpoint: str | None,
    as_json: bool,
    document: Path | None,
) -> None:
    """Presence by logistic regression on the frozen backbone's pooled features, chosen and fitted on train alone."""
    sets = [(Folder(folder, "train"), Folder(folder, split)) for folder in folders]

    from lab.backbone import make_backbone
    from lab.paper.probe import FOLDS, POOLINGS, choose_probe, pool_features, score_probe
    from lasagna import Lasagna

    model = asked_everything(Lasagna.from_pretrained(checkpoint, device="cpu")) if checkpoint else None
    encoder = make_backbone(image_size)
    report: dict[str, Any] = {"image_size": image_size, "sets": {}, "environment": describe_machine("cpu", *PACKAGES)}
    if model:
        report["model_version"] = model.version
    for train, scored in sets:
        with progress_bar(Console(stderr=True), f"features of {train.name}", len(train) + len(scored)) as advance:
            known, asked = (pool_features(encoder, dataset, advance) for dataset in (train, scored))
        with progress_bar(Console(stderr=True), "cross-validation", len(POOLINGS) * FOLDS) as advance:
            choice = choose_probe(known, advance)
        metrics = score_probe(known, asked, choice)
        row: dict[str, Any] = {
            "train_images": len(train),
            "images": len(scored),
            "classes": len(train.classes),
            "pooling": choice.pooling,
            "strength": choice.strength,
            "train_average_precision": choice.average_precision,
            "average_precision": metrics.average_precision(),
            "f1": metrics.f1(),
            "absent_false_positive_rate": metrics.absent_false_positive_rate(),
            "calibration_error": metrics.calibration_error(),
        }
        if model:
            row["model"] = _evaluate(model, scored, model.version)
        report["sets"][scored.name] = row
    headings = ["data set", "images", "classes", "pooling, C", "AP inside train", "probe AP", "probe F1"]
    if model:
        headings += [f"{model.version} AP", "F1"]
    rows: list[list[Cell]] = []
    for name, row in report["sets"].items():
        cells: list[Cell] = [name, row["images"], row["classes"], f"{row['pooling']}, {row['strength']:g}"]
        cells += [row["train_average_precision"], row["average_precision"], row["f1"]]
        if model:
            cells += [row["model"]["presence"]["average_precision"], row["model"]["presence"]["f1"]]
        rows.append(cells)
    _show("probe", report, markdown_table(headings, rows), as_json, document)


@experiment.command(
    epilog="""\b
Examples:
  lasagna experiment order --data msrc --data atwork --document docs/lab/results.md
  lasagna experiment order --data circuit --corrected 0,5,10,20 --choices 2
"""
)
@_data
@click.option("--model", "checkpoint", default="nano", show_default=True, help="The checkpoint that pre-labels.")
@click.option("--split", default="val", show_default=True, help="The split that is put in order.")
@click.option("--limit", type=click.IntRange(4), help="At most so many photos of each set, evenly spread.")
@click.option("--corrected", type=Numbers(least=0), default="0", show_default=True,
              help="Photos of the train split that the instant head learns first; rows for each number.")  # fmt: skip
@click.option("--choices", default=1, show_default=True, type=click.IntRange(1),
              help="Random choices of the corrected photos; figures are their means.")  # fmt: skip
@_common
def order(
    folders: tuple[Path, ...],
    checkpoint: str,
    split: str,
    limit: int | None,
    corrected: tuple[int, ...],
    choices: int,
    as_json: bool,
    document: Path | None,
) -> None:
    """Does the score of a prediction put the photos first that need most work? Beside random order and simpler ones."""
    sets = [Folder(folder, split) for folder in folders]

    from lab.paper.review_order import mean_ordering, measure_orders, model_with_head
    from lasagna import Lasagna

    model = asked_everything(Lasagna.from_pretrained(checkpoint, device="cpu"))
    report: dict[str, Any] = {
        "model_version": model.version,
        "choices": choices,
        "sets": {},
        "environment": describe_machine("cpu", *PACKAGES),
    }
    rows: list[list[Cell]] = []
    for folder, dataset in zip(folders, sets, strict=True):
        count = len(spread(len(dataset), limit))
        report["sets"][dataset.name] = found = {}
        for number in corrected:
            measured = []
            for choice in range(choices if number else 1):
                if number:
                    with progress_bar(Console(stderr=True), f"corrections of {dataset.name}", number) as advance:
                        model_with_head(model, Folder(folder, "train"), number, choice, advance)
                with progress_bar(Console(stderr=True), f"{model.version} on {dataset.name}", count) as advance:
                    measured.append(measure_orders(model, dataset, limit, advance))
                model.use_head(None)
            edits, orders = mean_ordering(measured)
            found[number] = {"edits": edits, **{name: asdict(one) for name, one in orders.items()}}
            for name, one in orders.items():
                first = f"{one.first_quarter:.2f} ({one.interval[0]:.2f} to {one.interval[1]:.2f})"
                rows.append([dataset.name, count, number, edits, name, one.rank_correlation, first])
    headings = ["data set", "photos", "corrected", "edits per photo", "order", "rank correlation",
                "edits in the first quarter"]  # fmt: skip
    _show("order", report, markdown_table(headings, rows), as_json, document)


@experiment.command(
    epilog="""\b
Examples:
  lasagna experiment chunks --data coco_panoptic --limit 50 --document docs/lab/results.md
  lasagna experiment chunks --data ccp --chunk-size N/2 --json
"""
)
@click.option("--data", "folder", required=True, type=DataSetFolder(), help=f"What is asked: {DATA_HELP}.")
@click.option("--chunk-size", "size", default="N/4", show_default=True, help="Classes of one list: N/2, or a number.")
@click.option("--model", "checkpoint", default="nano", show_default=True, help="The checkpoint that is asked.")
@click.option("--split", default="val", show_default=True, help="The split that is scored.")
@click.option("--limit", type=click.IntRange(1), help="At most so many photos, evenly spread.")
@_common
def chunks(
    folder: Path, size: str, checkpoint: str, split: str, limit: int | None, as_json: bool, document: Path | None
) -> None:
    """Where does the loss from small class lists come from, presence or masks, and does anything remove it?"""
    dataset = Folder(folder, split)
    try:
        chunk = ChunkSize.parse(size).classes(len(dataset.classes))
    except ValueError as error:
        raise click.BadParameter(str(error), param_hint="--chunk-size") from error

    from lab.paper.chunk_remedies import ROWS, measure_remedies
    from lasagna import Lasagna

    model = asked_everything(Lasagna.from_pretrained(checkpoint, device="cpu"))
    count = len(spread(len(dataset), limit))
    what = f"{model.version}, lists of {chunk}, {dataset.name}"
    with progress_bar(Console(stderr=True), what, ROWS * count) as advance:
        found = list(measure_remedies(model, dataset, chunk, limit, advance))
    report = {"model_version": model.version, "data": dataset.name, "images": count, "classes_per_list": chunk}
    report |= {"rows": [asdict(one) for one in found], "environment": describe_machine("cpu", *PACKAGES)}
    headings = [
        f"{dataset.name} {split}, chunks of {chunk}",
        "mIoU",
        "presence F1",
        "presence AP",
        "absent said present",
    ]
    rows: list[list[Cell]] = []
    for one in found:
        presence = one.figures["presence"]
        figures = (one.figures["miou"], presence["f1"], presence["average_precision"])
        rows.append([one.name, *(percent(value) for value in (*figures, one.figures["absent_false_positive_rate"]))])
    _show("chunk-remedies", report, markdown_table(headings, rows), as_json, document)

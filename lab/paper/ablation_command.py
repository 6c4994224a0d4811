"""`lasagna experiment ablation` and `lasagna experiment unseen`: experiments that train by a recipe."""

import json
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from importlib.resources import files
from pathlib import Path
from typing import Any

import click
from rich.console import Console

from lab.names import asked_everything
from lab.paper.machine import describe_machine
from lab.paper.unseen import HIDDEN, Renamed, evaluate_names, hidden_names, hidden_recipe, synonyms, trained_names
from lasagna.checkpoint.folder import find_checkpoint
from lasagna.errors import DataError
from lasagna.progress import progress_bar
from training.data.sources import Source
from training.data.sources.folder import Folder
from training.data.spread import spread
from training.engine.run_report import TerminalReporter
from training.evaluation.plots import bar_plot
from training.evaluation.tables import Cell, markdown_table, replace_block, save_text
from training.recipe.files import read_recipe
from training.recipe.sequence import PRESETS
from training.recipe.values import Recipe

RECIPE = Path(str(files("training") / "recipes" / "ablation.yaml"))
LIMIT = click.option("--limit", type=click.IntRange(1), help="Score at most so many images of each set, evenly spread.")
DEVICE = click.option("--device", default="auto", show_default=True, help="auto, cpu or cuda.")
DOCUMENT = click.option("--document", type=click.Path(path_type=Path), help="Put the table into its block of it.")
JSON = click.option("--json", "as_json", is_flag=True, help="Print one JSON object on stdout instead of the table.")
OUT = click.option("--out", required=True, type=click.Path(path_type=Path), help="Folder of the runs; resumes.")
FROM = click.option(
    "--recipe", "path", default=RECIPE, type=click.Path(path_type=Path, exists=True), help="Base recipe."
)


@contextmanager
def _watch(what: str, length: int) -> Iterator[Callable[..., None]]:
    with progress_bar(Console(stderr=True), what, length) as advance:
        yield advance


def _train(recipe: Any, device: str) -> None:
    from training.engine.run import train

    with TerminalReporter(recipe) as reporter:
        reporter.console.print(f"training {recipe.output}")
        train(recipe, device, reporter)


@click.command(
    epilog="""\b
Examples:
  lasagna experiment ablation --out runs/ablation
  lasagna experiment ablation --out runs/ablation --seeds 1 --rows lisa,order --limit 20 optimiser.steps=100
  lasagna experiment ablation --out runs/ablation --vision-from nano --document docs/lab/results.md
"""
)
@OUT
@FROM
@click.option("--seeds", default=2, show_default=True, type=click.IntRange(1), help="Runs per row: seeds 1, 2, ...")
@click.option("--rows", help="Only these, with commas: lisa, class_list, random_list, negatives, order.")
@click.option(
    "--finished", is_flag=True, help="Train and score nothing: a table of the runs that are finished in --out."
)
@click.option("--vision-from", help="A checkpoint whose image encoder and mask decoder every run starts with.")
@LIMIT
@DEVICE
@DOCUMENT
@JSON
@click.argument("changes", nargs=-1, metavar="[KEY=VALUE]...")
def ablation(
    out: Path,
    path: Path,
    seeds: int,
    rows: str | None,
    finished: bool,
    vision_from: str | None,
    limit: int | None,
    device: str,
    document: Path | None,
    as_json: bool,
    changes: tuple[str, ...],
) -> None:
    """The paper's Table 5: one recipe trained once per strategy and seed, and what each gives."""
    from lab.paper.ablation import EXACT, ROWS, ablation_table, is_finished, run_row, summarise, vision_start

    wanted = tuple(name.strip() for name in rows.split(",")) if rows else tuple(PRESETS)
    unknown = [name for name in wanted if name not in PRESETS]
    if unknown:
        raise click.UsageError(f"--rows: {', '.join(unknown)} is none of {', '.join(PRESETS)}")
    base = read_recipe(path, changes).recipe
    sets = list(base.semantic)
    results = []
    for seed in range(1, seeds + 1):
        recipe = replace(base, seed=seed)
        if vision_from:
            recipe = vision_start(recipe, find_checkpoint(vision_from), out / f"start-seed{seed}")
        for row in (*ROWS, *EXACT):
            if row.preset in wanted and (not finished or is_finished(recipe, row, seed, out, sets, limit)):
                found = run_row(recipe, row, seed, out, sets, limit, lambda one: _train(one, device), _watch)
                results.append(found)
    if not results:
        raise DataError(f"{out}: no run of this recipe is finished; leave --finished out to go on with them")
    order = [row.title for row in (*ROWS, *EXACT)]
    summary = summarise(sorted(results, key=lambda one: order.index(one["row"])), sets)
    table = ablation_table(summary, sets)
    report = {"summary": summary, "runs": results, "limit": limit, "environment": describe_machine(device)}
    save_text(out / "ablation.json", json.dumps(report, indent=1, ensure_ascii=False, allow_nan=False) + "\n")
    save_text(out / "ablation.md", table + "\n")
    series = {f"{name} mIoU": [_percent(row["miou"][name]) for row in summary] for name in sets}
    for key, title in (("f1", "presence F1"), ("absent_false_positive_rate", "absent said present")):
        series[title] = [_percent(row[key]) for row in summary]
    bar_plot(out / "table-5.svg", [row["row"] for row in summary], series, "percent", "Strategies, added one by one")
    click.echo(json.dumps(report, indent=1, ensure_ascii=False, allow_nan=False) if as_json else table)
    if document:
        replace_block(document, "table-5", table)


def _percent(value: tuple[float, float] | None) -> float | None:
    return None if value is None else 100 * value[0]


@click.command(
    epilog="""\b
Examples:
  lasagna experiment unseen --out runs/unseen
  lasagna experiment unseen --out runs/unseen --recipe training/recipes/nano.yaml --hide "dog, cat" optimiser.steps=500
"""
)
@OUT
@FROM
@click.option("--hide", help="Class names that training never sees, with commas; default: twenty of COCO's.")
@click.option("--without", multiple=True, default=("msrc",), show_default=True, help="Data set that is not trained on.")
@click.option("--ask", multiple=True, help="Data set to score; default: the recipe's, with those left out of it.")
@LIMIT
@DEVICE
@DOCUMENT
@JSON
@click.argument("changes", nargs=-1, metavar="[KEY=VALUE]...")
def unseen(
    out: Path,
    path: Path,
    hide: str | None,
    without: tuple[str, ...],
    ask: tuple[str, ...],
    limit: int | None,
    device: str,
    document: Path | None,
    as_json: bool,
    changes: tuple[str, ...],
) -> None:
    """Train without some names and one data set; score names that are seen, their synonyms, and names never seen."""
    base = read_recipe(path, changes).recipe
    hidden = hidden_names(hide or HIDDEN)
    recipe = hidden_recipe(base, hidden, without, out)
    if not (recipe.output / "checkpoint" / "config.json").exists() or (recipe.output / "states").exists():
        _train(recipe, device)  # goes on, or finds itself finished
    from lasagna import Lasagna

    model = asked_everything(Lasagna.from_pretrained(recipe.output / "checkpoint", device=device))
    sets = _score_names(model, base, ask or tuple(base.semantic), trained_names(recipe), limit)
    report = {
        "hidden": hidden,
        "without": without,
        "model_version": model.version,
        "sets": sets,
        "environment": describe_machine(device),
    }
    table = _names_table(sets)
    text = json.dumps(report, indent=1, ensure_ascii=False, allow_nan=False)
    save_text(out / "unseen.json", text + "\n")
    save_text(out / "unseen.md", table + "\n")
    click.echo(text if as_json else table)
    if document:
        replace_block(document, "unseen", table)


def _score_names(
    model: Any, base: Recipe, names: Sequence[str], trained: Collection[str], limit: int | None
) -> dict[str, dict[str, Any]]:
    """Of each data set, and of each with its names reworded: the figures of the groups of its names."""
    found: dict[str, dict[str, Any]] = {}
    for name in names:
        folder = Folder(base.data / name, "val")
        asked: list[tuple[str, Source]] = [(name, folder)]
        if reworded := synonyms(folder.classes, trained):
            asked.append((f"{name}, reworded", Renamed(folder, reworded)))
        for title, source in asked:
            with _watch(f"{title} val", len(spread(len(source), limit))) as advance:
                found[title] = evaluate_names(model, source, trained, advance, limit=limit)
    return found


def _names_table(sets: Mapping[str, Mapping[str, Any]]) -> str:
    figures = ("classes", "miou", "average_precision", "prevalence")
    rows: list[list[Cell]] = [
        [title, group, len(found["names"]), *(found[key] for key in figures)]
        for title, groups in sets.items()
        for group, found in groups.items()
    ]
    headings = ["data set", "names", "asked", "of them in a photo", "mIoU", "presence AP", "AP of guessing"]
    return markdown_table(headings, rows)

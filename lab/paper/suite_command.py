"""Runs a suite: parts with progress bars, then its tables as Markdown, JSON and plots in the output folder."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import click
import numpy as np
from rich.console import Console

from lab.paper.machine import describe_machine
from lab.paper.published import TABLE_6
from lab.paper.suite import Runner, SuitePart, read_suite
from lab.paper.suite_tables import PAPER, Table, suite_tables
from lasagna.progress import progress_bar
from training.evaluation.metrics import Reliability
from training.evaluation.plots import bar_plot, line_plot, reliability_plot
from training.evaluation.tables import replace_block, save_text


def run_suite(config: Path, device: str, dtype: str, document: Path | None, as_json: bool) -> int:
    """Runs what is missing of a suite and writes `tables.md`, `figures.json` and the plots.

    Returns:
        How many images and records could not be scored.
    """
    runner = Runner(read_suite(config), device, dtype)
    runner.check()
    console = Console(stderr=True)
    found: list[tuple[SuitePart, dict[str, Any]]] = []
    for number, part in enumerate(runner.parts, 1):
        what = f"{part.table.replace('_', ' ')}: {part.model} on {part.data} {part.chunk or ''}".strip()
        figures = runner.finished(part)
        if figures is None:
            with progress_bar(console, f"[{number}/{len(runner.parts)}] {what}", runner.length(part)) as advance:
                figures = runner.run(part, advance)
        else:
            console.print(f"[{number}/{len(runner.parts)}] {what}: from before", markup=False)
        found.append((part, figures))
    tables = suite_tables(runner)
    _write(runner, tables, found)
    report = {
        "parts": [_entry(runner, part, figures) for part, figures in found],
        "environment": describe_machine(device),
    }
    text = json.dumps(report, indent=1, ensure_ascii=False, allow_nan=False)
    save_text(runner.suite.output / "figures.json", text + "\n")
    if document:
        for table in tables:
            replace_block(document, table.name, table.text)
    click.echo(text if as_json else _markdown(tables))
    failures = [(part, *item) for part, figures in found for item in figures["failures"].items()]
    for part, name, reason in failures:
        click.secho(f"not scored: {part.data} {name}: {reason}", fg="red", err=True)
    return len(failures)


def _entry(runner: Runner, part: SuitePart, figures: Mapping[str, Any]) -> dict[str, Any]:
    names = {"table": part.table, "model": part.model, "version": runner.version(part), "data": runner.column(part)}
    return {**names, "chunk_size": part.chunk, **figures}


def _markdown(tables: list[Table]) -> str:
    return "\n\n".join(f"## {table.title}\n\n{table.text}" for table in tables)


def _write(runner: Runner, tables: list[Table], found: list[tuple[SuitePart, dict[str, Any]]]) -> None:
    output = runner.suite.output
    save_text(output / "tables.md", _markdown(tables) + "\n")
    models = list(runner.suite.models)
    for name, (paper, metrics) in PAPER.items():
        ours = {(p.model, runner.column(p)): f[metrics[0][0]] for p, f in found if p.table == name}
        if ours:
            columns = list(dict.fromkeys(data for _, data in ours))
            series = {m: [_percent(ours.get((m, data))) for data in columns] for m in models}
            shown = {m: values for m, values in series.items() if any(value is not None for value in values)}
            title = f"{paper.title} (ours)"
            bar_plot(output / f"table-{paper.number}.svg", columns, shown, f"{metrics[0][1]} in percent", title)
    _plot_chunks(output, [(p, runner.column(p), f) for p, f in found if p.table == "chunk_sizes"])
    for model in models:
        diagrams = {
            runner.column(part): _reliability(figures["reliability"])
            for part, figures in found
            if part.model == model and part.table == "closed_set" and figures["reliability"]
        }
        if diagrams:
            reliability_plot(output / f"reliability-{model.replace('/', '_')}.svg", diagrams, f"Presence: {model}")


def _plot_chunks(output: Path, found: list[tuple[SuitePart, str, dict[str, Any]]]) -> None:
    if not found:
        return
    sizes = list(dict.fromkeys(part.chunk or "" for part, _, _ in found))
    series: dict[str, list[float | None]] = {
        f"paper: {column}": [{row: f for _, row, f in TABLE_6.rows}.get(size, (None, None))[i] for size in sizes]
        for i, column in enumerate(TABLE_6.columns)
    }
    for part, data, figures in found:
        values = series.setdefault(f"{part.model}: {data}", [None] * len(sizes))
        values[sizes.index(part.chunk or "")] = _percent(figures["miou"])
    line_plot(output / "table-6.svg", sizes, series, ("classes per list", "mIoU in percent"), TABLE_6.title)


def _percent(value: float | None) -> float | None:
    return None if value is None else 100 * value


def _reliability(values: Mapping[str, Any]) -> Reliability:
    predicted, observed = (np.array(values[key], np.float64) for key in ("predicted", "observed"))
    return Reliability(np.array(values["count"]), predicted, observed)

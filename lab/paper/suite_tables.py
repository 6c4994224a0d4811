"""The figures of a suite as the paper's tables: ours in rows below the paper's, in percent as printed there.

What always holds: a data set that the paper has too is in the paper's column; every other one of ours has a column of
its own, in which the paper's rows have a dash. A table of which nothing was measured is left out.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from lab.paper.published import TABLE_1, TABLE_2, TABLE_3, TABLE_4, TABLE_6, PaperTable
from lab.paper.suite import Runner, SuitePart
from training.evaluation.tables import Cell, figure, markdown_table, percent

Ours = Mapping[str, Mapping[str, Mapping[str, Any]]]
"""Row -> column key -> figures."""

PAPER: dict[str, tuple[PaperTable, tuple[tuple[str, str], ...]]] = {
    "closed_set": (TABLE_1, (("miou", "mIoU"),)),
    "open_set": (TABLE_2, (("miou", "mIoU"),)),
    "referring": (TABLE_3, (("ciou", "cIoU"),)),
    "generalised": (TABLE_4, (("ciou", "cIoU"), ("giou", "gIoU"), ("n_acc", "N-acc"), ("t_acc", "T-acc"))),
}
"""The table of the paper, and the figures of each of our data sets: key in the report, name."""


@dataclass(frozen=True)
class Table:
    """A table of the suite, as Markdown.

    Attributes:
        name: The name of its block in a document, and of its files.
        title: Heading.
        text: Markdown.
    """

    name: str
    title: str
    text: str


def suite_tables(runner: Runner) -> list[Table]:
    """All tables for which the suite has figures."""
    found: dict[str, list[tuple[SuitePart, dict[str, Any]]]] = {}
    for part, figures in runner.results():
        found.setdefault(part.table, []).append((part, figures))
    tables = []
    for name, (paper, metrics) in PAPER.items():
        parts = found.get(name, [])
        if parts:
            ours: dict[str, dict[str, dict[str, Any]]] = {}
            for part, figures in parts:
                ours.setdefault(part.model, {})[runner.column(part)] = figures
            text = beside_paper(paper, ours, metrics)
            tables.append(Table(f"table-{paper.number}", f"Table {paper.number}: {paper.title}", text))
    if "chunk_sizes" in found:
        text = _chunk_sizes([(part, runner.column(part), figures) for part, figures in found["chunk_sizes"]])
        tables.append(Table("table-6", f"Table 6: {TABLE_6.title}", text))
    semantic = [item for name in ("closed_set", "open_set") for item in found.get(name, [])]
    if semantic:
        rows = [(part.model, runner.column(part), figures) for part, figures in semantic]
        tables.append(Table("presence", "Is a class in the image at all?", presence_table(rows)))
    return tables


def beside_paper(paper: PaperTable, ours: Ours, metrics: Sequence[tuple[str, str]]) -> str:
    """A table of the paper with our rows.

    Args:
        metrics: Keys of our figures and their names. Where a data set has a column of the paper, they are in the order
            of its columns there.
    """
    extra = dict.fromkeys(key for figures in ours.values() for key in figures if key not in paper.keys)
    headings = ["", "method", *paper.columns]
    for key in extra:
        headings += [f"{key} {name}" if len(metrics) > 1 else key for _, name in metrics]
    rows: list[list[Cell]] = [
        [kind, method, *(figure(value, 1) for value in figures), *[figure(None)] * len(extra) * len(metrics)]
        for kind, method, figures in paper.rows
    ]
    for method, figures in ours.items():
        row: list[Cell] = ["ours", method]
        seen: dict[str, int] = {}
        for key in paper.keys:
            place = seen[key] = seen.get(key, -1) + 1
            row.append(percent(figures[key][metrics[place][0]]) if key in figures else figure(None))
        for key in extra:
            row += [percent(figures[key][metric]) if key in figures else figure(None) for metric, _ in metrics]
        rows.append(row)
    return f"{paper.metric}, in percent.\n\n" + markdown_table(headings, rows)


def presence_table(rows: Sequence[tuple[str, str, Mapping[str, Any]]]) -> str:
    """(method, data set, figures of `Evaluation.as_dict`) as a table, in percent."""
    headings = ["method", "data set", "images", "mIoU", "precision", "recall", "F1", "AP", "absent said present", "ECE"]
    headings.append("ECE, each half calibrated on the other")
    lines: list[list[Cell]] = []
    for method, data, figures in rows:
        presence = figures["presence"]
        shown = [figures["miou"], *(presence[key] for key in ("precision", "recall", "f1", "average_precision"))]
        shown += [figures["absent_false_positive_rate"], figures["calibration_error"]]
        shown.append(figures["calibration_error_of_halves"])
        lines.append(
            [method, data, figures["images"], *(percent(value) for value in shown), figures["seconds_per_image"]]
        )
    return markdown_table([*headings, "s per image"], lines)


def _chunk_sizes(parts: Sequence[tuple[SuitePart, str, Mapping[str, Any]]]) -> str:
    paper = {size: figures for _, size, figures in TABLE_6.rows}
    headings = ["chunk size", *(f"paper: {column}" for column in TABLE_6.columns), "model", "data set", "lists"]
    headings += ["mIoU", "presence F1", "presence AP", "absent said present", "forwards per image", "s per image"]
    rows: list[list[Cell]] = []
    for part, data, figures in parts:
        size = part.chunk or ""
        theirs = paper.get(size, (None,) * len(TABLE_6.columns))
        shown = [figures["miou"], figures["presence"]["f1"], figures["presence"]["average_precision"]]
        shown.append(figures["absent_false_positive_rate"])
        forwards = figures["forwards"] / figures["images"] if figures["forwards"] and figures["images"] else None
        rows.append(
            [
                f"{size} ({figures['classes_per_list']})",
                *(figure(value, 1) for value in theirs),
                part.model,
                data,
                figures["lists"],
                *(percent(value) for value in shown),
                figure(forwards, 1),
                figure(figures["seconds_per_image"], 2),
            ]
        )
    return "mIoU and presence in percent.\n\n" + markdown_table(headings, rows)

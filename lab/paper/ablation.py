"""The paper's Table 5 at nano's scale: one recipe, trained once per strategy and seed, every run evaluated alike.

How a row is asked. LISA's model only ever saw questions whose one target is there, so it is asked class by class and
everything it is asked for is drawn (the paper, sections 1 and 3.2): every class counts as said present, and a pixel
goes to the class with the largest logit. The rows with a class list are asked once and answer freely, as in the paper:
which names, in which order, when to stop (`lab.paper.answering.FreeAnswers`); what they do not name is absent, whether
or not they have a token for that. The rows with negatives are also decoded exactly, every class in the question's
order, which is how the product uses them.

What always holds: the runs of one seed begin with the same weights and take the same steps; a run that was killed goes
on, a finished one is not trained or evaluated again.
"""

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from lab.paper.published import TABLE_5
from lab.paper.suite import Model, Runner, Suite, SuiteSet
from lasagna.checkpoint.weights import load_model
from lasagna.errors import ConfigError
from training.engine.start import prepare
from training.evaluation.tables import Cell, figure, markdown_table, percent
from training.recipe.files import recipe_from_values, to_values
from training.recipe.sequence import PRESETS
from training.recipe.values import Recipe


@dataclass(frozen=True)
class AblationRow:
    """One way to train and one way to ask.

    Attributes:
        preset: Of `training.recipe.sequence.PRESETS`.
        kind: Of `lab.paper.suite.Model`.
        title: As in the paper; the extra rows say what differs.
    """

    preset: str
    kind: Any
    title: str


PAPER_TITLES = dict(zip(PRESETS, (method for _, method, _ in TABLE_5.rows), strict=True))
ROWS = tuple(
    AblationRow(preset, "one_by_one" if preset == "lisa" else "free", PAPER_TITLES[preset]) for preset in PRESETS
)
EXACT = tuple(
    AblationRow(preset, "lasagna", f"{PAPER_TITLES[preset]}, decoded exactly") for preset in ("negatives", "order")
)


def row_recipe(recipe: Recipe, preset: str, seed: int, output: Path) -> Recipe:
    """The recipe of one run: the strategies of the preset, how long random lists are as in the base."""
    values = to_values(recipe)
    kept = {key: values["sequence"][key] for key in ("all_positives", "lengths")}
    values |= {"sequence": {**PRESETS[preset], **kept}, "seed": seed, "output": str(output)}
    return recipe_from_values(values)


def vision_start(recipe: Recipe, vision_from: Path, folder: Path) -> Recipe:
    """The recipe with a start checkpoint: a new model with the image encoder and mask decoder of a trained one.

    Args:
        recipe: Makes its model anew.
        vision_from: A checkpoint of the same shape; its language model is not used.
        folder: Where the start checkpoint is written, unless it is there.

    Raises ConfigError where the shapes differ.
    """
    if not (folder / "config.json").exists():
        run = prepare(recipe)
        parts = ("encoder.", "segmenter.")
        theirs = {key: value for key, value in load_model(vision_from).state_dict().items() if key.startswith(parts)}
        own = run.model.state_dict()
        wrong = [key for key in own if key.startswith(parts) and own[key].shape != getattr(theirs.get(key), "shape", 0)]
        if wrong:
            raise ConfigError(f"{vision_from}: {len(wrong)} weights do not fit the recipe's model, first {wrong[0]}")
        run.model.load_state_dict({**own, **{key: value.to(own[key].dtype) for key, value in theirs.items()}})
        run.save(folder)
    return replace(recipe, start=str(folder), model=None)


def row_suite(recipe: Recipe, row: AblationRow, run: Path, sets: Sequence[str], limit: int | None) -> Suite:
    """What a finished run is measured on: its data sets' val splits, and expressions made from them. Texts are asked
    once, however class lists are: another way to decode these changes nothing of them."""
    folders = {name: SuiteSet(path=recipe.data / name) for name in sets}
    texts = {} if row in EXACT else folders
    return Suite(
        output=run / "evaluation",
        data=recipe.data,
        models={row.title: Model(str(run / "checkpoint"), row.kind)},
        limit=limit,
        closed_set=folders,
        referring=texts,
        generalised=texts,
    )


def is_finished(recipe: Recipe, row: AblationRow, seed: int, out: Path, sets: Sequence[str], limit: int | None) -> bool:
    """Whether `run_row` would find everything in its folder."""
    run = out / f"{row.preset}-seed{seed}"
    if not _is_trained(run, row_recipe(recipe, row.preset, seed, run)):
        return False
    runner = Runner(row_suite(recipe, row, run, sets, limit), device="auto")
    return all(runner.finished(part) is not None for part in runner.parts)


def _wanted(recipe: Recipe) -> str:
    return json.dumps(to_values(recipe), sort_keys=True, default=str)


def _is_trained(run: Path, recipe: Recipe) -> bool:
    finished = run / "finished.json"
    return finished.exists() and finished.read_text(encoding="utf-8") == _wanted(recipe)


def run_row(
    recipe: Recipe,
    row: AblationRow,
    seed: int,
    out: Path,
    sets: Sequence[str],
    limit: int | None,
    train: Callable[[Recipe], Any],
    watch: Callable[[str, int], Any],
) -> dict[str, Any]:
    """Trains and evaluates one row with one seed, or takes from its folder what is there.

    Args:
        train: Trains a recipe to its output folder.
        watch: (what, length) to a context manager that gives a function to call after every image.

    Returns:
        `row`, `seed`, and per table and data set the figures.
    """
    run = out / f"{row.preset}-seed{seed}"
    trained = row_recipe(recipe, row.preset, seed, run)
    if not _is_trained(run, trained):
        train(trained)
        (run / "finished.json").write_text(_wanted(trained), encoding="utf-8")
    runner = Runner(row_suite(recipe, row, run, sets, limit), device="auto")
    runner.check()
    found: dict[str, dict[str, Any]] = {}
    for part in runner.parts:
        figures = runner.finished(part)
        if figures is None:
            with watch(f"{run.name} ({row.kind}): {part.table} {part.data}", runner.length(part)) as advance:
                figures = runner.run(part, advance)
        found.setdefault(part.table, {})[part.data] = figures
    return {"row": row.title, "preset": row.preset, "asked": row.kind, "seed": seed, **found}


def summarise(results: Sequence[Mapping[str, Any]], sets: Sequence[str]) -> list[dict[str, Any]]:
    """Per row, in the order of the results: each figure's mean over the seeds and its largest distance from it.

    Returns:
        Dicts of `row`, `preset`, `seeds` and the figures as (mean, spread): `miou` per set, and, as means over the
        sets, `f1`, `average_precision`, `absent_false_positive_rate`, `ciou`, `giou`, `n_acc`, `t_acc`.
    """
    rows: dict[str, list[Mapping[str, Any]]] = {}
    for result in results:
        rows.setdefault(result["row"], []).append(result)
    return [
        {
            "row": title,
            "preset": runs[0]["preset"],
            "asked": runs[0]["asked"],
            "seeds": [run["seed"] for run in runs],
            "miou": {name: _over([run["closed_set"][name]["miou"] for run in runs]) for name in sets},
            **{
                key: _over([_mean(_presence(run["closed_set"][name], key) for name in sets) for run in runs])
                for key in ("f1", "average_precision", "absent_false_positive_rate")
            },
            "referring_ciou": _over([_mean(_texts(run, "referring", "ciou")) for run in runs]),
            **{
                key: _over([_mean(_texts(run, "generalised", key)) for run in runs])
                for key in ("giou", "n_acc", "t_acc")
            },
        }
        for title, runs in rows.items()
    ]


def _presence(figures: Mapping[str, Any], key: str) -> float | None:
    value: float | None = figures[key] if key in figures else figures["presence"][key]
    return value


def _texts(run: Mapping[str, Any], table: str, key: str) -> list[float | None]:
    return [figures[key] for figures in run.get(table, {}).values()]


def _mean(values: Iterable[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return float(np.mean(known)) if known else None


def _over(values: Sequence[float | None]) -> tuple[float, float] | None:
    known = [value for value in values if value is not None]
    if not known:
        return None
    mean = float(np.mean(known))
    return mean, float(max(abs(value - mean) for value in known))


def ablation_table(summary: Sequence[Mapping[str, Any]], sets: Sequence[str]) -> str:
    """The paper's Table 5 with ours beside, in percent; ± is the largest distance of a seed from the mean."""
    paper = {method: figures for _, method, figures in TABLE_5.rows}
    headings = ["components", *(f"paper: {column}" for column in TABLE_5.columns), "seeds"]
    headings += [*(f"{name} mIoU" for name in sets), "presence F1", "presence AP", "absent said present"]
    headings += ["referring cIoU", "generalised gIoU", "N-acc", "T-acc"]
    keys = ("f1", "average_precision", "absent_false_positive_rate", "referring_ciou", "giou", "n_acc", "t_acc")

    def spread(value: tuple[float, float] | None, seeds: int) -> str:
        if value is None:
            return figure(None)
        return percent(value[0]) + (f" ± {percent(value[1])}" if seeds > 1 else "")

    rows: list[list[Cell]] = []
    for row in summary:
        seeds = len(row["seeds"])
        theirs = paper.get(row["row"], (None,) * len(TABLE_5.columns))
        rows.append(
            [
                row["row"],
                *(figure(value, 1) for value in theirs),
                seeds,
                *(spread(row["miou"][name], seeds) for name in sets),
                *(spread(row[key], seeds) for key in keys),
            ]
        )
    return "In percent.\n\n" + markdown_table(headings, rows)

"""`lasagna bench instant`: the instant head after 1, 2, 5, 10, 20 and 40 corrections (`lab.bench.instant_curves`)."""

import json
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import click
from rich.console import Console

from lab.bench.command import Numbers, Row, report
from lasagna.errors import DataError
from lasagna.progress import progress_bar
from training.data.sources.folder import Folder
from training.evaluation.plots import line_plot

FIGURES = ("miou", "ap", "f1", "fpr", "ece", "change", "update_seconds", "extra_seconds")
KNOWN = ("cwfid", "msrc", "atwork", "circuit", "potholes", "mushrooms", "idd", "animals", "camvid")


@click.command(
    epilog="""\b
Examples:
  lasagna bench instant --set circuit --set animals
  lasagna bench instant --set msrc --set cwfid --features imagenet --counts 5,10,20,40
  lasagna bench instant --json --out instant.json --plot docs/lab/instant.svg --resume instant.jsonl
"""
)
@click.option("--root", type=click.Path(path_type=Path, exists=True, file_okay=False), required=True,
              envvar="LASAGNA_DATA", show_envvar=True, help="Folder of the data sets (docs/data.md).")  # fmt: skip
@click.option("--set", "names", multiple=True, help=f"A data set. Repeatable.  [default: {', '.join(KNOWN)}]")
@click.option("--counts", type=Numbers(), default="1,2,5,10,20,40", show_default=True, help="Numbers of corrections.")
@click.option("--choices", default=2, show_default=True, type=click.IntRange(1), help="Choices of photos.")
@click.option("--photos", default=100, show_default=True, type=click.IntRange(1), help="Most val photos of each set.")
@click.option("--features", type=click.Choice(["model", "imagenet"]), default="model", show_default=True,
              help="imagenet: the backbone with its ImageNet weights, and the head alone.")  # fmt: skip
@click.option("--model", "model_name", default="nano", show_default=True, help="Shipped name, folder, hub id.")
@click.option("--resume", type=click.Path(path_type=Path, dir_okay=False), metavar="FILE",
              help="Keep each row there; what it has is not measured again, and --plot draws all of it.")  # fmt: skip
@click.option("--plot", type=click.Path(path_type=Path, dir_okay=False), help="Draw mIoU by corrections, as SVG.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object instead of the table.")
@click.option("--out", type=click.Path(path_type=Path, dir_okay=False), help="Write the JSON to a file too.")
def instant(
    root: Path,
    names: tuple[str, ...],
    counts: tuple[int, ...],
    choices: int,
    photos: int,
    features: str,
    model_name: str,
    resume: Path | None,
    plot: Path | None,
    as_json: bool,
    out: Path | None,
) -> None:
    """Measure what the instant head knows after a few corrections.

    Corrections are photos of the train split, scored are photos of the val split, at their own size. Change is what is
    left to correct, as a share of the pixels; update is from an encoded photo to the new head; extra is what an answer
    takes longer than the model alone. Seconds are of the processor: run it with OMP_NUM_THREADS=1.
    """
    from lab.bench.instant_curves import BackboneEyes, Eyes, ModelEyes, measure_set, possible_counts
    from lasagna.assistant.lasagna import Lasagna

    chosen = list(names or KNOWN)
    missing = [name for name in chosen if not (root / name).is_dir()]
    if missing:
        raise DataError(f"{root} has no data set {', '.join(missing)}; name those that it has with --set")
    asked = features != "imagenet"
    eyes: Eyes = ModelEyes(Lasagna.from_pretrained(model_name)) if asked else BackboneEyes()
    work = 0
    for name in chosen:
        train, val = (len(Folder(root / name, split)) for split in ("train", "val"))
        work += min(photos, val) + choices * possible_counts(counts, train)[-1]
    rows: list[Row] = []
    kept = Kept(resume, {"features": features, "model": model_name, "photos": photos})
    with progress_bar(Console(stderr=True), "Correcting", work) as advance:
        for name in chosen:
            for row in measure_set(eyes, root / name, counts, choices, photos, advance, kept.of(name)):
                kept.add(row)
                rows.append(row)
    shown = [mean_row(rows, name, count) for name, count in _pairs(rows)]
    if plot is not None:
        draw(plot, kept.every)
    setting: Row = {"features": features, "model": model_name, "choices": choices, "photos": photos}
    report("instant", setting, shown, device="cpu", as_json=as_json, out=out)


class Kept:
    """Rows that were measured, one JSON object a line, under what they were measured with.

    Args:
        path: None: nothing is kept beyond this run.
        setting: What a row depends on beside its set.

    Raises:
        DataError: The file holds something else.
    """

    def __init__(self, path: Path | None, setting: Row) -> None:
        self._path, self._setting = path, setting
        self.every: list[Row] = []
        if path is not None and path.exists():
            try:
                self.every = [dict(json.loads(line)) for line in path.read_text(encoding="utf-8").splitlines()]
                keys = {*setting, "set", "choice", "corrections"}
                if not all(keys <= set(row) for row in self.every):
                    raise ValueError(f"every line needs {', '.join(sorted(keys))}")
            except (ValueError, TypeError) as error:
                raise DataError(f"{path} does not hold rows of this benchmark ({error}); name another file") from error

    def of(self, name: str) -> list[Row]:
        """The rows of a set that were measured with this setting."""
        return [row for row in self.every if row["set"] == name and self._setting.items() <= row.items()]

    def add(self, row: Row) -> None:
        """Keeps a row, unless it is there."""
        key = ("choice", "corrections")
        if any([known[each] for each in key] == [row[each] for each in key] for known in self.of(row["set"])):
            return
        self.every.append({**row, **self._setting})
        if self._path is not None:
            with self._path.open("a", encoding="utf-8") as file:
                file.write(json.dumps(self.every[-1]) + "\n")


def _pairs(rows: Sequence[Row]) -> list[tuple[str, int]]:
    return list(dict.fromkeys((row["set"], row["corrections"]) for row in rows))


def mean_row(rows: Sequence[Row], name: str, count: int) -> Row:
    """The mean over the choices of photos of one set and number of corrections; and how often the head served."""
    own = [row for row in rows if (row["set"], row["corrections"]) == (name, count)]
    means: Row = {"set": name, "corrections": count}
    for figure in FIGURES:
        values = [row[figure] for row in own if row.get(figure) is not None]
        means[figure] = round(statistics.fmean(values), 4) if values else None
    means["miou_of_each_choice"] = ", ".join(f"{row['miou']:.3f}" for row in own)
    means["serves"] = f"{sum(bool(row.get('serves')) for row in own)}/{len(own)}"
    return means


def draw(path: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    """mIoU by the number of corrections, a line for each set and kind of features: the mean of the choices."""
    counts = sorted({row["corrections"] for row in rows})
    found: dict[str, dict[int, list[float]]] = {}
    for row in rows:
        line = row["set"] + (" (backbone alone)" if row["features"] == "imagenet" else "")
        found.setdefault(line, {}).setdefault(row["corrections"], []).append(row["miou"])
    series = {
        line: [statistics.fmean(by_count[count]) if count in by_count else None for count in counts]
        for line, by_count in found.items()
    }
    line_plot(path, [str(n) for n in counts], series, ("corrections", "mIoU"), "After a few corrections, at once")

"""`lasagna bench peer`: what one would pick instead, with random weights, behind the same contract as nano.

SAM 3 (arXiv 2511.16719) reads one concept per prompt; the same network is asked in three ways: one name at a time,
blocks of names with the photo's features shared, and blocks with the mask head for present names alone. EoMT answers a
closed list in one pass. nano answers the list in one question. Times do not depend on what weights have learnt; how
many names are present does matter, so the threshold is set for a share of them. Nothing is fetched.
"""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import click
import numpy as np

from lab.bench.command import Numbers, Row, both_times, report, sample_classes, sample_images
from lab.bench.peer_models import SIZES, write_model
from lab.bench.plot import plot_times
from lasagna.checkpoint.folder import Calibration
from lasagna.contract.model import ClassListModel
from lasagna.masks.segmentation import Segmentation
from lasagna.models.loading import load_model
from lasagna.models.sam3 import Sam3

WAYS = {
    "nano": "nano",
    "eomt": "EoMT, closed list",
    "sam3_presence_first": "SAM 3, presence first",
    "sam3_blocks": "SAM 3, blocks",
    "sam3_single": "SAM 3, one name at a time",
}
"""What is timed, and its name in the plot. Rows have `seconds_` (on the clock) and `processor_` of each."""


@click.command(
    epilog="""\b
Examples:
  lasagna bench peer --size tiny --classes 1,4
  lasagna bench peer --size small --classes 1,20,133 --plot docs/lab/peer.svg
  lasagna bench peer --size real --classes 1,20,133 --device cuda --dtype bfloat16 --batch 32
"""
)
@click.option("--classes", "counts", type=Numbers(), default="1,20,133", show_default=True, help="Lengths of the list.")
@click.option("--present", "share", type=click.FloatRange(0, 1), default=0.2, show_default=True,
              help="Share of the names that is to be present: the threshold of each model is set for it.")  # fmt: skip
@click.option("--batch", type=click.IntRange(1), default=8, show_default=True, help="Names per block of SAM 3.")
@click.option("--size", type=click.Choice(SIZES), default="small", show_default=True,
              help="Of SAM 3 and EoMT: real; small: the real heads behind a small tower; tiny: for tests.")  # fmt: skip
@click.option("--device", default="auto", show_default=True, help="auto, cpu, cuda or cuda:N.")
@click.option("--dtype", type=click.Choice(["float32", "bfloat16", "float16"]), default="float32", show_default=True)
@click.option("--repeats", type=click.IntRange(1), default=1, show_default=True, help="Median of so many.")
@click.option("--plot", type=click.Path(path_type=Path, dir_okay=False), help="Write the curves to a file.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object instead of the table.")
@click.option("--out", type=click.Path(path_type=Path, dir_okay=False), help="Write the JSON to a file too.")
def peer(
    counts: tuple[int, ...],
    share: float,
    batch: int,
    size: str,
    device: str,
    dtype: str,
    repeats: int,
    plot: Path | None,
    as_json: bool,
    out: Path | None,
) -> None:
    """One photo, class lists of these lengths, from pixels to masks.

    same_decisions: the three ways of SAM 3 find the same names present; same_masks: the share of the present names
    whose masks differ in less than 1 pixel of 1000.
    """
    with TemporaryDirectory(prefix="lasagna-peer-") as folder:
        models = peer_models(Path(folder), size, max(counts), device, dtype)
        rows = [_row(models, count, share, batch, repeats, dtype) for count in counts]
        parameters = {name: _parameters(model) for name, model in models.items()}
        setting: Row = {"size": size, "names per block": batch, "present": share, "repeats": repeats}
        setting |= {f"parameters of {name}": count for name, count in parameters.items()}
        report("peer", setting, rows, device=models["sam3"].device, as_json=as_json, out=out)
    if plot is not None:
        # On a CPU the processor's work is what other work on the machine does not change.
        figure = "processor" if models["sam3"].device == "cpu" else "seconds"
        series = {title: [1000 * float(row[f"{figure}_{way}"]) for row in rows] for way, title in WAYS.items()}
        plot_times(plot, [int(row["classes"]) for row in rows], series, f"photo to masks, size {size}, {dtype}")


def peer_models(folder: Path, size: str, count: int, device: str, dtype: str) -> dict[str, ClassListModel]:
    """nano, and SAM 3 and EoMT of a size with random weights; EoMT's list has the first `count` names."""
    given = {"device": device, "dtype": dtype, "say": lambda line: None}
    written = {kind: write_model(kind, folder / kind, size, names=sample_classes(count)) for kind in ("sam3", "eomt")}
    return {"nano": load_model("nano", **given)} | {kind: load_model(path, **given) for kind, path in written.items()}  # type: ignore[arg-type]


def _parameters(model: Any) -> int:
    network = getattr(model, "network", None) or model.model
    return sum(one.numel() for one in network.parameters())


def _row(models: Mapping[str, ClassListModel], count: int, share: float, batch: int, repeats: int, dtype: str) -> Row:
    photo, names = sample_images(1)[0], sample_classes(count)
    for model in models.values():
        find_share(model, photo, names, share)
    sam3 = models["sam3"]
    assert isinstance(sam3, Sam3)
    answers: dict[str, Segmentation] = {}

    def ask(way: str, model: ClassListModel, chunk: int | None = None, presence_first: bool = True) -> None:
        if isinstance(model, Sam3):
            model.presence_first = presence_first
            model.forget_texts()
        answers[way] = model.segment(photo, names, chunk_size=chunk, guess_unknown=True)

    ways: dict[str, Callable[[], Any]] = {
        "nano": partial(ask, "nano", models["nano"]),
        "eomt": partial(ask, "eomt", models["eomt"]),
        "sam3_presence_first": partial(ask, "sam3_presence_first", sam3, batch),
        "sam3_blocks": partial(ask, "sam3_blocks", sam3, batch, False),
        "sam3_single": partial(ask, "sam3_single", sam3, 1, False),
    }
    times = both_times(ways, repeats, sam3.device)
    of_sam3 = [answers[way] for way in ways if way.startswith("sam3")]
    return {
        "classes": count,
        "dtype": dtype,
        **{f"seconds_{way}": times[way][0] for way in WAYS},
        **{f"processor_{way}": times[way][1] for way in WAYS},
        "present_of_sam3": len(of_sam3[0].present),
        "present_of_nano": len(answers["nano"].present),
        "same_decisions": all([a.state for a in one] == [a.state for a in of_sam3[0]] for one in of_sam3),
        "same_masks": _same_masks(of_sam3),
    }


def find_share(model: ClassListModel, photo: Any, names: Sequence[str], share: float) -> None:
    """Sets the model's offset so that about a share of the names is present: random weights find all or none."""
    model.calibration = Calibration()
    for _ in range(2 if model.abilities.training else 1):  # an answer of nano depends on the decisions before it
        offset = model.calibration.offset
        answer = model.segment(photo, names, guess_unknown=True)  # nano was not taught all of them
        found = np.array([one.probability for one in answer]).clip(1e-7, 1 - 1e-7)
        margins = np.log(found / (1 - found)) + offset
        model.calibration = Calibration(offset=float(np.quantile(margins, 1 - share)) if share else 1e9)


def _same_masks(answers: Sequence[Segmentation]) -> float:
    """Of the present names of the first answer, the share whose mask is that of the others but for 0.1 % of pixels."""
    same = [
        all(
            other.mask is not None and one.mask is not None and float((one.mask != other.mask).mean()) < 1e-3
            for other in (answer[one.name] for answer in answers[1:])
        )
        for one in answers[0].present
    ]
    return float(np.mean(same)) if same else 1.0

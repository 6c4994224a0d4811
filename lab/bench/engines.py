"""`lasagna bench engines`: nano's encoder in torch and in OpenVINO, on real photos, side by side."""

import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import click
import numpy as np
from rich.console import Console

from lab.bench.command import Dtypes, Row, report, sample_classes
from lab.names import asked_everything
from lasagna.progress import progress_bar
from training.commands.options import DATA_HELP, DataSetFolder
from training.data.sources.folder import Folder
from training.data.spread import spread
from training.evaluation.metrics import SegmentationMetrics
from training.evaluation.scoring import read_photo, score_photo

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from lasagna.assistant.lasagna import Lasagna
    from lasagna.masks.segmentation import Segmentation


@click.command(
    epilog="""\b
Examples:
  OMP_NUM_THREADS=1 lasagna bench engines --data msrc
  lasagna bench engines --data coco_panoptic --limit 50 --dtype float32,bfloat16 --json
"""
)
@click.option("--data", "folder", type=DataSetFolder(), required=True, help=f"What is asked: {DATA_HELP}.")
@click.option("--split", default="val", show_default=True)
@click.option("--limit", default=30, show_default=True, type=click.IntRange(1), help="Photos, evenly spread.")
@click.option(
    "--classes", default=20, show_default=True, type=click.IntRange(1), help="Names of the list that is timed."
)
@click.option("--model", "name", default="nano", show_default=True, help="Shipped name, folder, hub id.")
@click.option("--dtype", "dtypes", type=Dtypes(), default="float32,bfloat16", show_default=True)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object instead of the table.")
@click.option("--out", type=click.Path(path_type=Path, dir_okay=False), help="Write the JSON to a file too.")
def engines(
    folder: Path,
    split: str,
    limit: int,
    classes: int,
    name: str,
    dtypes: tuple[str, ...],
    as_json: bool,
    out: Path | None,
) -> None:
    """Compare torch and OpenVINO for the image encoder.

    Each photo is asked of every engine, one right after the other, in an order that turns: with a list of --classes
    names for the times, and with the set's own classes for the answers. The first row is what the others are held
    against. Milliseconds are of the processor, medians over the photos; a decision is near where its probability is
    within 0.01 of one half. Exit code 1 where a decision in float32 differs that is not near.
    """
    from lasagna.assistant.lasagna import Lasagna

    data = Folder(folder, split)
    ways = [(dtype, engine) for dtype in dtypes for engine in ("torch", "openvino")]
    made = ((way, Lasagna.from_pretrained(name, device="cpu", dtype=way[0], encoder=way[1])) for way in ways)
    models = {way: asked_everything(model) for way, model in made}
    timed = sample_classes(classes)
    found = {way: Found(len(data.classes)) for way in ways}
    chosen = spread(len(data), limit)
    with progress_bar(Console(stderr=True), f"{data.name} {split}", len(chosen)) as advance:
        for number, index in enumerate(chosen):
            record = data[index]
            image, truth = read_photo(record)
            pixels = np.asarray(image)
            turned = ways[number % len(ways) :] + ways[: number % len(ways)]
            answers = {}
            for way in turned:
                if not number:  # kernels are made for a shape when it first comes
                    models[way].segment(pixels, timed)
                answers[way] = found[way].ask(models[way], pixels, timed, record.classes)
            for way in ways:
                found[way].add(answers[way], answers[ways[0]])
                found[way].masks.update(score_photo(truth, answers[way]))
            advance()
    rows = [found[way].row(way, found[ways[0]]) for way in ways]
    setting: Row = {"model": models[ways[0]].version, "data": data.name, "photos": len(chosen), "classes": classes}
    report("engines", setting, rows, device="cpu", as_json=as_json, out=out)
    if any(row["dtype"] == "float32" and row["decisions_differ"] > row["of_these_near"] for row in rows):
        click.secho("error: decisions in float32 differ", fg="red", err=True)
        sys.exit(1)


class Found:
    """What one engine did.

    Attributes:
        encoder, rest: Processor seconds of each photo, in the encoder and after it.
    """

    def __init__(self, classes: int) -> None:
        self.encoder: list[float] = []
        self.rest: list[float] = []
        self.masks = SegmentationMetrics(classes)
        self.differ = self.near = self.decisions = 0
        self.ious: list[float] = []

    def ask(
        self, model: "Lasagna", pixels: "NDArray[np.uint8]", timed: Sequence[str], classes: Sequence[str]
    ) -> "Segmentation":
        """Times the names `timed`, and answers the set's classes."""
        began = time.process_time()
        features = model.encode_image(pixels)
        encoded = time.process_time()
        model.segment(features, timed)
        self.encoder.append(encoded - began)
        self.rest.append(time.process_time() - encoded)
        return model.segment(features, classes, exclusive=True)

    def add(self, answer: "Segmentation", reference: "Segmentation") -> None:
        """Compares an answer with that of the first row."""
        for one, other in zip(answer.classes, reference.classes, strict=True):
            self.decisions += 1
            if one.is_present != other.is_present:
                self.differ += 1
                self.near += abs(other.probability - 0.5) <= 0.01
            elif one.mask is not None and other.mask is not None:
                union = int((one.mask | other.mask).sum())
                self.ious.append(int((one.mask & other.mask).sum()) / union if union else 1.0)

    def row(self, way: tuple[str, str], first: "Found") -> Row:
        encoder, rest = (float(np.median(each)) for each in (self.encoder, self.rest))
        total = [a + b for a, b in zip(self.encoder, self.rest, strict=True)]
        times = [b / a for a, b in zip(total, map(sum, zip(first.encoder, first.rest, strict=True)), strict=True)]
        low, middle, high = np.percentile(times, [25, 50, 75])
        return {
            "dtype": way[0],
            "encoder": way[1],
            "ms_encoder": round(1000 * encoder, 1),
            "ms_rest": round(1000 * rest, 1),
            "times_faster": round(float(middle), 2),
            "quartiles": f"{low:.2f} to {high:.2f}",
            "encoder_times_faster": round(float(np.median(np.divide(first.encoder, self.encoder))), 2),
            "decisions": self.decisions,
            "decisions_differ": self.differ,
            "of_these_near": int(self.near),
            "mask_iou": round(float(np.mean(self.ious)), 5) if self.ious else None,
            "miou": None if self.masks.miou is None else round(self.masks.miou, 4),
        }

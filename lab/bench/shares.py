"""`lasagna bench shares`: what each stage of an answer takes, and how near it comes to what this processor can do.

What always holds: a stage's time is what is spent in it and not in a stage inside it, so that the stages add up to the
whole; all ways are asked about the same photo one right after the other, in an order that turns; floating-point
operations are counted as the answer is computed, attention written out as products, so that they follow the passes that
the photo takes. The rate that they are held against is that of a large product of matrices in the same number format.
"""

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any
from unittest.mock import patch

import click
import numpy as np

from lab.bench.command import Dtypes, Numbers, Row, report, sample_classes, sample_images
from lab.bench.measure import convolution_rate, matrix_rate
from lab.names import asked_everything

if TYPE_CHECKING:
    from lasagna.assistant.lasagna import Lasagna

STAGES = ("prepare", "encoder", "classifier", "language model", "mask decoder", "drawing", "rest")
"""Bringing the photo to the encoder's input; the encoder; what the backbone's features say of the names; the passes of
the language model, decisions read; masks at stride 4; these at the photo's size; everything else."""


class Meter:
    """Sums a figure that only grows (seconds, operations) over stages, each without the stages inside it.

    Args:
        reading: The figure now.

    Attributes:
        spent: By stage.
    """

    def __init__(self, reading: Callable[[], float]) -> None:
        self._reading = reading
        self._inside: list[float] = []
        self.spent = dict.fromkeys(STAGES, 0.0)

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        began = self._reading()
        self._inside.append(0.0)
        try:
            yield
        finally:
            whole = self._reading() - began
            self.spent[name] += whole - self._inside.pop()
            if self._inside:
                self._inside[-1] += whole


@contextmanager
def metered(model: "Lasagna", meter: Meter) -> Iterator[None]:
    """Has a model's parts tell the meter when they begin and end."""
    import lasagna.assistant.lasagna as module

    network = model.model
    parts: list[tuple[Any, str, str]] = [
        (network.encoder, "prepare", "prepare"),
        (network.encoder, "forward", "encoder"),
        (model, "_evident", "classifier"),
        (model, "mask_logits", "classifier"),
        (network.segmenter, "forward", "mask decoder"),
        (module, "decode_class_lists", "language model"),
        (module, "draw_masks", "drawing"),
    ]

    def through(way: Callable[..., Any], stage: str) -> Callable[..., Any]:
        def run(*arguments: Any, **named: Any) -> Any:
            with meter.stage(stage):
                return way(*arguments, **named)

        return run

    with ExitStack() as changed:
        for owner, name, stage in parts:
            changed.enter_context(patch.object(owner, name, through(getattr(owner, name), stage)))
        yield


def count_operations(model: "Lasagna", photo: Any, classes: Sequence[str]) -> dict[str, float]:
    """Floating-point operations of each stage of one answer, as torch computes it."""
    from torch.nn.attention import SDPBackend, sdpa_kernel
    from torch.utils.flop_counter import FlopCounterMode

    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        meter = Meter(lambda: float(counter.get_total_flops()))
        with metered(model, meter), meter.stage("rest"):
            model.segment(photo, classes)
    return meter.spent


@click.command(
    epilog="""\b
Examples:
  OMP_NUM_THREADS=1 lasagna bench shares --repeats 20
  lasagna bench shares --classes 20 --dtype float32 --json
"""
)
@click.option("--classes", "counts", type=Numbers(), default="20,133", show_default=True, help="Lengths of the list.")
@click.option("--model", "name", default="nano", show_default=True, help="Shipped name, folder, hub id.")
@click.option("--dtype", "dtypes", type=Dtypes(), default="float32,bfloat16", show_default=True)
@click.option(
    "--repeats", type=click.IntRange(1), default=10, show_default=True, help="Rounds over three photos; medians."
)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object instead of the table.")
@click.option("--out", type=click.Path(path_type=Path, dir_okay=False), help="Write the JSON to a file too.")
def shares(
    counts: tuple[int, ...], name: str, dtypes: tuple[str, ...], repeats: int, as_json: bool, out: Path | None
) -> None:
    """Processor milliseconds and operations of each stage of an answer, and the share of the matrix rate.

    Three photos of about 512 pixels; means over the photos of each stage's median over the repeats, and the quartiles
    of the whole. GFLOP are those of torch's network, whatever computes it. share: operations for each second of the
    stage, over those of a large product of matrices in that number format. Give it one thread.
    """
    import torch

    from lasagna.assistant.lasagna import Lasagna

    cpu = torch.device("cpu")
    formats = {dtype: getattr(torch, dtype) for dtype in dtypes}
    rates = {dtype: matrix_rate(cpu, each, 30, time.process_time) for dtype, each in formats.items()}
    convolution = {dtype: convolution_rate(cpu, each, 30, time.process_time) for dtype, each in formats.items()}
    found: Row = {f"gflop_per_s_{dtype}": round(rate / 1e9) for dtype, rate in rates.items()}
    found |= {f"convolution_{dtype}": round(rate / 1e9) for dtype, rate in convolution.items()}
    ways = [(dtype, engine) for dtype in dtypes for engine in ("torch", "openvino")]
    made = ((way, Lasagna.from_pretrained(name, device="cpu", dtype=way[0], encoder=way[1])) for way in ways)
    models = {way: asked_everything(model) for way, model in made}
    rows: list[Row] = []
    for count in counts:
        classes, photos = sample_classes(count), sample_images(3)
        counted = [count_operations(models[ways[0]], photo, classes) for photo in photos]
        operations = {stage: float(np.mean([each[stage] for each in counted])) for stage in STAGES}
        spent = _timed(models, photos, classes, repeats)
        for way in ways:
            rows += _rows(count, way, spent[way], operations, rates[way[0]])
    setting: Row = {"model": models[ways[0]].version, "photos": 3, "repeats": repeats, **found}
    report("shares", setting, rows, device="cpu", as_json=as_json, out=out)


_Way = tuple[str, str]
"""Number format and encoder."""
_Spent = dict[str, list[list[float]]]
"""Seconds of each stage, by photo and repeat."""


def _timed(
    models: "dict[_Way, Lasagna]", photos: Sequence[Any], classes: list[str], repeats: int
) -> dict[_Way, _Spent]:
    ways = list(models)
    spent: dict[_Way, _Spent] = {way: {stage: [[] for _ in photos] for stage in STAGES} for way in ways}
    for turn in range(repeats + 1):  # the first is not timed
        for number, photo in enumerate(photos):
            first = (turn + number) % len(ways)
            for way in ways[first:] + ways[:first]:
                meter = Meter(time.process_time)
                with metered(models[way], meter), meter.stage("rest"):
                    models[way].segment(photo, classes)
                for stage, seconds in meter.spent.items():
                    if turn:
                        spent[way][stage][number].append(seconds)
    return spent


def _rows(count: int, way: _Way, spent: _Spent, operations: dict[str, float], rate: float) -> list[Row]:
    """One row per stage, and the whole."""
    seconds = {stage: float(np.mean([np.median(each) for each in photos])) for stage, photos in spent.items()}
    whole = np.sum([spent[stage] for stage in STAGES], axis=0).mean(0)
    low, middle, high = (1000 * float(value) for value in np.percentile(whole, [25, 50, 75]))
    rows = [_row(count, way, stage, 1000 * seconds[stage], "", operations[stage], rate) for stage in STAGES]
    return [*rows, _row(count, way, "all", middle, f"{low:.0f} to {high:.0f}", sum(operations.values()), rate)]


def _row(count: int, way: _Way, stage: str, ms: float, quartiles: str, operations: float, rate: float) -> Row:
    return {
        "classes": count,
        "dtype": way[0],
        "encoder_engine": way[1],
        "stage": stage,
        "ms": round(ms, 1),
        "quartiles": quartiles,
        "gflop": float(f"{operations / 1e9:.3g}"),
        "share": round(operations / max(ms / 1000, 1e-9) / rate, 2),
    }

"""`lasagna bench against`: this code and another checkout's, side by side: milliseconds by number of classes, answers.

What always holds: each of the two has a process of its own, with the model loaded and the same cores; they are asked in
turn, the same photos and names; all of these are asked once untimed, as a shape that is new to an engine takes longer;
what is timed is the processor's time of that process, or time on the clock where it has several cores; the answers are
compared in the same run.
"""

import json
import os
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import click
import numpy as np

from lab.bench.command import Numbers, Row, report, sample_classes, sample_images
from lab.bench.plot import plot_times
from lasagna.errors import DataError
from lasagna.masks.image import load_image

_ANSWERS = """
import json, resource, sys, time
import numpy as np
import lasagna

name, dtype, encoder, cores = sys.argv[1:]
clock = time.process_time if cores == "1" else time.perf_counter
model = lasagna.Lasagna.from_pretrained(name, device="cpu", dtype=dtype, encoder=encoder)
print(json.dumps({"version": model.version}), flush=True)
for line in sys.stdin:
    asked = json.loads(line)
    photos = [np.load(path) for path in asked["photos"]]
    began = clock()
    answers = model.segment_batch(photos, [asked["classes"]] * len(photos), guess_unknown=True)
    spent = clock() - began
    masks = {
        f"{photo}-{number}": np.packbits(one.mask)
        for photo, answer in enumerate(answers)
        for number, one in enumerate(answer.classes)
        if one.mask is not None
    }
    np.savez(asked["out"], **masks)
    probabilities = [[one.probability for one in answer.classes] for answer in answers]
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print(json.dumps({"seconds": spent, "probabilities": probabilities, "mib": peak}), flush=True)
"""
_NEAR = 0.01
"""Decisions with a probability so near to one half are near ties."""


class Side:
    """One checkout's model in a process of its own.

    Args:
        process: That runs `_ANSWERS`.
        folder: For the masks that it hands over.

    Attributes:
        version: Of its model.
        mib: Its largest resident memory so far, loading included.
    """

    def __init__(self, process: "subprocess.Popen[str]", folder: Path) -> None:
        self._process, self._masks = process, folder / f"{process.pid}.npz"
        self.version: str = self._read()["version"]
        self.mib = 0.0

    def ask(self, photos: Sequence[Path], classes: Sequence[str]) -> tuple[float, list[list[float]], dict[str, Any]]:
        """Seconds of a batch, probabilities of each photo's classes, and packed masks by "photo-class"."""
        asked = {"photos": [str(path) for path in photos], "classes": list(classes), "out": str(self._masks)}
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps(asked) + "\n")
        self._process.stdin.flush()
        answer = self._read()
        self.mib = answer["mib"]
        with np.load(self._masks) as masks:
            return answer["seconds"], answer["probabilities"], dict(masks)

    def _read(self) -> Any:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise DataError("the process of a checkout ended; what it said stands above")
        return json.loads(line)


@contextmanager
def side(code: Path | None, model: str, dtype: str, encoder: str, cores: int, folder: Path) -> Iterator[Side]:
    """A model of a checkout's code; None: of this one's."""
    environment = {**os.environ, "OMP_NUM_THREADS": str(cores)}
    if code is not None:
        environment["PYTHONPATH"] = str(code.resolve())
    command = [sys.executable, "-c", _ANSWERS, model, dtype, encoder, str(cores)]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment, cwd=code
    ) as process:
        try:
            yield Side(process, folder)
        finally:
            process.kill()


class Compared:
    """Decisions and masks of one side, held against the other's."""

    def __init__(self) -> None:
        self.decisions = self.differ = self.near = 0
        self.ious: list[float] = []

    def add(self, found: tuple[list[list[float]], Any], wanted: tuple[list[list[float]], Any]) -> None:
        for photo, (ours, theirs) in enumerate(zip(found[0], wanted[0], strict=True)):
            for number, (one, other) in enumerate(zip(ours, theirs, strict=True)):
                self.decisions += 1
                if (one >= 0.5) != (other >= 0.5):
                    self.differ += 1
                    self.near += abs(other - 0.5) <= _NEAR
                elif (key := f"{photo}-{number}") in found[1] and key in wanted[1]:
                    mine, yours = (np.unpackbits(masks[key]) for masks in (found[1], wanted[1]))
                    union = int((mine | yours).sum())
                    self.ious.append(int((mine & yours).sum()) / union if union else 1.0)


@click.command(
    epilog="""\b
Examples:
  git worktree add ../before COMMIT
  lasagna bench against --code ../before
  lasagna bench against --code ../before --classes 1,20,50,133,500 --encoder openvino --plot docs/lab/speed.svg
  lasagna bench against --code ../before --batch 4 --cores 2 --classes 20 --photos ../shared/data/voc/images
"""
)
@click.option(
    "--code", required=True, type=click.Path(path_type=Path, exists=True, file_okay=False), help="A checkout."
)
@click.option("--classes", "counts", type=Numbers(), default="1,20,50,133", show_default=True, help="Lengths of lists.")
@click.option("--batch", type=click.IntRange(1), default=1, show_default=True, help="Photos asked at once.")
@click.option("--cores", type=click.IntRange(1), default=1, show_default=True, help="Of each process.")
@click.option(
    "--photos", type=click.Path(path_type=Path, exists=True, file_okay=False), help="JPEGs.  [default: three shipped]"
)
@click.option("--model", default="nano", show_default=True, help="Shipped name or folder, for both.")
@click.option("--encoder", default="openvino", show_default=True, help="Of this code; the checkout's is torch.")
@click.option("--dtype", default="float32", show_default=True, help="Of this code; the checkout's is float32.")
@click.option("--repeats", type=click.IntRange(1), default=3, show_default=True, help="Medians of so many batches.")
@click.option("--plot", type=click.Path(path_type=Path, dir_okay=False), help="ms per image against classes.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object instead of the table.")
@click.option("--out", type=click.Path(path_type=Path, dir_okay=False), help="Write the JSON to a file too.")
def against(
    code: Path,
    counts: tuple[int, ...],
    batch: int,
    cores: int,
    photos: Path | None,
    model: str,
    encoder: str,
    dtype: str,
    repeats: int,
    plot: Path | None,
    as_json: bool,
    out: Path | None,
) -> None:
    """Hold this code against another checkout: milliseconds per photo, memory, decisions, masks.

    Of the processor with one core, on the clock with several. Exit code 1 where in float32 a decision differs that is
    not a near tie.
    """
    rows: list[Row] = []
    with ExitStack() as stack:
        folder = Path(stack.enter_context(TemporaryDirectory(prefix="lasagna-against-")))
        before = stack.enter_context(side(code, model, "float32", "torch", cores, folder))
        after = stack.enter_context(side(None, model, dtype, encoder, cores, folder))
        batches = _batches(photos, batch, repeats, folder)
        for count in counts:
            rows.append(_row(before, after, batches, count))
        setting: Row = {"model": after.version, "dtype": dtype, "encoder": encoder}
        setting |= {"batch": batch, "cores": cores, "photos": str(photos or "shipped"), "repeats": repeats}
    report("against", setting, rows, device="cpu", as_json=as_json, out=out)
    if plot is not None:
        series = {
            "before": [row["ms_before"] for row in rows],
            f"{dtype}, {encoder}": [row["ms_after"] for row in rows],
        }
        plot_times(plot, counts, series, f"one photo, {cores} core{'s' * (cores > 1)}")
    if dtype == "float32" and any(row["decisions_differ"] > row["of_these_near"] for row in rows):
        click.secho("error: decisions in float32 differ", fg="red", err=True)
        sys.exit(1)


def _batches(photos: Path | None, batch: int, count: int, folder: Path) -> list[list[Path]]:
    """The arrays of each batch, as files: of different photos as far as there are some.

    Args:
        photos: A folder of them; None: the shipped ones.
        folder: Where they go.
    """
    if photos is None:
        images = sample_images(3 * batch)
    else:
        files = sorted(photos.glob("*.jpg"))[: count * batch]
        if len(files) < batch:
            raise DataError(f"{photos} has {len(files)} files *.jpg, a batch takes {batch}")
        images = [np.asarray(load_image(file)) for file in files]
    paths = [folder / f"{number}.npy" for number in range(len(images))]
    for path, image in zip(paths, images, strict=True):
        np.save(path, image)
    different = len(paths) // batch
    return [paths[turn % different * batch :][:batch] for turn in range(count)]


def _row(before: Side, after: Side, batches: list[list[Path]], count: int) -> Row:
    classes, compared = sample_classes(count), Compared()
    seconds: list[tuple[float, float]] = []
    for turn, asked in enumerate(batches):
        sides = (before, after) if turn % 2 else (after, before)
        untimed = {one: one.ask(asked, classes) for one in sides}
        compared.add(untimed[after][1:], untimed[before][1:])
    for turn, asked in enumerate(batches):
        sides = (before, after) if turn % 2 else (after, before)
        spent = {one: one.ask(asked, classes)[0] / len(asked) for one in sides}
        seconds.append((spent[before], spent[after]))
    old, new = np.median(seconds, axis=0) * 1000
    ratios = [one / other for one, other in seconds]
    return {
        "classes": count,
        "ms_before": round(float(old), 1),
        "ms_after": round(float(new), 1),
        "times_faster": round(float(np.median(ratios)), 2),
        "range": f"{min(ratios):.2f} to {max(ratios):.2f}",
        "mib_before": round(before.mib),
        "mib_after": round(after.mib),
        "decisions": compared.decisions,
        "decisions_differ": compared.differ,
        "of_these_near": int(compared.near),
        "mask_iou": round(float(np.mean(compared.ious)), 5) if compared.ious else None,
    }

"""`lasagna bench soak` and `bench corpus`: does `lasagna annotate` stay as fast and as small as it began?

A soak is one run of the command's own pipeline in this process, over small real photos (crops of those that
scikit-image ships) that lie in a folder; `corpus` makes one soak after another, each in a process of its own, so that
what one leaves in memory is not the next one's.
"""

import json
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import click
import numpy as np
from PIL import Image

from lab.bench.command import Numbers, Row, report, sample_classes, sample_images
from lasagna.annotate.addresses import Addresses
from lasagna.annotate.folder import find_images
from lasagna.annotate.request import AnnotateRequest, Asked, Execution
from lasagna.annotate.run import AnnotateRun
from lasagna.annotate.writers import Job
from lasagna.checkpoint.folder import checkpoint_version
from lasagna.formats.hygiene import Hygiene
from lasagna.labels.classes import make_label_config
from lasagna.labels.configuration import parse_label_config
from lasagna.masks.segmentation import ClassQuery
from lasagna.settings import Settings

_FORMATS = ("label-studio", "coco", "masks", "instances", "yolo", "voc")


def options(function: Callable[..., None]) -> Callable[..., None]:
    """The options that both commands have."""
    for option in reversed(
        (
            click.option("--side", type=click.IntRange(8, 256), default=96, show_default=True, help="Of a photo."),
            click.option("--model", default="nano", show_default=True, help="Shipped name, folder or hub id."),
            click.option("--tiny", is_flag=True, help="Instead: a tiny random model; the other stages show then."),
            click.option("--classes", type=click.IntRange(1), default=8, show_default=True, help="Asked of each."),
            click.option("--format", "formats", default="label-studio", show_default=True, metavar="A,B",
                         help=f"Written: {', '.join(_FORMATS)}."),
            click.option("--gallery", is_flag=True, help="Make the pages to look at, too."),
            click.option("--batch-size", type=click.IntRange(1), default=4, show_default=True),
            click.option("--workers", type=click.IntRange(1), default=2, show_default=True, help="As of annotate."),
            click.option("--json", "as_json", is_flag=True, help="Print one JSON object instead of the table."),
            click.option("--out", type=click.Path(path_type=Path, dir_okay=False), help="Write the JSON there too."),
        )
    ):  # fmt: skip
        function = option(function)
    return function


@click.command(
    epilog="""\b
Examples:
  lasagna bench soak --images 1000 --json
  lasagna bench soak --images 1000 --tiny --format label-studio,coco,masks --gallery
"""
)
@click.option("--images", type=click.IntRange(3), default=1000, show_default=True, help="Photos.")
@options
def soak(images: int, as_json: bool, out: Path | None, **given: Any) -> None:
    """Annotate many small photos and look at the rate and the memory as it goes.

    busy: the share of the time, from the first batch to the last file of an image, in which the model worked. The rate
    and the largest resident memory are given for each third of the photos, and the peak of the whole process.
    """
    row = _soak(images, **given)
    report("soak", _setting(given), [row], device="cpu", as_json=as_json, out=out)


@click.command(
    epilog="""\b
Examples:
  lasagna bench corpus --tiny --images 100,1000,10000
"""
)
@click.option("--images", "counts", type=Numbers(), default="100,1000", show_default=True, help="Photos of each run.")
@options
def corpus(counts: tuple[int, ...], as_json: bool, out: Path | None, **given: Any) -> None:
    """A soak per number of photos: the rate and the memory should not depend on it."""
    rows = []
    for count in counts:
        words = [f"--{name.replace('formats', 'format').replace('_', '-')}={value}" for name, value in given.items()
                 if not isinstance(value, bool)]  # fmt: skip
        words += [f"--{name}" for name, value in given.items() if value is True]
        command = [sys.executable, "-m", "lasagna", "bench", "soak", f"--images={count}", "--json", *words]
        done = subprocess.run(command, stdout=subprocess.PIPE, check=False)
        if done.returncode:
            sys.exit(done.returncode)
        found = json.loads(done.stdout)
        rows.append({**found["rows"][0], "load": found["environment"].get("load")})
    report("corpus", _setting(given), rows, device="cpu", as_json=as_json, out=out)


def _setting(given: dict[str, Any]) -> Row:
    model = "tiny, random" if given["tiny"] else given["model"]
    kept = ("side", "classes", "formats", "gallery", "batch_size", "workers")
    return {"model": model, **{name: given[name] for name in kept}}


def make_photos(folder: Path, count: int, side: int) -> None:
    """`count` different photos `side` pixels wide and high: crops of scikit-image's, resized."""
    photos = [Image.fromarray(photo) for photo in sample_images(3)]
    rng = np.random.default_rng(0)
    folder.mkdir(parents=True)
    for i in range(count):
        photo = photos[i % 3]
        width = int(rng.integers(100, 280))
        left, top = int(rng.integers(photo.width - width)), int(rng.integers(photo.height - width))
        small = photo.crop((left, top, left + width, top + width)).resize((side, side))
        small.save(folder / f"{i:06}.jpg", quality=90)


def _soak(
    images: int, side: int, model: str, tiny: bool, classes: int, formats: str, gallery: bool, batch_size: int,
    workers: int,
) -> Row:  # fmt: skip
    with tempfile.TemporaryDirectory(prefix="lasagna-soak-") as scratch:
        folder = Path(scratch)
        make_photos(folder / "photos", images, side)
        if tiny:
            from lasagna import Lasagna

            model = str(folder / "tiny")
            Lasagna.random(seed=1).save_pretrained(model)
        settings = Settings.load(model=model, device="cpu", batch_size=batch_size)
        queries = [ClassQuery(name) for name in sample_classes(classes)]
        xml = make_label_config(queries)
        job = Job(
            out=folder / "out",
            class_names=[query.name for query in queries],
            model_version=checkpoint_version(model),
            label_config=parse_label_config(xml),
            label_config_xml=xml,
            addresses=Addresses(folder, None),
            hygiene=Hygiene.of(settings),
        )
        moments: list[tuple[float, float]] = []
        run = AnnotateRun(
            AnnotateRequest(job, formats.split(","), Asked(queries), settings, gallery),
            find_images([str(folder / "photos")]),
            Execution(workers=workers),
            on_done=lambda: moments.append((time.perf_counter(), resident_mib())),
        )
        run()
    progress = run.progress
    if progress.failures or progress.started is None:
        reason = next(iter(progress.failures.values()), "")
        raise click.ClickException(f"{len(progress.failures)} photos failed: {reason}")
    ended = moments[-1][0]
    row: Row = {"images": images, "images_per_s": images / (ended - progress.started)}
    thirds = list(pairwise([0, images // 3, 2 * images // 3, images]))
    for third, (first, last) in enumerate(thirds, start=1):
        began = moments[first - 1][0] if first else progress.started
        row[f"images_per_s_{third}"] = (last - first) / (moments[last - 1][0] - began)
    for third, (first, last) in enumerate(thirds, start=1):
        row[f"mib_{third}"] = round(max(mib for _, mib in moments[first:last]), 1)
    highest = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024  # a little behind what is asked for now
    row["mib_peak"] = round(max(highest, *(mib for _, mib in moments)), 1)
    row["model_ms_per_image"] = 1000 * progress.busy / images
    row["busy"] = progress.busy / (ended - progress.started)
    return row


def resident_mib() -> float:
    """Memory of this process that is in use now, in MiB (Linux)."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * resource.getpagesize() / 2**20

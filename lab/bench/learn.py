"""`lasagna bench learn`: seconds from a corrected photo to the new head, and what an answer takes longer with one."""

import tempfile
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import click
import numpy as np
from numpy.typing import NDArray

from lab.bench.command import Numbers, Row, both_times, common_options, report, sample_classes, sample_images

if TYPE_CHECKING:
    from lasagna.assistant.lasagna import Lasagna
    from lasagna.instant.correction import Correction

_OBSERVED = 40
"""Different corrections: more are copies of these under other names, which take the same work."""


@click.command(
    epilog="""\b
Examples:
  lasagna bench learn
  lasagna bench learn --corrections 1,40,500 --classes 10,37 --json
"""
)
@common_options
@click.option("--corrections", type=Numbers(), default="1,40,500", show_default=True, help="Already learnt from.")
@click.option("--classes", type=Numbers(), default="10,37", show_default=True, help="Names in the query.")
def learn(corrections: tuple[int, ...], classes: tuple[int, ...], chosen: Any) -> None:
    """Time the instant head, with the photo encoded already.

    observe: what is kept of a corrected photo, the model's own answer included. head: putting it to the others and
    fitting. stored: the same with files on disk. model, with_head: an answer about a photo, the head drawing. _cpu is
    what the work takes, the rest is the clock's; give OMP_NUM_THREADS=1 for one core.
    """
    rows: list[Row] = []
    dtype = chosen.dtypes[0]
    model = chosen.load(dtype, max(classes))
    for number in classes:
        names = sample_classes(number)
        made = [_observe(model, names, index) for index in range(_OBSERVED)]
        for count in corrections:
            rows.append(_row(model, names, made, count, chosen.repeats))
    setting: Row = {"model": chosen.random_weights or chosen.model_name, "dtype": dtype, "repeats": chosen.repeats}
    report("learn", setting, rows, device=str(model.model.device), as_json=chosen.as_json, out=chosen.out)


def _row(model: "Lasagna", names: Sequence[str], made: "Sequence[Correction]", count: int, repeats: int) -> Row:
    from lasagna.instant.fit import Learner
    from lasagna.instant.store import HeadStore

    features = model.encode_image(_photo(0)[0])
    learner = Learner()
    with tempfile.TemporaryDirectory() as folder:
        store = HeadStore(folder, limit=count)
        for index in range(count):
            correction = replace(made[index % len(made)], id=f"photo {index}").numbered(index)
            learner.put(correction)
            store.put(correction)
        head = store.refresh()
        assert head is not None
        serving = replace(head, decision=replace(head.decision, serves=True))
        turn = iter(range(10**9))

        def fit() -> None:
            newest = learner.next_order
            learner.put(replace(made[newest % len(made)], id="photo 0").numbered(newest))
            learner.fit()

        def fit_stored() -> None:
            store.put(replace(made[next(turn) % len(made)], id="photo 0"))
            store.refresh()

        ways = {
            "observe": lambda: _observe(model, names, 0, features),
            "head": fit,
            "stored": fit_stored,
            "model": lambda: model.segment(features, names, exclusive=True),
            "with_head": lambda: model.segment(features, names, head=serving),
        }
        times = both_times(ways, repeats, str(model.model.device))
    row: Row = {"classes": len(names), "corrections": count}
    for name, (wall, processor) in times.items():
        row[f"{name}_s"], row[f"{name}_cpu_s"] = wall, processor
    row["update_cpu_s"] = row["observe_cpu_s"] + row["head_cpu_s"]
    row["extra_cpu_s"] = row["with_head_cpu_s"] - row["model_cpu_s"]
    row["correction_mb"] = len(made[0].to_bytes()) / 1e6
    return row


def _observe(model: "Lasagna", names: Sequence[str], index: int, features: Any = None) -> "Correction":
    image, owner = _photo(index)
    present = np.random.default_rng(index).permutation(len(names))[: owner.max() + 1]
    masks = {names[label]: owner == place for place, label in enumerate(present)}
    return model.observe(image if features is None else features, masks, str(index), classes=list(names))


def _photo(index: int) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    """A sample photo and its division into six parts: each pixel goes to the nearest of six points."""
    image = sample_images(index + 1)[index]
    rng = np.random.default_rng(index)
    points = rng.random((6, 2)) * image.shape[:2]
    y, x = np.mgrid[: image.shape[0], : image.shape[1]]
    distances = np.stack([(y - top) ** 2 + (x - left) ** 2 for top, left in points])
    return image, distances.argmin(0)

"""How well is an annotated mask cut into its objects? Every way on the masks of the annotation.

    python -m lab.bench.splitting ../shared/data/mushrooms --split train --limit 5
    python -m lab.bench.splitting ../shared/data/coco_things --split train --limit 25 --model nano

What always holds: a class's mask is the union of its annotated objects, so that a perfect cut has a panoptic quality of
1, and a way is not judged by the masks of a model. With --model its click decoder cuts too: it is asked for a point at
each ridge of the mask, and points whose masks are mostly the same are one object.
"""

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import click
import numpy as np
from numpy.typing import NDArray

from lasagna.assistant.objects import to_objects
from lasagna.masks.image import load_image
from lasagna.masks.segmentation import Mask
from lasagna.masks.splitting import by_size, fill, parts_of, ridges_of, split_by_shape
from training.data.sources.folder import Folder
from training.data.sources.instances import InstanceMaps
from training.data.spread import spread
from training.evaluation.objects import ObjectScores

if TYPE_CHECKING:
    from lasagna import Lasagna
    from lasagna.assistant.answers import ImageFeatures

Cut = Callable[[Mask], NDArray[np.int32]]
WAYS: dict[str, Cut] = {"connected parts": parts_of, "cut by shape": split_by_shape}
MOST_POINTS = 60
"""Of one class in one photo; the widest ridges."""


def split_by_clicks(model: "Lasagna", features: "ImageFeatures", mask: Mask, same: float = 0.5) -> NDArray[np.int32]:
    """A mask's objects by what the click decoder answers to a point at each ridge.

    Args:
        same: IoU, inside the mask, from which on two answers are of one object.
    """
    parts = parts_of(mask)
    kept: list[tuple[float, Mask]] = []
    answers = []
    for row, column in ridges_of(parts)[:MOST_POINTS]:
        found, quality = model.segment_prompt(features, points=[(column + 0.5, row + 0.5, True)])
        answers.append((quality, found & (parts == parts[row, column])))
    for quality, found in sorted(answers, key=lambda one: -one[0]):
        if found.any() and all((found & other).sum() <= same * (found | other).sum() for _, other in kept):
            kept.append((quality, found))
    numbers = np.zeros(mask.shape, np.int32)
    for number, (_, found) in enumerate(sorted(kept, key=lambda one: -int(one[1].sum())), start=1):
        numbers[found] = number
    nobodys = np.isin(parts, np.unique(parts[numbers > 0]), invert=True) & mask
    numbers[nobodys] = len(kept) + parts[nobodys]
    return by_size(fill(numbers, mask))


def measure(root: Path, split: str, limit: int | None, model: "Lasagna | None" = None) -> dict[str, ObjectScores]:
    """The figures of every way on the photos of a split whose objects are annotated, evenly spread."""
    found: dict[str, ObjectScores] = {}
    for objects, ways in _photos(root, split, limit, model):
        for way, cut in ways.items():
            pieces = {name: to_objects(cut(own > 0), 1.0) for name, own in objects.items()}
            scored = {name: (own, np.zeros(own.shape, np.bool_), pieces[name]) for name, own in objects.items()}
            found.setdefault(way, ObjectScores()).add(scored)
    return found


def _photos(
    root: Path, split: str, limit: int | None, model: "Lasagna | None"
) -> Iterator[tuple[dict[str, NDArray[np.int32]], dict[str, Cut]]]:
    source, maps = Folder(root, split), InstanceMaps(root)
    records = [source[i] for i in range(len(source))]
    records = [record for record in records if maps.has(record.image_id)]
    for place in spread(len(records), limit):
        instances = maps.read(records[place].image_id)
        ways = dict(WAYS)
        if model is not None and (path := records[place].image_path) is not None:
            features = model.encode_image(load_image(path))
            ways["points"] = lambda mask, features=features: split_by_clicks(model, features, mask)  # type: ignore[misc]
        yield {name: instances.of_class(name) for name in dict.fromkeys(instances.classes)}, ways


@click.command()
@click.argument("data", type=click.Path(exists=True, file_okay=False, path_type=Path))
@click.option("--split", default="val", show_default=True)
@click.option("--limit", type=click.IntRange(1), help="At most so many photos.")
@click.option("--model", "name", help="Ask the click decoder of this checkpoint too.")
def main(data: Path, split: str, limit: int | None, name: str | None) -> None:
    """Prints a JSON object per way."""
    from lasagna import Lasagna

    model = Lasagna.from_pretrained(name) if name else None
    for way, scores in measure(data, split, limit, model).items():
        figures = {key: value for key, value in scores.as_dict().items() if key != "per_class"}
        click.echo(json.dumps({"way": way, **figures}))


if __name__ == "__main__":
    main()

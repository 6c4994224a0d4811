"""A page of photos that a model was scored on: the best, those in the middle and the worst, chosen by rank.

What always holds: nobody picks a photo. All are ranked by their mean IoU over the classes that the annotation has or
the model drew, so that a class that is said and is not there counts as 0; equal ones by their id.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lasagna.contract.model import ClassListAnswerer
from lasagna.files import write_atomically
from lasagna.pages import page_environment
from training.data.sources import Source
from training.evaluation.samples import blank, sample_for_page, truth_to_segmentation
from training.evaluation.scoring import PhotoScore, read_photo


def photo_iou(score: PhotoScore) -> float | None:
    """The mean IoU that a photo is ranked by, in [0, 1]; None where nothing is there and nothing was drawn."""
    values = [one.intersection / one.union for one in score.classes if one.union]
    return sum(values) / len(values) if values else None


def choose_by_rank(found: Mapping[str, float], count: int) -> dict[str, list[str]]:
    """Ids of the best, the median and the worst photos, a third each; what is left over goes to the middle.

    Args:
        found: Id -> figure.
        count: Photos in all, at most all there are.
    """
    ranked = sorted(found, key=lambda image_id: (-found[image_id], image_id))
    count = min(count, len(ranked))
    ends = count // 3
    middle = count - 2 * ends
    first = (len(ranked) - middle) // 2
    return {
        "Best": ranked[:ends],
        "In the middle": ranked[first : first + middle],
        "Worst": ranked[len(ranked) - ends :] if ends else [],
    }


def write_pictures(
    path: Path,
    model: ClassListAnswerer,
    version: str,
    source: Source,
    found: Mapping[str, float],
    count: int,
    photos: bool = True,
    **options: Any,
) -> None:
    """Asks the model once more about the chosen photos, and writes the page: one file that needs no other.

    Args:
        version: Of the model.
        source: What was scored.
        found: Image id -> `photo_iou`.
        count: Photos on the page.
        photos: Whether photos and annotation are on it; else only the answers, on white.
        options: Of `segment_batch`, as they were scored.
    """
    chosen = choose_by_rank(found, count)
    wanted = {image_id for ids in chosen.values() for image_id in ids}
    places = {image_id: index for index in range(len(source)) if (image_id := source[index].image_id) in wanted}
    rank = {image_id: place for place, image_id in enumerate(sorted(found, key=lambda one: (-found[one], one)), 1)}
    groups = []
    for heading, ids in chosen.items():
        samples = []
        for image_id in ids:
            record = source[places[image_id]]
            image, truth = read_photo(record)
            [answer] = model.segment_batch([image], [record.classes], **options)
            columns = [("annotation", truth_to_segmentation(truth, record.classes))] if photos else []
            columns.append(("answer", answer))
            note = f"mean IoU {found[image_id]:.3f}, number {rank[image_id]} of {len(found)}"
            samples.append(sample_for_page(image_id, image if photos else blank(image), columns, note))
        if samples:
            groups.append((heading, samples))
    facts = f"{len(rank)} photos were scored and ranked by their mean IoU; a class that is drawn and is not there is 0."
    name = getattr(source, "name", "photos")
    page = page_environment("training").get_template("pictures.html")
    write_atomically(path, page.render(title=f"{version} on {name}", facts=facts, groups=groups))

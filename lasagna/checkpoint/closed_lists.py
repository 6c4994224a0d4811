"""The names of a model with a closed list, as a vocabulary: what a label means in it, and what cannot be asked.

A label is read as the name that it is, else as one that differs in case, spacing or a plural, else as one that the
model's own list or `SYNONYMS` says to mean the same. What always holds: every other label is unknown. Here is no torch.
"""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path

from lasagna.errors import CheckpointError
from lasagna.files import parse_json

SYNONYMS: Sequence[frozenset[str]] = tuple(
    frozenset(word.strip() for word in group.split(","))
    for group in (
        "person, people, human, human being, pedestrian",
        "car, automobile, auto",
        "truck, lorry",
        "motorcycle, motorbike",
        "bicycle, bike, pushbike",
        "airplane, aeroplane, plane, aircraft",
        "road, roadway",
        "traffic light, traffic signal, stoplight",
        "traffic sign, road sign",
        "street light, streetlight, street lamp, streetlamp",
        "sidewalk, pavement, footpath",
        "sofa, couch, settee",
        "tv, television, television set, tvmonitor, tv monitor",
        "cell phone, cellphone, mobile phone, smartphone",
        "potted plant, pottedplant, house plant, houseplant",
        "dining table, diningtable",
        "refrigerator, fridge, icebox",
        "hair drier, hair dryer, hairdryer",
        "donut, doughnut",
        "trash can, garbage can, dustbin, rubbish bin, waste bin, ashcan, bin",
        "rug, carpet",
        "curtain, drape, drapery",
        "cabinet, cupboard",
        "trousers, pants",
        "vegetation, plants, flora, greenery",
        "dirt, soil, earth",
        "sea, ocean",
        "stairs, steps, staircase, stairway",
        "monitor, computer screen",
        "cow, cattle",
        "windowpane, window",
        "fence, fencing",
    )
)
"""Words that mean the same thing in a photo; wider and narrower words are not among them."""

_MERGED = re.compile(r"-(other-merged|merged|other|stuff)$")
"""How COCO's panoptic list names what it put together: "tree-merged" is its trees."""


def closed_synonyms(names: Sequence[str]) -> dict[str, str]:
    """Other words for the names of a closed list, as it writes them ("car;auto", "tree-merged"): word -> name.

    Of several words in one name each stands for it.
    """
    synonyms: dict[str, str] = {}
    for name in names:
        words = [word.strip() for word in re.split(r"[;,]", name) if word.strip()]
        words += [_MERGED.sub("", word) for word in words if _MERGED.search(word)]
        for word in words:
            if word not in names:
                synonyms.setdefault(word, name)
    said = {word.casefold(): name for word, name in [*synonyms.items(), *((name, name) for name in names)]}
    for group in SYNONYMS:
        known = {said[word] for word in group if word in said}
        if len(known) == 1:  # of two names that mean the same here, the list itself keeps them apart
            for word in group - said.keys():
                synonyms.setdefault(word, next(iter(known)))
    return synonyms


def closed_names(folder: Path) -> dict[int, str]:
    """`id2label` of a folder's `config.json`: number of the class -> its name, as the file has it. Raises
    CheckpointError where it is no list of names."""
    path = folder / "config.json"
    try:
        table = parse_json(path.read_text(encoding="utf-8"))["id2label"]
        if not isinstance(table, Mapping) or not table:
            raise ValueError("it is empty")
        found = {int(number): str(name) for number, name in table.items()}
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise CheckpointError(
            f"{path}: no list of names (id2label: {error!r}), so nothing could be asked of this model; write its names "
            'there: {"0": "sky", "1": "road", ...}'
        ) from error
    return found

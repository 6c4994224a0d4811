"""Names that a model was never taught: how well are they found, beside names that it knows and their synonyms?

`hide_classes` writes copies of data sets in which some concepts are void and unnamed, so that a recipe can be trained
without them; `name_groups` says of each name that is asked later what the training knew of it:

- **seen**: the very name was in a class list.
- **synonym**: another name of the same concept was; the declared synonyms (`training.data.concepts`) come up in
  training as rewordings, one time in ten.
- **unseen**: the concept had no name in training at all. Its pixels were void in every photo that had it annotated.

What always holds: a hidden concept is hidden in every set, under all its names.
"""

import json
import os
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from lasagna.contract.model import ClassListAnswerer
from lasagna.errors import ConfigError, DataError
from training.data.concepts import CONCEPTS, concept_of, same_concept
from training.data.records import OTHER, UNKNOWN, Record
from training.data.sources import Source
from training.data.sources.folder import Folder
from training.evaluation.evaluate import Evaluation, evaluate_dataset
from training.recipe.files import recipe_from_values, to_values
from training.recipe.values import Recipe

HIDDEN = (
    "tv, tie, wine glass, truck, clock, keyboard, cell phone, backpack, surfboard, laptop, bus, sink, bed, bicycle,"
    "toilet, train, sea, snow, mountain, light"
)
"""Twenty classes of COCO: things and stuff, each in several photos of the train and the val split."""

GROUPS = ("seen", "synonym", "unseen")


def hidden_names(text: str) -> tuple[str, ...]:
    """Names from a list with commas. Raises ConfigError for one whose concept is not known: it could not be hidden
    under its other names."""
    names = tuple(" ".join(name.split()) for name in text.split(",") if name.strip())
    unknown = [name for name in names if concept_of(name) is None]
    if unknown or not names:
        raise ConfigError(
            f"{', '.join(unknown) or 'no name'}: names to hide are those that training/data/concepts.py knows"
        )
    return names


def hide_classes(dataset: Folder, hidden: Collection[str], folder: Path) -> Folder:
    """Writes a split without some classes, in the folder layout; photos are links.

    Args:
        dataset: The split.
        hidden: Names; every class of the set that means the same is hidden.
        folder: Where; what is there of the same name is written over.

    Raises DataError where no class would be left.
    """
    kept = [i for i, name in enumerate(dataset.classes) if not any(same_concept(name, other) for other in hidden)]
    if not kept:
        raise DataError(f"{dataset.root}: every class is hidden")
    # The background class stays annotated: it comes last. (OTHER and UNKNOWN count from the table's end.)
    lookup = np.full(len(dataset.classes) + 2, 255, np.uint8)
    lookup[kept] = np.arange(len(kept))
    lookup[OTHER], lookup[UNKNOWN] = len(kept), 255
    for name in ("images", "masks"):
        (folder / name).mkdir(parents=True, exist_ok=True)
    has_background = False
    ids = []
    for photo in (dataset[index] for index in range(len(dataset))):
        assert photo.image_path is not None, "a folder's record has a photo"
        (mask,) = photo.read()
        has_background |= bool((mask == OTHER).any())
        Image.fromarray(lookup[mask]).save(folder / "masks" / f"{photo.image_id}.png")
        link = folder / "images" / f"{photo.image_id}.jpg"
        link.unlink(missing_ok=True)
        os.symlink(photo.image_path.resolve(), link)
        ids.append(photo.image_id)
    names = [*(dataset.classes[i] for i in kept), *(["background"] if has_background else [])]
    meta = {"classes": names, "background_index": len(kept) if has_background else None}
    (folder / "classes.json").write_text(json.dumps(meta, indent=1))
    (folder / f"{dataset.split}.txt").write_text("".join(f"{image_id}\n" for image_id in ids))
    return Folder(folder, dataset.split)


def hidden_recipe(recipe: Recipe, hidden: Collection[str], without: Collection[str], out: Path) -> Recipe:
    """The recipe on copies of its data sets in which classes are hidden, and without some of the sets.

    Args:
        hidden, without: Names of classes, and of data sets.
        out: Copies are written to `out/data`, the run is `out/run`.

    Raises ConfigError where no set is left, or a set is not in the folder layout.
    """
    values = to_values(recipe)
    for task in values["tasks"].values():
        for name, data in list(task["sets"].items()):
            if name in without:
                del task["sets"][name]
                continue
            source = Path(data.get("path") or recipe.data / name)
            if not (source / "classes.json").exists():
                raise ConfigError(f"{source}: classes can be hidden in data sets of the folder layout alone")
            copy = out / "data" / name
            if not (copy / f"{data['split']}.txt").exists():
                hide_classes(Folder(source, data["split"]), hidden, copy)
            data["path"] = str(copy)
    values["tasks"] = {name: task for name, task in values["tasks"].items() if task["sets"]}
    if not values["tasks"]:
        raise ConfigError(f"no data set is left without {', '.join(without)}")
    return recipe_from_values({**values, "output": str(out / "run")})


def trained_names(recipe: Recipe) -> tuple[str, ...]:
    """Every class name of a recipe's data sets in the folder layout."""
    names: dict[str, None] = {}
    for task in recipe.tasks.values():
        for name, data in task.sets.items():
            names |= dict.fromkeys(Folder(data.path or recipe.data / name, data.split).classes)
    return tuple(names)


def name_groups(asked: Iterable[str], trained: Collection[str]) -> dict[str, str]:
    """Name -> "seen", "synonym" or "unseen"."""
    groups = {}
    for name in asked:
        if name in trained:
            groups[name] = "seen"
        else:
            groups[name] = "synonym" if any(same_concept(name, other) for other in trained) else "unseen"
    return groups


class Renamed:
    """A source whose classes are asked under other names.

    Args:
        source: Of class lists.
        names: Class -> name; a class that is not in it keeps its own.
    """

    def __init__(self, source: Source, names: Mapping[str, str]) -> None:
        self._source, self._names = source, names
        self.classes = self._rename(source.classes)

    def __len__(self) -> int:
        return len(self._source)

    def __getitem__(self, index: int) -> Record:
        record = self._source[index]
        return replace(record, classes=self._rename(record.classes))

    def _rename(self, classes: Sequence[str]) -> tuple[str, ...]:
        return tuple(self._names.get(name, name) for name in classes)


def synonyms(classes: Sequence[str], trained: Collection[str]) -> dict[str, str]:
    """A declared synonym for every class that has one which is neither a class nor a trained name itself."""
    found = {}
    for name in classes:
        others = [
            word
            for word, concept in CONCEPTS.items()
            if concept == concept_of(name) and word not in trained and word not in classes
        ]
        if others:
            found[name] = others[0]
    return found


def evaluate_names(
    model: ClassListAnswerer, source: Source, trained: Collection[str], on_image: Any = lambda: None, **options: Any
) -> dict[str, dict[str, Any]]:
    """Figures per group of names: every class of the source in one query per image.

    Args:
        options: Of `evaluate_dataset`.

    Returns:
        Group -> `names`, `classes` (those that are in an image), `miou`, `average_precision`, and `prevalence`: the
        share of present pairs, the average precision of guessing.
    """
    found: Evaluation = evaluate_dataset(model, source, on_image=on_image, **options)
    groups = name_groups(source.classes, trained)
    return {
        group: {"names": sorted(name for name, one in groups.items() if one == group), **found.group(names)}
        for group in GROUPS
        if (names := {name for name, one in groups.items() if one == group})
    }

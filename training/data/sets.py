"""The data sets that a recipe names: opened, with the held-out photos kept out, or told what is missing."""

from collections.abc import Sequence

from lasagna.checkpoint.folder import find_checkpoint
from lasagna.errors import CheckpointError, ConfigError, DataError
from training.data.folder import FolderDataset, is_held_out
from training.data.records import Record
from training.data.sources import SOURCES, Source, open_source
from training.recipe.values import DataSet, Recipe
from training.recipe.zero import zero_problems

OWN_FOLDER = ("folder", "expressions", "label_studio")
"""Formats of one's own sets, each in a folder of its name."""


class Subset:
    """Some records of a source, as a source."""

    def __init__(self, source: Source, indices: Sequence[int]) -> None:
        self.classes, self._source, self._indices = source.classes, source, list(indices)

    def __len__(self) -> int:
        return len(self._indices)

    def __getitem__(self, index: int) -> Record:
        return self._source[self._indices[index]]


def reader_of(recipe: Recipe, name: str, data: DataSet) -> str:
    """The name of a data set's format: as written, else the folder layout where it is one, else its own name."""
    if data.reader:
        return data.reader
    in_layout = ((data.path or recipe.data / name) / "classes.json").exists()
    return name if name in SOURCES and not in_layout else "folder"


def open_set(recipe: Recipe, name: str, data: DataSet) -> Source:
    """A data set of a recipe, held-out photos included. Raises ConfigError or DataError."""
    reader = reader_of(recipe, name, data)
    folder = data.path or (recipe.data / name if reader in OWN_FOLDER else None)
    return open_source(reader, recipe.data, data.split, folder)


def open_photos(recipe: Recipe, held_out: bool = False) -> list[FolderDataset]:
    """The class-list sets in the folder layout without the photos that the recipe holds out, or those alone."""
    found = []
    for name, data in recipe.semantic.items():
        if reader_of(recipe, name, data) == "folder":
            dataset = FolderDataset(data.path or recipe.data / name, data.split)
            found.append(dataset.divide(recipe.holdout)[1 if held_out else 0])
    return found


def training_records(recipe: Recipe, name: str, data: DataSet) -> Source:
    """A data set without what the recipe holds out."""
    source = open_set(recipe, name, data)
    if not recipe.holdout or not source.classes:
        return source
    photos = [source[i].image_path for i in range(len(source))]
    return Subset(source, [i for i, p in enumerate(photos) if p is None or not is_held_out(p, recipe.holdout)])


def missing_files(recipe: Recipe) -> list[str]:
    """What the recipe names and is not on this machine, each with its key path."""
    problems = []
    for task, values in recipe.tasks.items():
        for name, data in values.sets.items():
            try:
                open_set(recipe, name, data)
            except (ConfigError, DataError) as error:
                problems.append(f"tasks.{task}.sets.{name}: {error}")
    if recipe.start:
        try:
            find_checkpoint(recipe.start)
        except CheckpointError as error:
            problems.append(f"start: {error}")
    if recipe.deepspeed:
        problems += [f"deepspeed: {problem}" for problem in zero_problems(recipe.deepspeed)]
    return problems

"""The data sets that a recipe names: opened, with the held-out photos kept out, or told what is missing."""

import hashlib
import logging
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

from lasagna.checkpoint.folder import find_checkpoint
from lasagna.errors import CheckpointError, ConfigError, DataError
from training.data.records import Record
from training.data.sources import LocatedSource, Source, find_source
from training.recipe.values import DataSet, Recipe
from training.recipe.zero import zero_problems

logger = logging.getLogger(__name__)


class Subset:
    """Some records of a source, as a source."""

    def __init__(self, source: Source, indices: Sequence[int]) -> None:
        self.classes, self._source, self._indices = source.classes, source, list(indices)

    def __len__(self) -> int:
        return len(self._indices)

    def __getitem__(self, index: int) -> Record:
        return self._source[self._indices[index]]


def divide(source: Source, share: float) -> tuple[Subset, Subset]:
    """A source without a held-out share of its photos, and that share.

    A photo's side follows from its bytes alone, so it never changes between runs or when photos are added. What has no
    photo is never held out.
    """
    sides: tuple[list[int], list[int]] = [], []
    for index in range(len(source)):
        photo = source[index].image_path
        sides[photo is not None and _is_held_out(photo, share)].append(index)
    return Subset(source, sides[0]), Subset(source, sides[1])


def _is_held_out(photo: Path, share: float) -> bool:
    return share > 0 and int.from_bytes(hashlib.sha256(photo.read_bytes()).digest()[:8], "big") < share * 2**64


def locate_set(recipe: Recipe, name: str, data: DataSet) -> LocatedSource:
    """Where a data set of a recipe is. Raises ConfigError."""
    return find_source(name, recipe.data, reader=data.reader, path=data.path)


def open_set(recipe: Recipe, name: str, data: DataSet) -> Source:
    """A data set of a recipe, held-out photos included. Raises ConfigError or DataError."""
    return locate_set(recipe, name, data).open(data.split)


def with_replay(recipe: Recipe) -> tuple[Recipe, list[str]]:
    """A recipe with those of its sets to replay that are on this machine among its class lists.

    Returns:
        The recipe, which has nothing more to replay, and the names of the sets that are not here.
    """
    if not recipe.replay or not recipe.semantic:
        return replace(recipe, replay=None), []
    here = {name: data for name, data in recipe.replay.items() if is_here(recipe, name, data)}
    added = {name: data for name, data in here.items() if name not in recipe.semantic}  # one's own set comes first
    task = replace(recipe.tasks["semantic"], sets={**recipe.semantic, **added})
    tasks = {**recipe.tasks, "semantic": task}
    return replace(recipe, tasks=tasks, replay=None), [name for name in recipe.replay if name not in here]


def is_here(recipe: Recipe, name: str, data: DataSet) -> bool:
    """Whether a data set is on this machine, and has photos."""
    try:
        return len(open_set(recipe, name, data)) > 0
    except (ConfigError, DataError) as error:
        logger.info("replay set %s: %s", name, error)
        return False


def what_is_replayed(recipe: Recipe) -> Iterator[str]:
    """What has to be said about what a recipe replays, in words: a line or none for each thing."""
    if recipe.start is None or not recipe.semantic:
        return
    resolved, missing = with_replay(recipe)
    if missing:
        yield f"not replayed, since they are not in {recipe.data}: {', '.join(missing)}"
    if len(resolved.semantic) == len(recipe.semantic):
        yield (
            f"nothing is replayed: what {recipe.start} knows beside the classes of your photos is forgotten, the more "
            "the longer it is trained (docs/training.md, Your own photos). To keep it, give `replay` sets that it was "
            "trained on; to lose less, lower optimiser.learning_rate"
        )


def training_records(recipe: Recipe, name: str, data: DataSet) -> Source:
    """A data set without what the recipe holds out; texts are never held out."""
    source = open_set(recipe, name, data)
    return divide(source, recipe.holdout)[0] if recipe.holdout and source.classes else source


def training_sets(recipe: Recipe) -> dict[str, Source]:
    """The recipe's class lists without what it holds out, by the name of the data set."""
    return {name: training_records(recipe, name, data) for name, data in recipe.semantic.items()}


def held_out_records(recipe: Recipe) -> dict[str, Source]:
    """What the recipe holds out of its class lists, by the name of the data set."""
    sets = {name: open_set(recipe, name, data) for name, data in recipe.semantic.items()}
    return {name: divide(source, recipe.holdout)[1] for name, source in sets.items()}


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

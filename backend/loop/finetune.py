"""The recipe of a project's fine-tune, and the photos that tell whether old classes were forgotten.

What always holds: the recipe starts from the project's champion, trains on the snapshot's side "train" alone, and
replays those old sets of the recipe that are on this machine. Without any, the learning rate is lowered (`GENTLER`),
since then nothing else keeps the old classes; the less the champion knows of the project's classes, the more it is
raised (`FASTER`). The report says so.
"""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from lasagna.errors import ConfigError, DataError
from lasagna.network.config import ModelConfig
from lasagna.settings import Settings
from training.data.records import Record
from training.data.sets import is_here, open_set, with_replay
from training.data.spread import spread
from training.recipe.files import read_recipe, recipe_from_values, shipped_recipes, to_values
from training.recipe.values import Recipe

CORRECTIONS = "mine"
"""The name that a fine-tune's recipe gives to the corrections among its data sets."""
GENTLER = 0.3
"""Share of the recipe's learning rate that is used where there is nothing to replay."""
FASTER = 4.0
"""Multiple of the recipe's learning rate that is used where the champion does not know the classes."""
UNKNOWN, KNOWN = 0.2, 0.6
"""Mean IoU on corrected photos that are new to the champion, up to which it does not know their classes, and from which
on it does; in between the factor falls from `FASTER` to 1. docs/lab/log.md says where all three come from."""
REPLAY_PHOTOS = 12
"""Photos of each old set that both models are asked about."""


def recipe_file(settings: Settings, start: Path) -> Path:
    """The recipe that a checkpoint is fine-tuned by: the one that is set, else the shipped one for its kind."""
    if settings.train_recipe:
        return Path(settings.train_recipe).expanduser()
    kind = ModelConfig.load(start / "config.json").vision.kind
    return shipped_recipes()["finetune" if kind == "pyramid" else "finetune-lora"]


def make_recipe(settings: Settings, start: Path, snapshot: Path, output: Path) -> tuple[Recipe, list[str]]:
    """The recipe, and what has to be said about it.

    Args:
        settings: `train_recipe`, `train_changes` and `replay_data` are read.
        start: The champion's checkpoint folder.
        snapshot: A snapshot's folder (`backend.loop.snapshot`).
        output: The run's folder.

    Raises:
        ConfigError: The recipe is wrong, or has no set for the corrections.
    """
    path = recipe_file(settings, start)
    changes = [f"output={output}", f"start={start}", "model=null", "holdout=0.0", *settings.train_changes.split()]
    if settings.replay_data:
        changes.append(f"data={Path(settings.replay_data).expanduser()}")
    recipe, missing = with_replay(read_recipe(path, changes).recipe)
    if CORRECTIONS not in recipe.semantic:
        raise ConfigError(f"{path}: a fine-tune's recipe has the corrections among its sets, called {CORRECTIONS!r}")
    values, notes = to_values(recipe), []
    sets: dict[str, Any] = values["tasks"]["semantic"]["sets"]
    sets[CORRECTIONS] = {
        "rate": recipe.semantic[CORRECTIONS].rate,
        "reader": "label_studio",
        "path": str(snapshot),
        "split": "train",
    }
    listed = [name for name, data in recipe.semantic.items() if name != CORRECTIONS and not is_here(recipe, name, data)]
    for name in listed:  # of a recipe of one's own, that has the old sets among the others
        del sets[name]
    missing += listed
    if missing:
        notes.append(f"not replayed, since they are not in {recipe.data}: {', '.join(missing)}")
    if len(sets) == 1:
        values["optimiser"]["learning_rate"] *= GENTLER
        notes.append(
            "nothing is replayed, so old classes may be forgotten: the learning rate is "
            f"{values['optimiser']['learning_rate']:.1e} ({GENTLER:g} of the recipe's), and the gate cannot see what "
            "was lost; set LASAGNA_REPLAY_DATA to a folder of the sets that the model was trained on"
        )
    return recipe_from_values(values), notes


def for_what_is_known(settings: Settings, recipe: Recipe, miou: float) -> tuple[Recipe, list[str]]:
    """The recipe for a champion with this mean IoU on corrected photos that are new to it, and what has to be said.

    Classes that are new to it are not learnt at the rate that keeps it from forgetting those that it knows. A rate that
    `train_changes` sets stays.
    """
    unknown = min(1.0, max(0.0, (KNOWN - miou) / (KNOWN - UNKNOWN)))
    if not unknown or "optimiser.learning_rate=" in settings.train_changes:
        return recipe, []
    values, times = to_values(recipe), 1 + (FASTER - 1) * unknown
    values["optimiser"]["learning_rate"] *= times
    return recipe_from_values(values), [
        f"the model {'hardly' if unknown == 1 else 'only partly'} knew these classes (mean IoU {miou:.3f} on corrected "
        f"photos that were new to it): the learning rate is {values['optimiser']['learning_rate']:.1e} ({times:.1f} "
        "times as high)"
    ]


def replay_records(recipe: Recipe) -> list[Record]:
    """Photos of the old sets, evenly spread: of their split "val" where they have one, else of what is trained on."""
    found: list[Record] = []
    for name, data in recipe.semantic.items():
        if name == CORRECTIONS:
            continue
        try:
            source = open_set(recipe, name, replace(data, split="val"))
        except (ConfigError, DataError):
            source = open_set(recipe, name, data)
        records = [source[i] for i in spread(len(source), REPLAY_PHOTOS)]
        found += [replace(record, image_id=f"{name}/{record.image_id}") for record in records]
    return found


def describe_sets(recipe: Recipe) -> str:
    """The replayed sets in words."""
    names: Sequence[str] = [name for name in recipe.semantic if name != CORRECTIONS]
    return ", ".join(names) or "none"

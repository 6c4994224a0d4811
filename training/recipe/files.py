"""Recipe files: YAML to a checked `Recipe`, with every error at once (`training.recipe.checked_yaml`).

recipe = read_recipe(Path("nano.yaml"), ["optimiser.steps=100"]).recipe
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from importlib.resources import files
from pathlib import Path
from typing import Any

import yaml
from pydantic import TypeAdapter, ValidationError

from lasagna.errors import ConfigError
from training.recipe.checked_yaml import KeyPath, YamlFile, explained, flatten
from training.recipe.sequence import PRESETS
from training.recipe.values import OF_VIEWS, Recipe


@dataclass(frozen=True)
class RecipeFile:
    """A recipe file: its values, and where each is from.

    Attributes:
        path: The file.
        recipe: The checked values.
        origins: Key path -> where a written value is from ("nano.yaml:12", "command line", "--smoke"); what is not in
            it has its default.
    """

    path: Path
    recipe: Recipe
    origins: Mapping[KeyPath, str] = field(default_factory=dict)

    def describe(self) -> Iterator[tuple[str, str, str]]:
        """Every resolved value as (key, value, where it is from)."""
        preset = f"preset, {self.origins[('sequence', 'preset')]}" if ("sequence", "preset") in self.origins else None
        for path, value in flatten(to_values(self.recipe)):
            # A data set that is written as its rate alone.
            known = self.origins.get(path) or (self.origins.get(path[:-1]) if self._is_rate_alone(path) else None)
            in_preset = preset if path[0] == "sequence" and path[-1] in PRESETS["order"] else None
            shown = str(value) if isinstance(value, Path) else value
            yield (
                ".".join(path),
                yaml.safe_dump(shown, default_flow_style=True).removesuffix("...\n").strip(),
                (known or in_preset or "default"),
            )

    def _is_rate_alone(self, path: KeyPath) -> bool:
        return path[-1] == "rate" and not any(other[:-1] == path[:-1] for other in self.origins)


def shipped_recipes() -> dict[str, Path]:
    """The recipes that come with the package: name and file."""
    folder = Path(str(files("training") / "recipes"))
    return {path.stem: path for path in sorted(folder.glob("*.yaml"))}


def read_recipe(path: Path, changes: Sequence[str] = (), smoke: bool = False) -> RecipeFile:
    """Reads and checks a recipe.

    Args:
        path: A YAML file, or the name of a shipped one, such as "finetune".
        changes: Values that replace or add to the file's, each as key=value with dots between nested keys; a value is
            read as YAML.
        smoke: Whether the recipe's `smoke` section is applied, after the file and before the changes.

    Raises ConfigError that lists all errors.
    """
    shipped = shipped_recipes()
    if not path.is_file() and str(path) in shipped:
        path = shipped[str(path)]
    elif not path.exists() and not path.suffix:
        raise ConfigError(f"{path}: neither a file nor a shipped recipe; those are {', '.join(shipped)}")
    file = YamlFile(path, "a recipe is a list of keys and values; start from a shipped one, such as nano")
    if smoke:
        section = file.values.get("smoke")
        if not isinstance(section, dict) or not section:
            file.problems.append(f"{path.name}: --smoke needs a section `smoke` with what it changes, as in nano.yaml")
        else:
            for key, value in section.items():
                file.replace(tuple(str(key).split(".")), value, "--smoke")
    file.change(changes)
    recipe = file.checked(Recipe)
    if recipe.deepspeed and not recipe.deepspeed.is_absolute():
        recipe = replace(recipe, deepspeed=path.parent / recipe.deepspeed)
    return RecipeFile(path, recipe, file.origins)


def recipe_from_values(values: Mapping[str, Any]) -> Recipe:
    """A recipe from nested dicts, as `to_values` gives them. Raises ConfigError that lists all errors."""
    try:
        return TypeAdapter(Recipe).validate_python(_without_unused_weights(values))
    except ValidationError as error:
        listed = "\n  ".join(explained(error, Recipe, {}))
        raise ConfigError(f"the recipe has errors\n  {listed}") from error


def _without_unused_weights(values: Mapping[str, Any]) -> dict[str, Any]:
    """Values without weights of terms that the recipe has not: until version 1.0 all were written, used or not."""
    losses = values.get("losses")
    if not isinstance(losses, dict) or (values.get("augment") and "semantic" in values.get("tasks", {})):
        return dict(values)
    return {**values, "losses": {name: weight for name, weight in losses.items() if name not in OF_VIEWS}}


def to_values(recipe: Recipe) -> dict[str, Any]:
    """A recipe as nested dicts of plain values, which `recipe_from_values` reads."""
    return {key: value for key, value in _plain(asdict(recipe)).items() if value is not None}


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    return str(value) if isinstance(value, Path) else value

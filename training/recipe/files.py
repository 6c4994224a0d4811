"""Recipe files: YAML to a checked `Recipe`, with every error at once.

    recipe = read_recipe(Path("nano.yaml"), ["optimiser.steps=100"]).recipe

What always holds: an error names the file, the line where there is one, the key's path, what was found and what may be
written; a key is written once; `1e-4` is a number (YAML 1.1 alone would make it text).
"""

import difflib
import re
import types
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields, is_dataclass, replace
from importlib.resources import files
from pathlib import Path
from typing import Annotated, Any, Union, get_args, get_origin, get_type_hints

import yaml
from pydantic import TypeAdapter, ValidationError

from lasagna.errors import ConfigError
from training.recipe.sequence import PRESETS
from training.recipe.values import OF_VIEWS, TASKS, Recipe

KeyPath = tuple[str, ...]


class _Loader(yaml.SafeLoader):
    """SafeLoader that also reads 1e-4 as a number."""


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"^[-+]?[0-9][0-9_]*(\.[0-9_]*)?[eE][-+]?[0-9]+$"), list("-+0123456789")
)


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
        for path, value in _flatten(to_values(self.recipe)):
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
    try:
        root = yaml.compose(path.read_text(encoding="utf-8"), Loader=_Loader)
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise ConfigError(f"{path}: not readable as YAML ({error})") from error
    problems: list[str] = []
    origins: dict[KeyPath, str] = {}
    if not isinstance(root, yaml.MappingNode):
        raise ConfigError(f"{path}: a recipe is a list of keys and values; start from a shipped one, such as nano")
    values = _construct(root, (), path.name, origins, problems)
    if smoke:
        if not isinstance(values.get("smoke"), dict) or not values["smoke"]:
            problems.append(f"{path.name}: --smoke needs a section `smoke` with what it changes, as in nano.yaml")
        for key, value in (values.get("smoke") or {}).items():
            _replace(values, origins, tuple(str(key).split(".")), value, "--smoke", problems)
    for change in changes:
        key, separator, text = change.partition("=")
        if not separator or not key:
            problems.append(f"{change!r} changes nothing: write key=value, as in optimiser.steps=100")
            continue
        try:
            value = yaml.load(text, Loader=_Loader)
        except yaml.YAMLError as error:
            problems.append(f"{change!r}: the value is not readable as YAML ({error})")
            continue
        _replace(values, origins, tuple(key.split(".")), value, "command line", problems)
    recipe = None
    try:
        recipe = TypeAdapter(Recipe).validate_python(values)
    except ValidationError as error:
        problems += [_explain(item, origins) for item in _without_repeats(error.errors())]
    if recipe is None or problems:
        listed = "\n  ".join(problems)
        raise ConfigError(f"{path}: {len(problems)} error{'s' * (len(problems) > 1)}\n  {listed}")
    if recipe.deepspeed and not recipe.deepspeed.is_absolute():
        recipe = replace(recipe, deepspeed=path.parent / recipe.deepspeed)
    return RecipeFile(path, recipe, origins)


def recipe_from_values(values: Mapping[str, Any]) -> Recipe:
    """A recipe from nested dicts, as `to_values` gives them. Raises ConfigError that lists all errors."""
    try:
        return TypeAdapter(Recipe).validate_python(_without_unused_weights(values))
    except ValidationError as error:
        listed = "\n  ".join(_explain(item, {}) for item in _without_repeats(error.errors()))
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


def _flatten(values: Any, path: KeyPath = ()) -> Iterator[tuple[KeyPath, Any]]:
    if isinstance(values, dict) and values:
        for key, value in values.items():
            yield from _flatten(value, (*path, str(key)))
    else:
        yield path, values


def _construct(
    node: yaml.MappingNode, path: KeyPath, name: str, origins: dict[KeyPath, str], problems: list[str]
) -> dict[str, Any]:
    """A mapping node as a dict; notes each value's line, and keys that are written twice."""
    values: dict[str, Any] = {}
    for key_node, value_node in node.value:
        key = (*path, str(key_node.value))
        where = f"{name}:{key_node.start_mark.line + 1}"
        if key[-1] in values:
            problems.append(f"{where}: {'.'.join(key)}: written twice, first at {origins[key]}; keep one of them")
        origins[key] = where
        if isinstance(value_node, yaml.MappingNode):
            values[key[-1]] = _construct(value_node, key, name, origins, problems)
        else:
            loader = _Loader("")
            values[key[-1]] = loader.construct_document(value_node)
            loader.dispose()
    return values


def _replace(
    values: dict[str, Any], origins: dict[KeyPath, str], key: KeyPath, value: Any, where: str, problems: list[str]
) -> None:
    target = values
    for i, parent in enumerate(key[:-1]):
        inner = target.get(parent)
        if inner is None:
            inner = target[parent] = {}
        if not isinstance(inner, dict):
            problems.append(f"{where}: {'.'.join(key)}: {'.'.join(key[: i + 1])} is {inner!r}, which holds no keys")
            return
        target = inner
    target[key[-1]] = value
    for known in [path for path in origins if path[: len(key)] == key]:
        del origins[known]
    for path, _ in _flatten(value, key):
        origins[path] = where
    origins[key] = where


def _without_repeats(errors: Iterable[Any]) -> Iterator[Any]:
    seen = set()
    for error in errors:
        if (key := (error["loc"], error["type"])) not in seen:
            seen.add(key)
            yield error


def _explain(error: Any, origins: Mapping[KeyPath, str]) -> str:
    """One error of pydantic in our words."""
    path = tuple(str(part) for part in error["loc"] if not str(part).startswith(("function-", "[key]")))
    where = next((origins[path[:n]] for n in range(len(path), 0, -1) if path[:n] in origins), None)
    kind, found = error["type"], error["input"]
    if kind == "unexpected_keyword_argument" or "[key]" in error["loc"]:
        known = _known_keys(path[:-1])
        near = difflib.get_close_matches(path[-1], known, n=1)
        hint = f"did you mean {near[0]}?" if near else f"known here: {', '.join(known)}"
        message = f"unknown key; {hint}"
    elif kind == "missing":
        message = "missing, and has no default"
    elif kind == "value_error":
        message = str(error["ctx"]["error"])
    else:
        message = f"{error['msg'][0].lower()}{error['msg'][1:].replace('input should', 'should')}"
        message = f"{message.removeprefix('input ')}, found {found!r}"
    return f"{where + ': ' if where else ''}{'.'.join(path) or 'the recipe'}: {message}"


def _known_keys(path: KeyPath) -> list[str]:
    """The keys that the schema has at a path."""
    here: Any = Recipe
    for part in path:
        here = _plain_type(here)
        if is_dataclass(here):
            here = get_type_hints(here, include_extras=True).get(part)
        elif get_origin(here) is dict:
            here = get_args(here)[1]
        else:
            return []
    here = _plain_type(here)
    if get_origin(here) is dict:
        return list(TASKS) if path == ("tasks",) else []
    return [item.name for item in fields(here)] if is_dataclass(here) else []


def _plain_type(annotation: Any) -> Any:
    """A type without `Annotated` and `| None`."""
    while True:
        if get_origin(annotation) is Annotated:
            annotation = get_args(annotation)[0]
        elif get_origin(annotation) in (Union, types.UnionType):
            annotation = next(arg for arg in get_args(annotation) if arg is not type(None))
        else:
            return annotation

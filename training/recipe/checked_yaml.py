"""YAML files to checked values, with every error at once: recipes, and whatever else is written in the same way.

What always holds: an error names the file, the line where there is one, the key's path, what was found and what may be
written; a key is written once; `1e-4` is a number (YAML 1.1 alone would make it text).
"""

import difflib
import re
import types
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

import yaml
from pydantic import TypeAdapter, ValidationError

from lasagna.errors import ConfigError

KeyPath = tuple[str, ...]
Checked = TypeVar("Checked")


class _Loader(yaml.SafeLoader):
    """SafeLoader that also reads 1e-4 as a number."""


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"^[-+]?[0-9][0-9_]*(\.[0-9_]*)?[eE][-+]?[0-9]+$"), list("-+0123456789")
)


class YamlFile:
    """The values of a YAML file, where each is from, and what was found wrong so far.

    Attributes:
        values: Nested dicts.
        origins: Key path -> where a written value is from ("nano.yaml:12", "command line").
        problems: Errors in words, which `checked` raises together with its own.
    """

    def __init__(self, path: Path, what: str) -> None:
        """Reads a file.

        Args:
            what: What it is ("a recipe is a list of keys and values"), for a file that is no such thing.

        Raises ConfigError where the file cannot be read, or is no mapping.
        """
        self.path, self.problems = path, list[str]()
        self.origins: dict[KeyPath, str] = {}
        try:
            root = yaml.compose(path.read_text(encoding="utf-8"), Loader=_Loader)
        except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
            raise ConfigError(f"{path}: not readable as YAML ({error})") from error
        if not isinstance(root, yaml.MappingNode):
            raise ConfigError(f"{path}: {what}")
        self.values = _construct(root, (), path.name, self.origins, self.problems)

    def replace(self, key: KeyPath, value: Any, where: str) -> None:
        """Puts a value in place of what is at a key path, or adds it."""
        target = self.values
        for i, parent in enumerate(key[:-1]):
            inner = target.get(parent)
            if inner is None:
                inner = target[parent] = {}
            if not isinstance(inner, dict):
                found = f"{'.'.join(key[: i + 1])} is {inner!r}, which holds no keys"
                self.problems.append(f"{where}: {'.'.join(key)}: {found}")
                return
            target = inner
        target[key[-1]] = value
        for known in [path for path in self.origins if path[: len(key)] == key]:
            del self.origins[known]
        for path, _ in flatten(value, key):
            self.origins[path] = where
        self.origins[key] = where

    def change(self, changes: Sequence[str]) -> None:
        """Applies changes of the command line: each key=value with dots between nested keys, the value as YAML."""
        for change in changes:
            key, separator, text = change.partition("=")
            if not separator or not key:
                self.problems.append(f"{change!r} changes nothing: write key=value, as in optimiser.steps=100")
                continue
            try:
                value = yaml.load(text, Loader=_Loader)
            except yaml.YAMLError as error:
                self.problems.append(f"{change!r}: the value is not readable as YAML ({error})")
                continue
            self.replace(tuple(key.split(".")), value, "command line")

    def checked(self, schema: type[Checked]) -> Checked:
        """The values as a pydantic dataclass. Raises ConfigError that lists all errors."""
        found: Checked | None = None
        problems = self.problems
        try:
            found = TypeAdapter(schema).validate_python(self.values)
        except ValidationError as error:
            problems = [*problems, *explained(error, schema, self.origins)]
        if found is None or problems:
            listed = "\n  ".join(problems)
            raise ConfigError(f"{self.path}: {len(problems)} error{'s' * (len(problems) > 1)}\n  {listed}")
        return found


def explained(error: ValidationError, schema: type, origins: Mapping[KeyPath, str]) -> list[str]:
    """The errors of pydantic in our words, each once."""
    return [_explain(item, schema, origins) for item in _without_repeats(error.errors())]


def flatten(values: Any, path: KeyPath = ()) -> Iterator[tuple[KeyPath, Any]]:
    """Every value that is no dict, with its key path."""
    if isinstance(values, dict) and values:
        for key, value in values.items():
            yield from flatten(value, (*path, str(key)))
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


def _without_repeats(errors: Iterable[Any]) -> Iterator[Any]:
    seen = set()
    for error in errors:
        if (key := (error["loc"], error["type"])) not in seen:
            seen.add(key)
            yield error


def _explain(error: Any, schema: type, origins: Mapping[KeyPath, str]) -> str:
    """One error of pydantic in our words."""
    path = tuple(str(part) for part in error["loc"] if not str(part).startswith(("function-", "[key]")))
    where = next((origins[path[:n]] for n in range(len(path), 0, -1) if path[:n] in origins), None)
    kind, found = error["type"], error["input"]
    if kind == "unexpected_keyword_argument" or "[key]" in error["loc"]:
        known = _known_keys(schema, path[:-1])
        near = difflib.get_close_matches(path[-1], known, n=1)
        hint = f"did you mean {near[0]}?" if near else f"known here: {', '.join(known)}"
        message = f"unknown key; {hint}"
    elif kind == "missing":
        message = "missing, and has no default"
    elif kind == "value_error":
        message = str(error["ctx"]["error"])
        inside = {origins[key] for key in origins if key[:-1] == path and re.search(rf"\b{key[-1]}\b", message)}
        elsewhere = sorted(origin for origin in inside if ":" not in origin)
        if elsewhere and where not in elsewhere:  # the line is that of the mapping, and the value is not written there
            message = f"{message} (values of {' and '.join(elsewhere)})"
    else:
        message = f"{error['msg'][0].lower()}{error['msg'][1:].replace('input should', 'should')}"
        message = f"{message.removeprefix('input ')}, found {found!r}"
    return ": ".join(part for part in (where, ".".join(path), message) if part)


def _known_keys(schema: type, path: KeyPath) -> list[str]:
    """The keys that the schema has at a path."""
    here: Any = schema
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
        keys = get_args(here)[0]
        return list(get_args(keys)) if get_origin(keys) is Literal else []
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

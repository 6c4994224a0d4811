"""Readers: one small module per published data set, all yielding `training.records.Record`.

    source = open_source("ade20k", Path("data"), "train")
    source.classes, len(source), source[0].read()

Every reader takes the folder of its data set and a split, checks at once that the folder is complete, and says what it
looked for where it is not. To add a data set, write a module with a class that has `classes`, `__len__` and
`__getitem__`, and name it in `SOURCES`.
"""

import importlib
from pathlib import Path
from typing import Protocol

from lasagna.errors import ConfigError
from training.records import Record


class Source(Protocol):
    """One split of one data set.

    Attributes:
        classes: The names that the data set annotates, in its own order; empty for texts.
    """

    classes: tuple[str, ...]

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> Record: ...


# Name -> (module and class, folder under the data root). The folders are those that LISA's and LaSagnA's published
# training code expect.
SOURCES: dict[str, tuple[str, str]] = {}


def open_source(name: str, root: Path, split: str) -> Source:
    """The split of a data set under a root. Raises ConfigError for an unknown name, DataError for a broken folder."""
    if name not in SOURCES:
        raise ConfigError(f"unknown data set {name!r}; known are {', '.join(sorted(SOURCES))}")
    where, folder = SOURCES[name]
    module, _, attribute = where.partition(":")
    source: Source = getattr(importlib.import_module(f"training.sources.{module}"), attribute)(root / folder, split)
    return source

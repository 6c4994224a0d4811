"""Readers: one small module per published data set, all yielding `training.data.records.Record`.

    source = open_source("ade20k", Path("data"), "train")
    source.classes, len(source), source[0].read()

Every reader takes a folder and a split, checks at once that the folder is complete, and says what it looked for where
it is not. To add a data set, write a module with a class (or a function that returns one) that has `classes`, `__len__`
and `__getitem__`, and name it in `SOURCES`; docs/extend.md shows an example.
"""

import difflib
import importlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from lasagna.errors import ConfigError
from training.data.records import Record
from training.data.sources.own_coco import OwnCoco


class Source(Protocol):
    """One split of one data set.

    Attributes:
        classes: The names that the data set annotates, in its own order; empty for texts.
    """

    classes: tuple[str, ...]

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> Record: ...


@dataclass(frozen=True)
class ReaderEntry:
    """Where a data set's reader is, and where the data set itself.

    Attributes:
        reader: "module:attribute" below `training.data.sources`, called with a folder and a split.
        folder: That folder, below the data root. A data set that uses another's photos takes the root itself.
        splits: Those that are published with annotations.
        own: A format of one's own sets: each is in a folder that has the set's name, below the data root.
    """

    reader: str
    folder: str = "."
    splits: tuple[str, ...] = ("train", "val")
    own: bool = False


_UNC = ("train", "val", "testA", "testB")

# The folders are those that LISA's and LaSagnA's published training code expect.
SOURCES: dict[str, ReaderEntry] = {
    # Class lists.
    "ade20k": ReaderEntry("ade20k:ade20k", "ade20k"),
    "cocostuff": ReaderEntry("cocostuff:cocostuff"),
    "cocostuff_pixelmaps": ReaderEntry("cocostuff:cocostuff_pixelmaps"),
    "coco_instances": ReaderEntry("coco_json:CocoInstances", "coco"),
    "coco_panoptic": ReaderEntry("coco_json:CocoPanoptic", "coco"),
    "cityscapes": ReaderEntry("cityscapes:cityscapes", "cityscapes"),
    "mapillary": ReaderEntry("mapillary:mapillary", "mapillary"),
    "mapillary_v1.2": ReaderEntry("mapillary:mapillary_12", "mapillary"),
    "openimages": ReaderEntry("openimages:OpenImages", "OpenImageV6", ("train", "val", "test")),
    "pascal_context_59": ReaderEntry("pascal:pascal_context_59"),
    "pascal_context_459": ReaderEntry("pascal:pascal_context_459"),
    "pascal_voc_20": ReaderEntry("pascal:pascal_voc"),
    # Texts with masks.
    "refclef": ReaderEntry("referring:RefClef", "refer_seg", _UNC),
    "refclef-berkeley": ReaderEntry("referring:RefClefBerkeley", "refer_seg", ("train", "val", "test")),
    "refcoco": ReaderEntry("referring:RefCoco", "refer_seg", _UNC),
    "refcoco-google": ReaderEntry("referring:RefCocoGoogle", "refer_seg", ("train", "val", "test")),
    "refcoco+": ReaderEntry("referring:RefCocoPlus", "refer_seg", _UNC),
    "refcocog": ReaderEntry("referring:RefCocoG", "refer_seg", ("train", "val", "test")),
    "refcocog-google": ReaderEntry("referring:RefCocoGGoogle", "refer_seg"),
    "grefcoco": ReaderEntry("referring:GRefCoco", "refer_seg", _UNC),
    "reasonseg": ReaderEntry("reasoning:ReasonSeg", "reason_seg/ReasonSeg", ("train", "val", "test")),
    # Text alone.
    "llava_instruct_150k": ReaderEntry("vqa:LlavaInstruct", splits=("train",)),
    # One's own, in a folder of its own.
    "folder": ReaderEntry("folder:Folder", own=True),
    "expressions": ReaderEntry("expressions:Expressions", own=True),
    "coco": ReaderEntry("own_coco:OwnCoco", own=True),
    "label_studio": ReaderEntry("label_studio:LabelStudioExport", own=True),
}


@dataclass(frozen=True)
class LocatedSource:
    """Which reader reads a data set, and from which folder."""

    reader: str
    folder: Path

    def open(self, split: str, **options: Any) -> Source:
        """Raises DataError for a broken folder. `options` are the reader's own."""
        module, _, attribute = SOURCES[self.reader].reader.partition(":")
        reader = getattr(importlib.import_module(f"training.data.sources.{module}"), attribute)
        source: Source = reader(self.folder, split, **options)
        return source


def find_source(
    name: str, root: Path, *, reader: str | None = None, path: Path | None = None, layout: str = "folder"
) -> LocatedSource:
    """Where a data set is and what reads it.

    Args:
        name: Of the data set.
        root: The data root, below which every data set has its folder.
        reader: One of `SOURCES`; None: as the data set's folder looks (masks with a classes.json, a Label Studio export
            with its label_config.xml, or annotations in COCO's format), else the reader that is called as the data set.
        path: The data set's own folder, wherever it is; None: below the root, by its name or as its reader says.
        layout: What reads a data set in the folder layout: "folder", or "expressions" for texts made from its masks.

    Raises ConfigError for an unknown reader, or where there is neither a reader nor a folder.
    """
    own = path or root / name
    if reader is None:
        is_published = path is None and name in SOURCES and not SOURCES[name].own
        reader = _in_layout(own, layout) if is_published else _reader_of(own, layout)
        reader = reader or name
        if reader not in SOURCES:
            near = difflib.get_close_matches(name, SOURCES, n=1)
            raise ConfigError(
                f"{own} is no data set in the folder layout (it has no classes.json), no Label Studio export with its "
                f"label_config.xml, and has no annotations in COCO's format, and no reader is called {name!r}"
                f"{f' (did you mean {near[0]}?)' if near else ''}; give `path` or `reader`, or another folder of all "
                "data sets (`data`, or LASAGNA_DATA)"
            )
    if reader not in SOURCES:
        raise ConfigError(f"unknown data set {reader!r}; known are {', '.join(sorted(SOURCES))}")
    entry = SOURCES[reader]
    return LocatedSource(reader, own if entry.own else path or root / entry.folder)


def _in_layout(own: Path, layout: str) -> str | None:
    return layout if any((own / part).exists() for part in ("classes.json", "masks/classes.json")) else None


def _reader_of(own: Path, layout: str) -> str | None:
    """What reads a folder or file of one's own, by what is in it."""
    if _in_layout(own, layout):
        return layout
    if own.is_file():
        return "coco" if own.read_bytes()[:200].lstrip(b"\xef\xbb\xbf \r\n\t").startswith(b"{") else "label_studio"
    if (own / "label_config.xml").exists() and not (own / "coco.json").exists():
        return "label_studio"
    return "coco" if OwnCoco.is_here(own) else None


def open_source(name: str, root: Path, split: str, folder: Path | None = None) -> Source:
    """The split of a data set that is called as its reader.

    Args:
        name: One of `SOURCES`.
        root: The data root; of one's own sets, the set itself.
        split: As in its entry.
        folder: The data set's own folder, wherever it is; None: its entry's below the root.

    Raises ConfigError for an unknown name, DataError for a broken folder.
    """
    if folder is None and name in SOURCES:
        folder = root / SOURCES[name].folder
    return find_source(name, root, reader=name, path=folder).open(split)

"""The options --labels, --labels-file and --label-config of several commands."""

from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Literal

import click

from lasagna.labels.classes import make_label_config, read_labels, read_labels_file
from lasagna.labels.configuration import LabelConfig, parse_label_config, read_label_config, read_text
from lasagna.labels.kinds import kind_of
from lasagna.labels.parts import each_once
from lasagna.masks.segmentation import ClassQuery

OBJECTS = ("off", "things", "all")
"""Whose objects are told apart."""


def choose_classes(
    labels: str | None,
    labels_file: Path | None,
    label_config: Path | None,
    objects: Literal["off", "things", "all"] = "things",
) -> tuple[list[ClassQuery], LabelConfig, str]:
    """The class list, and a labelling configuration that fits it: the user's, with labels that its tasks are to have,
    or one made for the list.

    Args:
        labels, labels_file, label_config: The options.
        objects: Of which classes objects are told apart: of none, of those that are things or of which the
            configuration says so, or of all.

    Raises:
        click.UsageError: Not exactly one of the three was given. A configuration that takes labels from each task
            needs one of the other two beside it.
    """
    given = [option for option in (labels, labels_file) if option is not None]
    config = None if label_config is None else read_label_config(label_config)
    if config is not None and label_config is not None and len(given) == config.has_dynamic_labels:
        listed = _told_apart(_listed(labels, labels_file), "things") if given else []
        asked = _told_apart(each_once([*config.classes, *listed]), objects)
        return asked, config, read_text(label_config)
    if config is not None and config.has_dynamic_labels:
        raise click.UsageError(
            f"{label_config} takes labels from each task; say which, with one of --labels and --labels-file"
        )
    if len(given) + (config is not None) != 1:
        raise click.UsageError(
            f"{'no classes' if not given else 'classes in several ways'}: give one of --labels, --labels-file and "
            "--label-config"
        )
    queries = _listed(labels, labels_file)
    # What the names say by themselves is not written: the configuration says it as well.
    told = _told_apart(queries, objects)
    xml = make_label_config(queries if objects == "things" else told)
    return told, parse_label_config(xml), xml


def _told_apart(queries: Iterable[ClassQuery], objects: Literal["off", "things", "all"]) -> list[ClassQuery]:
    """The queries with what is wanted of objects; of "things" with what a name says where a query says nothing."""
    if objects != "things":
        return [replace(query, objects=objects == "all") for query in queries]
    kinds = {query: kind_of(query.name) or kind_of(query.text) for query in queries}
    return [replace(q, objects=True) if q.objects is None and kind == "thing" else q for q, kind in kinds.items()]


def _listed(labels: str | None, labels_file: Path | None) -> list[ClassQuery]:
    return read_labels(labels) if labels is not None else read_labels_file(labels_file or "")

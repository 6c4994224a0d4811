"""The options --labels, --labels-file and --label-config of several commands."""

from pathlib import Path

import click

from lasagna.labels.classes import make_label_config, read_labels, read_labels_file
from lasagna.labels.configuration import LabelConfig, parse_label_config, read_label_config, read_text
from lasagna.labels.parts import each_once
from lasagna.masks.segmentation import ClassQuery


def choose_classes(
    labels: str | None, labels_file: Path | None, label_config: Path | None
) -> tuple[list[ClassQuery], LabelConfig, str]:
    """The class list, and a labelling configuration that fits it: the user's, with labels that its tasks are to have,
    or one made for the list.

    Raises:
        click.UsageError: Not exactly one of the three was given. A configuration that takes labels from each task
            needs one of the other two beside it.
    """
    given = [option for option in (labels, labels_file) if option is not None]
    config = None if label_config is None else read_label_config(label_config)
    if config is not None and label_config is not None and len(given) == config.has_dynamic_labels:
        asked = each_once([*config.classes, *(_listed(labels, labels_file) if given else ())])
        return list(asked), config, read_text(label_config)
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
    xml = make_label_config(queries)
    return queries, parse_label_config(xml), xml


def _listed(labels: str | None, labels_file: Path | None) -> list[ClassQuery]:
    return read_labels(labels) if labels is not None else read_labels_file(labels_file or "")

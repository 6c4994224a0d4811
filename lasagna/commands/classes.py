"""The options --labels, --labels-file and --label-config of several commands."""

from pathlib import Path

import click

from lasagna.labels.classes import make_label_config, read_labels, read_labels_file
from lasagna.labels.configuration import LabelConfig, parse_label_config, read_label_config
from lasagna.masks.segmentation import ClassQuery


def choose_classes(
    labels: str | None, labels_file: Path | None, label_config: Path | None
) -> tuple[list[ClassQuery], LabelConfig, str]:
    """The class list, and a labelling configuration that fits it: the user's, or one made for the list.

    Raises:
        click.UsageError: Not exactly one of the three was given.
    """
    given = [option for option in (labels, labels_file, label_config) if option is not None]
    if len(given) != 1:
        raise click.UsageError(
            f"{'no classes' if not given else 'classes in several ways'}: give one of --labels, --labels-file and "
            "--label-config"
        )
    if label_config is not None:
        config = read_label_config(label_config)
        return list(config.classes), config, label_config.read_text(encoding="utf-8-sig")
    queries = read_labels(labels) if labels is not None else read_labels_file(labels_file or "")
    xml = make_label_config(queries)
    return queries, parse_label_config(xml), xml

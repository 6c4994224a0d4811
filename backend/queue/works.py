"""A task of Label Studio as a work of the queue."""

import json
from collections.abc import Mapping
from typing import Any

from backend.queue.store import Work
from backend.studio.images import task_data
from lasagna.labels.configuration import LabelConfig


def work_of(
    config: LabelConfig, task: Any, project: str, config_key: str, version: str, *, replace: bool = False
) -> Work:
    """What to predict for a task as Label Studio sends it.

    Args:
        config: The project's labelling configuration.
        task: With `id` and `data`.
        project: Label Studio's uid.
        config_key: Of the configuration (`Store.keep_config`).
        version: That is asked for.
        replace: Older predictions of the model go once this one is posted.

    Raises:
        ImageError: It shows no image that can be asked.
    """
    config.shown(task_data(task))
    return Work(project, task_number(task), read_of_task(config, task), config_key, version, replace=replace)


def read_of_task(config: LabelConfig, task: Any) -> str:
    """What a labelling configuration reads of a task's data, as JSON (`Work.data`).

    Raises:
        ImageError: The task has no data.
    """
    return json.dumps(config.data_read(task_data(task)), sort_keys=True)


def task_number(task: Any) -> int | None:
    """The id of a task, None where it has none that Label Studio could have given."""
    found = task.get("id") if isinstance(task, Mapping) else None
    return found if isinstance(found, int) and not isinstance(found, bool) else None

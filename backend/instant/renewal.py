"""Predictions of the newest head for the tasks that annotators open next.

Label Studio asks the backend for a task that has no prediction when somebody opens it, and gets the newest head's. A
task that was pre-labelled before keeps its older prediction; so after each new head the next few tasks of the project
that nobody has worked on are predicted again, and the older prediction goes.

What always holds: a task with an annotation, a skipped one or a draft is left alone; predictions of other models are
left alone; no more than `AHEAD` tasks are predicted for one head.
"""

import logging

from backend.instant.heads import HeadState
from backend.queue.jobs import enqueue_works
from backend.queue.provenance import Provenance
from backend.queue.store import Store
from backend.queue.works import work_of
from backend.studio.client import LabelStudio
from backend.studio.project_id import number_of
from backend.studio.version_names import base_version
from lasagna.errors import ImageError
from lasagna.labels.configuration import parse_label_config
from lasagna.labels.question import name_version
from lasagna.settings import Settings

logger = logging.getLogger(__name__)

AHEAD = 4
"""Tasks that are renewed for a head: an annotator opens one at a time, and the next correction brings a newer head."""


def renew_next(
    store: Store, label_studio: LabelStudio, project: str, head: HeadState, settings: Settings, ahead: int = AHEAD
) -> int:
    """Asks for new predictions of the next tasks; returns for how many.

    Args:
        project: Label Studio's uid.
        head: In use now.
        settings: Of the worker.

    Raises:
        LabelStudioError: Label Studio cannot be reached.
    """
    number = int(number_of(project))
    works = []
    xml = str(label_studio.project(number)["label_config"])
    config, config_key = parse_label_config(xml), store.keep_config(xml)
    asked = name_version(head.full_version, Provenance(store).question_of(project, config, settings))
    for task in label_studio.next_tasks(number, ahead):
        ours = {version for version in task.model_versions if base_version(version) == head.version}
        if not ours or ours == {asked}:
            continue  # Label Studio asks for it by itself, or it has the newest one
        try:
            sent = {"id": task.id, "data": task.data}
            works.append(work_of(config, sent, project, config_key, asked, replace=True))
        except ImageError as error:
            logger.info("task %d is not renewed: %s", task.id, error)
    registered = store.register(works, 0) if works else []
    new = [entry.key for entry in registered if entry.status == "new"]
    enqueue_works(store, new, 1, name="instant")
    return len(new)

"""Since when labels stand in the projects' labelling configurations, and which were renamed. Files only, no torch.

    REGISTRY/labels/P.json        of the project with the uid P (`lasagna.labels.history.LabelHistory`)

Whoever sees a configuration notes its labels here: the web process with `/setup`, `/predict` and the webhook of a
changed project, pre-labelling, and the jobs that read annotations. What always holds: a file changes by being replaced
as a whole, under a lock that the kernel drops when its holder dies; what cannot be noted is said in the log and keeps
nobody from predicting.
"""

import fcntl
import json
import logging
from collections.abc import Callable, Iterable
from datetime import UTC, datetime
from pathlib import Path

from backend.registry.records import project_key, project_number
from lasagna.errors import RegistryError
from lasagna.files import write_atomically
from lasagna.labels.history import LabelHistory, label_set
from lasagna.labels.parts import ImageConfig

logger = logging.getLogger(__name__)

FOLDER = "labels"


class LabelHistories:
    """The histories of every project of a registry.

    Args:
        registry: The registry's folder.
    """

    def __init__(self, registry: Path) -> None:
        self._folder = registry / FOLDER
        self._noted: dict[str, dict[str, list[str]]] = {}

    def of(self, project: str) -> LabelHistory:
        """The history of a project; an empty one where nothing was noted.

        Raises:
            RegistryError: Its file is damaged.
        """
        path = self._path(project)
        try:
            return LabelHistory.from_dict(json.loads(path.read_text(encoding="utf-8")))
        except FileNotFoundError:
            return LabelHistory()
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise RegistryError(
                f"{path} cannot be read ({error!r}); take it from a backup, or remove it: then only what is annotated "
                "from now on says that a class is absent"
            ) from error

    def renamed(self, project: str) -> dict[str, str]:
        """Labels of a project that were renamed: old name -> new name; none, and a warning, where that is damaged."""
        try:
            return dict(self.of(project).renamed)
        except RegistryError as error:
            logger.warning("%s", error)
            return {}

    def note(self, project: str, images: Iterable[ImageConfig], at: datetime | None = None) -> bool:
        """Notes the labels that stand in a project's configuration now; whether they are others than before.

        Args:
            images: Of the configuration.
            at: When they were seen; default: now.
        """
        labels = label_set(images)
        if self._noted.get(project) == labels:
            return False
        try:
            before = self.of(project)
            after = self._change(project, lambda known: known.with_set(labels, at or datetime.now(UTC)))
        except RegistryError as error:
            logger.warning("the labels of project %s are not noted: %s", project_number(project), error)
            return False
        self._noted[project] = labels
        return bool(before.seen) and after != before

    def rename(self, project: str, old: str, new: str) -> LabelHistory:
        """Notes that a label was renamed, and returns the history. Raises RegistryError where it cannot be written."""
        return self._change(project, lambda known: known.with_rename(old, new))

    def forget_rename(self, project: str, old: str) -> LabelHistory:
        """Forgets that a label was renamed, and returns the history. Raises RegistryError as `rename`."""
        return self._change(project, lambda known: known.without_rename(old))

    def _change(self, project: str, change: Callable[[LabelHistory], LabelHistory]) -> LabelHistory:
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
            with (self._folder / ".lock").open("w") as lock:
                fcntl.flock(lock, fcntl.LOCK_EX)
                before = self.of(project)
                after = change(before)
                if after != before:
                    text = json.dumps(after.as_dict(), indent=1, ensure_ascii=False) + "\n"
                    write_atomically(self._path(project), text, durable=True)
        except OSError as error:
            raise RegistryError(
                f"{self._folder} cannot be written to ({error}); set LASAGNA_REGISTRY to a folder of your own"
            ) from error
        return after

    def _path(self, project: str) -> Path:
        return self._folder / f"{project_key(project)}.json"

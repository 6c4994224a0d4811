"""Removing the predictions of former versions from a project: each promotion leaves them on every task.

What always holds: a task that is annotated keeps its predictions, since what its annotator was shown is what a
correction is measured against (`backend.effort`); annotations and drafts are not touched; a prediction of a version
that was not named stays.
"""

from collections.abc import Callable, Collection
from dataclasses import dataclass

from backend.studio.client import LabelStudio


@dataclass(frozen=True)
class Pruning:
    """What would be removed.

    Attributes:
        project: Number of the project.
        versions: Whose predictions go.
        tasks: Tasks that have one and are not annotated.
        kept: Annotated tasks that have one and keep it.
    """

    project: int
    versions: frozenset[str]
    tasks: tuple[int, ...]
    kept: tuple[int, ...]

    def run(self, label_studio: LabelStudio, advance: Callable[[], None] = lambda: None) -> int:
        """Removes them and returns how many; killed in the midst, the rest goes with the next run.

        One request for each version, where no annotated task has any; else task by task.

        Args:
            label_studio: The project's, with a token that may change it.
            advance: Called once per task.

        Raises:
            LabelStudioError: It cannot be reached, or refuses.
        """
        if not self.kept:
            removed = sum(label_studio.delete_version(self.project, version) for version in sorted(self.versions))
            for _ in self.tasks:
                advance()
            return removed
        removed = 0
        for task in self.tasks:
            for prediction in label_studio.predictions(task):
                if prediction.get("model_version") in self.versions:
                    label_studio.delete_prediction(int(prediction["id"]))
                    removed += 1
            advance()
        return removed


def plan_pruning(label_studio: LabelStudio, project: int, versions: Collection[str]) -> Pruning:
    """Looks through the project's tasks. Raises LabelStudioError."""
    chosen = frozenset(versions)
    found = [(task.id, task.is_annotated) for task in label_studio.tasks(project) if task.model_versions & chosen]
    tasks = tuple(number for number, is_annotated in found if not is_annotated)
    return Pruning(project, chosen, tasks, tuple(number for number, is_annotated in found if is_annotated))

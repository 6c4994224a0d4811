"""Which predictions answer the question of now, and why the others do not.

A prediction is outdated where the project's tasks are asked something else by now (labels, controls, parameters), where
its task shows another image or has other labels of its own, and where another version serves, or a newer instant head.
What always holds: the version of now on a task is believed, except where what the task shows is known to be another;
what is not known counts as unchanged.
"""

import sys
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from backend.queue.made import Made, data_digest
from backend.queue.provenance import Provenance
from backend.queue.works import read_of_task
from backend.studio.client import StudioTask
from backend.studio.version_names import parse_version
from lasagna.labels.configuration import LabelConfig
from lasagna.labels.question import ProjectQuestion

Kind = Literal["image", "labels", "controls", "parameters", "question", "version", "head"]


@dataclass(frozen=True)
class Why:
    """Why predictions are outdated: the kind of reason, and in words what has happened since they were made."""

    kind: Kind
    words: str


_IMAGE = Why("image", "the task's image was replaced, or its own labels were changed")
_UNKNOWN = Why("question", "it is not known under which labels and parameters they were made")
_HEAD = Why("head", "more corrections were learnt")
_VERSION = Why("version", "another version serves the project")


class Reasons:
    """Says why predictions of another version than that of now are outdated.

    Args:
        provenance: What questions their digests stand for.
        version: That predictions carry which are made now (`Predictor.asked_version`).
        question: That is asked now; None: not known.
        renamed: Labels that were renamed: old name -> new name.
    """

    def __init__(
        self,
        provenance: Provenance,
        version: str,
        question: ProjectQuestion | None,
        renamed: Mapping[str, str] | None = None,
    ) -> None:
        self._provenance, self._question, self._renamed = provenance, question, renamed or {}
        self.version, self._now = version, parse_version(version)
        self._since: dict[str, tuple[int, Why]] = {}

    def of(self, versions: Iterable[str]) -> Why:
        """Of the versions that a task has predictions of, none of them that of now."""
        names = [parse_version(version) for version in versions]
        ours = [name for name in names if name.base == self._now.base]
        if not ours:
            return _VERSION
        if any(name.question == self._now.question for name in ours):
            return _HEAD
        of_each = [self._of_question(digest) for digest in sorted({name.question for name in ours})]
        return min(of_each, key=lambda found: found[0])[1]

    def counted(self, made_by: Mapping[str, int]) -> tuple[int, list[tuple[Why, int]]]:
        """Of numbers of predictions by the version that they carry: how many are up to date, and why others are not."""
        found: Counter[Why] = Counter()
        for version, number in made_by.items():
            if version != self.version:
                found[self.of([version])] += number
        return made_by.get(self.version, 0), found.most_common()

    def _of_question(self, digest: str) -> tuple[int, Why]:
        """How many things have changed since a question was asked, and which."""
        if digest not in self._since:
            before = self._provenance.question(digest)
            found = [] if before is None or self._question is None else self._question.since(before, self._renamed)
            words = "; ".join(difference.words for difference in found)
            self._since[digest] = (len(found), Why(found[0].kind, words)) if found else (sys.maxsize, _UNKNOWN)
        return self._since[digest]


class Freshness:
    """Judges the predictions of the tasks of one project.

    Args:
        provenance: What they were made of.
        uid: Label Studio's name of the project.
        config: Its labelling configuration.
        reasons: Why those of other versions are outdated.
    """

    def __init__(self, provenance: Provenance, uid: str, config: LabelConfig, reasons: Reasons) -> None:
        self._provenance, self._uid, self._config, self._reasons = provenance, uid, config, reasons

    def outdated(self, tasks: Sequence[StudioTask]) -> list[Why | None]:
        """Why the predictions of each task are outdated; None where it has one that is not, or none at all."""
        made = self._provenance.made(self._uid, [task.id for task in tasks])
        return [self._why(task, known) for task, known in zip(tasks, made, strict=True)]

    def _why(self, task: StudioTask, made: Made | None) -> Why | None:
        if self._reasons.version not in task.model_versions:
            return self._reasons.of(task.model_versions) if task.model_versions else None
        if made is None or made.version != self._reasons.version:
            return None
        read = read_of_task(self._config, {"id": task.id, "data": task.data})
        return None if made.data == data_digest(read) else _IMAGE

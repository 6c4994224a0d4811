"""What the registry (`backend.registry.registry`) notes of a version, and of what a project's versions are to it."""

import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from backend.studio.project_id import number_of
from lasagna.errors import RegistryError

RECORD = "version.json"
"""The file in a version's folder that holds a `Version`."""


@dataclass(frozen=True)
class Version:
    """One version.

    Attributes:
        id: Name and content in one word; the model version that its predictions carry.
        name: What kind of model it is: "nano".
        project: The uid of the project for which it was first added; its number in records of 1.0.
        parent: The version that its training started from; "" where that is not known.
        base: The version whose weights it is laid over, in the registry or outside; "" where it is whole.
        created: When it was added, ISO 8601 in UTC.
        labels: The label set that it was fine-tuned for.
        snapshot: Id of the data that it was fine-tuned on.
        digest: Its content in 64 hex digits.
        metrics: What the gate measured.
        folder: Where it lies.
    """

    id: str
    name: str
    project: str
    parent: str
    base: str
    created: str
    labels: tuple[str, ...]
    snapshot: str
    digest: str
    metrics: Mapping[str, Any]
    folder: Path

    @property
    def checkpoint(self) -> Path:
        """The checkpoint's folder: `Lasagna.from_pretrained(version.checkpoint).version == version.id`."""
        return self.folder / self.name

    @property
    def reports(self) -> list[Path]:
        """The files that came with it, such as the gate's report."""
        return sorted(path for path in self.folder.iterdir() if path.is_file() and path.name != RECORD)

    def as_dict(self) -> dict[str, Any]:
        """The fields, JSON-ready."""
        return {**asdict(self), "labels": list(self.labels), "folder": str(self.folder)}


@dataclass(frozen=True)
class Event:
    """One change: "add", "promote" or "rollback" of `version` ("": the worker's own model), which followed `before`."""

    action: str
    version: str
    before: str
    reason: str
    by: str
    when: str


@dataclass(frozen=True)
class Aliases:
    """What a project's versions are to it.

    Attributes:
        champion: The id of the version that serves; "": the worker's own model.
        candidate: The newest that was added and does not serve; "": none.
        former: The champions before, that of longest ago first: what `rollback` goes back through.
        history: Every change, oldest first.
    """

    champion: str = ""
    candidate: str = ""
    former: tuple[str, ...] = ()
    history: tuple[Event, ...] = ()

    def role(self, version: str) -> str:
        """ "champion", "candidate", "former" (a champion before) or "" for anything else."""
        if not version:
            return ""
        if version == self.champion:
            return "champion"
        if version == self.candidate:
            return "candidate"
        return "former" if version in self.former else ""

    def members(self) -> set[str]:
        """Every version that was ever the project's; some may have been pruned."""
        return {event.version for event in self.history if event.version}


def project_key(project: str) -> str:
    """The name of a project as it is in a file's name: its uid, or the number where that is all that is known. Raises
    RegistryError for anything else."""
    if not re.fullmatch(r"\w[\w-]*(\.[0-9]+)?", project):
        raise RegistryError(
            f"{project!r} is not the number of a project in Label Studio, such as 12, nor a uid such as 12.1698765432"
        )
    return project


def project_number(project: str) -> str:
    """Label Studio's number of a project, of that or of its uid ("12.1698"), for people."""
    return number_of(project_key(project))

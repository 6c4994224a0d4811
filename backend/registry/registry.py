"""The versions that fine-tuning made, and which of them serves each project. Files only, no torch.

One folder (the setting `registry`):

    versions/ID/NAME/           a checkpoint folder (`lasagna.checkpoint.folder`), whole or light; ID is what
                                `checkpoint_version` calls it: "nano-3f2a9c10"
    versions/ID/version.json    where it is from (`Version`)
    versions/ID/...             the gate's report
    projects/P.json             champion, candidate and history of the project with the uid P (`Aliases`)

What always holds:

- A version is there whole or not at all, and never changes: it is made beside, flushed to the disk and renamed. What a
  killed `add` left is removed by the next one.
- The same content has the same id, whoever adds it, so adding it again changes nothing.
- Aliases change by replacing one file under a lock that the kernel drops when its holder dies. Readers take no lock:
  what they read was complete at some moment.
- A version that a project serves, would roll back to, or has as its candidate, and a version whose weights one of these
  is laid over, is never pruned.
"""

import fcntl
import getpass
import json
import re
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from uuid import uuid4

from backend.registry.records import RECORD, Aliases, Event, Version, project_key, project_number
from backend.studio.project_id import number_of
from backend.studio.version_names import base_version
from lasagna.checkpoint.folder import (
    BASE,
    CONTENT,
    base_checkpoint,
    checkpoint_digest,
    checkpoint_version,
    find_checkpoint,
    load_labels,
    version_name,
    write_labels,
)
from lasagna.errors import RegistryError
from lasagna.files import flush_to_disk, write_atomically
from lasagna.settings import registry_folder

__all__ = ["Aliases", "Event", "Registry", "Version", "find_version", "project_key", "project_number"]

_ADDING, _REMOVED = ".adding-", ".removed-"


def find_version(id: str) -> Path | None:
    """The checkpoint of a version in the registry that the settings name, None where it has none of this id.

    Entry point `lasagna.checkpoints`: so that `--model ID` works in every command.
    """
    name = id.rpartition("-")[0]  # an id is NAME-DIGEST
    folder = registry_folder() / "versions" / id / name
    return folder if name and "/" not in id and (folder / "config.json").exists() else None


class Registry:
    """The registry in a folder, which need not exist yet.

    `project` is the uid that Label Studio gives to backends ("12.1698"), or the number where that is all that is known
    (`backend.registry.known_projects`). Every method raises RegistryError for a name that is not there or a file that
    cannot be read.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._versions, self._projects = folder / "versions", folder / "projects"

    # --- looking ------------------------------------------------------------------------------------------------------

    def versions(self, project: str | None = None) -> list[Version]:
        """All versions, or those that were ever added to or served a project; oldest first."""
        found = [self._read(path.parent) for path in self._versions.glob(f"[!.]*/{RECORD}")]
        if project is not None:
            members = self.aliases(project).members()
            found = [version for version in found if version.id in members]
        return sorted(found, key=lambda version: version.created)

    def version(self, id: str) -> Version:
        """The version of an id, or of what its predictions carry. Raises RegistryError that names what there is."""
        id = base_version(id)
        folder = self._versions / id
        if not re.fullmatch(r"\w[\w.-]*", id) or not (folder / RECORD).exists():
            names = [version.id for version in self.versions()]
            there = f"there are {', '.join(names)}" if names else "it has none yet"
            raise RegistryError(f"no version {id!r} in the registry {self.folder}: {there}")
        return self._read(folder)

    def projects(self) -> list[str]:
        """The projects that have a version, or had one."""
        names = (path.name.removesuffix(".json") for path in self._projects.glob("[!.]*.json"))
        return sorted(names, key=lambda name: (len(number_of(name)), name))

    def aliases(self, project: str) -> Aliases:
        """What a project's versions are to it."""
        path = self._path(project)
        try:
            values = json.loads(path.read_text(encoding="utf-8"))
        except FileNotFoundError:
            return Aliases()
        except (OSError, ValueError) as error:
            raise RegistryError(f"{path} cannot be read ({error}); correct it or move it away") from error
        try:
            history = tuple(Event(**event) for event in values["history"])
            return Aliases(values["champion"], values["candidate"], tuple(values["former"]), history)
        except (KeyError, TypeError) as error:
            raise RegistryError(f"{path} is not a project's record ({error!r}); correct it or move it away") from error

    def champion(self, project: str) -> Version | None:
        """The version that serves a project, or None: the worker's own model does."""
        return self._aliased(project, "champion")

    def candidate(self, project: str) -> Version | None:
        """The newest version of a project that was added and does not serve, or None."""
        return self._aliased(project, "candidate")

    def _aliased(self, project: str, alias: str) -> Version | None:
        id = getattr(self.aliases(project), alias) if project else ""
        try:
            return self.version(id) if id else None
        except RegistryError as error:
            raise RegistryError(f"the {alias} of project {project_number(project)} is gone: {error}") from error

    # --- changing -----------------------------------------------------------------------------------------------------

    def add(
        self,
        checkpoint: Path,
        *,
        project: str,
        parent: str,
        snapshot: str,
        metrics: Mapping[str, Any],
        reports: Sequence[Path] = (),
        name: str | None = None,
        labels: Sequence[str] = (),
    ) -> Version:
        """Copies a checkpoint into the registry and makes it the project's candidate.

        Args:
            checkpoint: A checkpoint folder, whole or light. A light one whose base is a version of this registry refers
                to it by a path inside the registry, which may then be moved as a whole.
            parent: The version that training started from.
            snapshot: Id of the data.
            metrics: JSON-ready.
            reports: Files that are kept beside it.
            name: The first part of its id; default: that of its parent, else the folder's name.
            labels: The label set, part of the content; default: what the checkpoint's `labels.json` says.

        Returns:
            The version; one that is there already (the same content) as it was.

        Raises:
            CheckpointError: The folder is not a complete checkpoint, or its base is not there.
        """
        source = find_checkpoint(checkpoint)
        name = name_after(parent, name, source.resolve().name)
        for report in reports:
            if report.name in (name, RECORD):
                raise RegistryError(f"a report cannot be called {report.name}: the registry has a file of that name")
        self._path(project)  # refuses a name that is none, before anything is copied
        with self._locked("versions"):
            self._clean()
            beside = self._versions / f"{_ADDING}{uuid4().hex}"
            try:
                self._copy(source, beside / name, labels)
                id, digest = self._identity(beside / name)
                if not self._exists(id):
                    base = base_checkpoint(beside / name)
                    version = Version(
                        id=id,
                        name=name,
                        project=project_key(project),
                        parent=parent,
                        base=checkpoint_version(base) if base else "",
                        created=_now(),
                        labels=load_labels(beside / name),
                        snapshot=snapshot,
                        digest=digest,
                        metrics=metrics,
                        folder=beside,
                    )
                    self._finish(version, reports)
            finally:
                shutil.rmtree(beside, ignore_errors=True)
            self._set_candidate(project, id, parent, snapshot)
        return self.version(id)

    def _copy(self, source: Path, target: Path, labels: Sequence[str]) -> None:
        for path in sorted(path for pattern in (*CONTENT, "README.md") for path in source.glob(pattern)):
            place = target / path.relative_to(source)
            place.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(path, place)  # with its time, which checksums.json notes
        if base := base_checkpoint(source):
            base, versions = base.resolve(), self._versions.resolve()
            if base.is_relative_to(versions):
                _write_json(target / BASE, {"base": f"../../{base.relative_to(versions)}"})
            elif json.loads((target / BASE).read_text(encoding="utf-8"))["base"].startswith("."):
                _write_json(target / BASE, {"base": str(base)})
        if labels:
            write_labels(target, labels)

    def _identity(self, checkpoint: Path) -> tuple[str, str]:
        """Id and digest of what is about to be a version."""
        digest = checkpoint_digest(checkpoint)
        id = version_name(checkpoint.name, digest)
        if self._exists(id) and self.version(id).digest != digest:
            raise RegistryError(f"{id} names another content already; give this one another name")
        return id, digest

    def _finish(self, version: Version, reports: Sequence[Path]) -> None:
        """Turns a folder that was made beside into a version."""
        beside = version.folder
        for report in reports:
            shutil.copyfile(report, beside / report.name)
        record = {key: value for key, value in version.as_dict().items() if key != "folder"}
        _write_json(beside / RECORD, record)
        for path in sorted(beside.rglob("*"), reverse=True):  # what is in a folder before the folder
            if path.is_file():
                path.chmod(0o444)
            flush_to_disk(path)
        flush_to_disk(beside)
        beside.rename(self._versions / version.id)
        flush_to_disk(self._versions)

    def _set_candidate(self, project: str, id: str, parent: str, snapshot: str) -> None:
        def change(aliases: Aliases) -> Aliases:
            if id in (aliases.champion, aliases.candidate):
                return aliases
            event = _event("add", id, parent, f"fine-tuned on {snapshot}" if snapshot else "")
            return replace(aliases, candidate=id, history=(*aliases.history, event))

        self._change(project, change)

    def promote(self, project: str, id: str, reason: str) -> Version:
        """Lets a version serve a project from the next request on. It need not have been added for that project."""
        version = self.version(id)

        def change(aliases: Aliases) -> Aliases:
            self.version(id)  # it may have been pruned while this waited for the lock
            if aliases.champion == id:
                return aliases
            return Aliases(
                champion=id,
                candidate="" if aliases.candidate == id else aliases.candidate,
                former=(*aliases.former, aliases.champion) if aliases.champion else aliases.former,
                history=(*aliases.history, _event("promote", id, aliases.champion, reason)),
            )

        self._change(project, change)
        return version

    def rollback(self, project: str, reason: str) -> Version | None:
        """Lets the champion before serve a project again, and the one before that at the next call.

        Returns:
            The version that serves now; None: the worker's own model.

        Raises:
            RegistryError: The project is served by the worker's own model already.
        """

        def change(aliases: Aliases) -> Aliases:
            if not aliases.champion:
                raise RegistryError(
                    f"project {project_number(project)} has no champion to roll back: the worker's own model serves it"
                )
            former = [id for id in aliases.former if self._exists(id)]
            before = former.pop() if former else ""
            event = _event("rollback", before, aliases.champion, reason)
            return replace(aliases, champion=before, former=tuple(former), history=(*aliases.history, event))

        champion = self._change(project, change).champion
        return self.version(champion) if champion else None

    def prune(self, keep: int, project: str | None = None, *, dry_run: bool = False) -> list[Version]:
        """Removes old versions.

        Args:
            keep: How many of each project's newest stay in any case.
            project: Only versions that are this project's alone.
            dry_run: Whether nothing is removed.

        Returns:
            What was, or would be, removed.
        """
        if keep < 0:
            raise RegistryError(f"the number of versions to keep is 0 or more, not {keep}")
        with self._locked("versions"), self._locked("projects"):
            self._clean()
            there = self.versions()
            kept, others = set[str](), set[str]()
            for name in self.projects():
                aliases = self.aliases(name)
                own = [version.id for version in there if version.id in aliases.members()]
                former = [id for id in aliases.former if self._exists(id)]
                kept.update((aliases.champion, aliases.candidate, *former[-1:], *(own[-keep:] if keep else ())))
                if project is not None and name != project_key(project):
                    others.update(own)
            for version in reversed(there):  # a base is older than what is laid over it
                if version.id in kept | others and version.base:
                    kept.add(version.base)
            pruned = [version for version in there if version.id not in kept | others]
            if project is not None:
                members = self.aliases(project).members()
                pruned = [version for version in pruned if version.id in members]
            for version in () if dry_run else reversed(pruned):
                version.folder.rename(self._versions / f"{_REMOVED}{uuid4().hex}")
            if not dry_run:
                self._clean()
        return pruned

    # --- files --------------------------------------------------------------------------------------------------------

    def _path(self, project: str) -> Path:
        return self._projects / f"{project_key(project)}.json"

    def _exists(self, id: str) -> bool:
        return (self._versions / id / RECORD).exists()

    def _read(self, folder: Path) -> Version:
        path = folder / RECORD
        try:
            values = json.loads(path.read_text(encoding="utf-8"))
            return Version(**{**values, "labels": tuple(values["labels"])}, folder=folder)
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise RegistryError(f"{path} is not a version's record ({error!r}); move {folder} away") from error

    def _change(self, project: str, change: Callable[[Aliases], Aliases]) -> Aliases:
        """Replaces a project's record by what `change` makes of it."""
        with self._locked("projects"):
            before = self.aliases(project)
            after = change(before)
            if after != before:
                text = json.dumps(asdict(after), indent=1, ensure_ascii=False) + "\n"
                write_atomically(self._path(project), text, durable=True)
        return after

    def _clean(self) -> None:
        """Removes what a process that was killed left. The caller holds the lock, so nobody is at work on it."""
        for pattern in (_ADDING, _REMOVED):
            for folder in self._versions.glob(f"{pattern}*"):
                shutil.rmtree(folder)

    @contextmanager
    def _locked(self, name: str) -> Iterator[None]:
        """Holds the lock of the versions or of the projects; who wants both takes that of the versions first."""
        try:
            self._versions.mkdir(parents=True, exist_ok=True)
            self._projects.mkdir(parents=True, exist_ok=True)
            file = (self.folder / f".{name}.lock").open("w")
        except OSError as error:
            raise RegistryError(
                f"the registry {self.folder} cannot be written to ({error}); set LASAGNA_REGISTRY to another folder"
            ) from error
        with file:
            fcntl.flock(file, fcntl.LOCK_EX)
            yield


def name_after(parent: str, name: str | None = None, folder: str = "") -> str:
    """What a version is called, the first part of its id: the name that is given, else its parent's, else its folder's.
    A checkpoint in a folder of this name has the version's id already before it is added, if its labels are noted."""
    return _slug(name or parent.rpartition("-")[0] or folder)


def _slug(text: str) -> str:
    return re.sub(r"[^\w.-]+", "-", text).strip("-.") or "model"


def _event(action: str, version: str, before: str, reason: str) -> Event:
    try:
        user = getpass.getuser()
    except (OSError, KeyError):  # a container's user may have no name
        user = ""
    return Event(action, version, before, reason, user, _now())


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="microseconds")


def _write_json(path: Path, value: Any) -> None:
    path.unlink(missing_ok=True)  # a copy may be read-only
    path.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")

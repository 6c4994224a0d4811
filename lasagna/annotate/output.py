"""The files of OUT: they grow out of sight and are put in place together, never over what somebody else wrote.

    OUT/.results/parts/          files of the whole set, while images come in
    OUT/.results/next/           files that are complete, until every image is done
    OUT/.results/written.json    what the last run wrote: the hash of each file, what its sets mean, its images

What always holds:

- A file in OUT is replaced or removed only where its content is what an earlier run wrote there. Any other (corrected,
  or somebody's own) is kept and listed, unless the run was told to overwrite.
- Files that mean something only together (label files and the list of classes) change together: a run that is killed
  leaves the old set or the new one (`lasagna.annotate.swap`). Where one of them has to be kept and would mean something
  else beside the new ones, the whole set is kept.
- What a run with other formats wrote stays, and nothing else is ever touched.
"""

import fnmatch
import json
import os
import shutil
from collections.abc import Callable, Container, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any

from lasagna.annotate.results import content_hash
from lasagna.annotate.sources import leaves_its_folder
from lasagna.annotate.swap import files_below, replace_files, swap_folder, uninterrupted
from lasagna.errors import LasagnaError
from lasagna.files import file_digest, parse_json, write_atomically

MOST_SHOWN = 20
"""Files that a message lists."""

_LAYOUT = 2
_LINK = "link:"


class ChangedFilesError(LasagnaError):
    """Files that somebody changed stand in the way of a set with another meaning."""

    exit_code = 1


@dataclass(frozen=True)
class FileSet:
    """Files of OUT that belong together.

    Attributes:
        name: What the set is called.
        tops: Names in OUT: of one folder with all below it, or of files; "*" stands for anything.
        meaning: What its files have in common, or None where each can be read alone. Files of two meanings must not
            lie side by side.
        table: The file that says it, with its content: label files beside another one would be misread.
        is_data: Whether a file of this name is read by that table, whoever wrote it; None: there are none.
    """

    name: str
    tops: tuple[str, ...]
    meaning: str | None = None
    table: tuple[str, str] | None = None
    is_data: Callable[[str], bool] | None = None

    def owns(self, name: str) -> bool:
        """Whether a file of OUT belongs to it."""
        first = name.partition("/")[0]
        return any(fnmatch.fnmatchcase(first, top) for top in self.tops)

    def others(self, found: Iterable[str], known: Container[str]) -> list[str]:
        """Of files in OUT those that are none of ours, and would be read by the table."""
        return [name for name in found if self.is_data is not None and self.is_data(name) and name not in known]


@dataclass(frozen=True)
class Kept:
    """A file, or a set, that was left as it is, and why."""

    name: str
    reason: str


CHANGED = "changed since it was written"
FOREIGN = "not written by this command"
UNKNOWN = "written by an earlier version, which kept no record of its files: it may have been changed since"


@dataclass
class _Plan:
    """What is done about one set."""

    files: FileSet
    write: list[str] = field(default_factory=list)
    remove: list[str] = field(default_factory=list)
    kept: dict[str, str] = field(default_factory=dict)
    blocked: str | None = None


@dataclass
class Written:
    """What the runs so far wrote into OUT: the content of `written.json`.

    Attributes:
        files: Name -> hashes that may be ours: one, or two of a run that was killed on the last yards; none of a
            version that kept none.
        sets: Name of a set -> its meaning, likewise.
        images: Name -> hash of its content, and its place, JSON-ready.
        root: The folder or address that names are relative to.
    """

    files: dict[str, list[str]] = field(default_factory=dict)
    sets: dict[str, list[str]] = field(default_factory=dict)
    images: dict[str, tuple[str, Any]] = field(default_factory=dict)
    root: str | None = None

    @classmethod
    def load(cls, path: Path) -> "Written":
        """Of a file; a missing or damaged one says that nothing was written."""
        try:
            found = parse_json(path.read_bytes())
        except (OSError, ValueError):
            return cls()
        if isinstance(found, list):  # before there were hashes
            found = {"layout": _LAYOUT, "files": {str(n): [] for n in found}, "sets": {}, "images": {}, "root": None}
        if not isinstance(found, dict) or found.get("layout") != _LAYOUT:
            return cls()
        try:
            images = {str(name): (content, place) for name, (content, place) in found["images"].items()}
            written = cls(_noted(found["files"]), _noted(found["sets"]), images, found["root"])
        except (AttributeError, KeyError, TypeError, ValueError):
            return cls()
        # The folder may be somebody else's: what it names is replaced and removed, so it has to lie in here.
        written.files = {n: known for n, known in written.files.items() if not leaves_its_folder(("", *n.split("/")))}
        return written

    def save(self, path: Path) -> None:
        """Writes the file, as a whole."""
        write_atomically(path, json.dumps({"layout": _LAYOUT, **vars(self)}))


def _noted(found: dict[str, list[str]]) -> dict[str, list[str]]:
    """Names with hashes, of a file. Raises AttributeError or TypeError where it is anything else."""
    return {str(name): [str(content) for content in known] for name, known in found.items()}


class PartFile:
    """A file of the output that grows while images come in, and is moved into place when it is complete.

    Args:
        path: Where it grows. What an earlier run left there is overwritten.
    """

    def __init__(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self.path = path
        self._file = path.open("w", encoding="utf-8", newline="")
        self.entries = 0

    def add(self, text: str) -> None:
        """An entry; a comma and a new line go before every one but the first."""
        self._file.write(f",\n{text}" if self.entries else text)
        self.entries += 1

    def write(self, text: str) -> None:
        """Appends text as it is, which is no entry."""
        self._file.write(text)

    def copy_to(self, other: "PartFile") -> None:
        """Appends what is here, which is closed, to another part."""
        self.close()
        with self.path.open(encoding="utf-8", newline="") as file:
            shutil.copyfileobj(file, other._file, 1 << 20)

    def close(self) -> None:
        self._file.close()

    def remove(self) -> None:
        """Takes it away: it was part of another."""
        self.close()
        self.path.unlink()


def stage(out: Path, name: str, data: bytes | str) -> str:
    """Writes what will be OUT/name; `OutputFolder.take` with the hash that this returns makes it part of the output."""
    write_atomically(out / ".results" / "next" / name, data)
    return content_hash(data)


class OutputFolder:
    """The files of one run's output.

    Args:
        out: The folder.
        overwrite: Whether files that somebody changed, or that are not of this command, are written over.

    Attributes:
        path: The folder.
        before: What the runs before this one wrote.
        images: Of this run, as of `Written`.
        root: Likewise.
    """

    def __init__(self, out: Path, *, overwrite: bool = False) -> None:
        self.path = out
        self._overwrite = overwrite
        self._results = out / ".results"
        self._next = self._results / "next"
        self._list = self._results / "written.json"
        self._wanted: dict[str, str] = {}
        self._parts: list[PartFile] = []
        self.before = Written.load(self._list)
        self.images: dict[str, tuple[str, Any]] = {}
        self.root: str | None = None

    def clear(self, keep: str | None = None) -> None:
        """Takes away what a run that was stopped left half done.

        Args:
            keep: What the run before must have noted here for its files to stay: its pieces are used again.
        """
        note = self._results / "next-of"
        left = note.read_text() if note.exists() else None
        if keep is None or left != keep:
            shutil.rmtree(self._next, ignore_errors=True)
            for shards in self._results.glob("*/shards"):  # their pieces stand for files that were there
                shutil.rmtree(shards, ignore_errors=True)
        shutil.rmtree(self._results / "whole", ignore_errors=True)
        write_atomically(note, keep or "")

    # --- What is written ----------------------------------------------------------------------------------------------

    def write(self, name: str, data: bytes | str) -> None:
        """OUT/name, where name is relative and has "/"."""
        self.take(name, stage(self.path, name, data))

    def take(self, name: str, content: str) -> None:
        """A file that was staged, with the hash of its content."""
        self._wanted[name] = content

    def take_in_place(self, name: str) -> None:
        """A file that was written in place, since its name says its content. One that is not there is passed over."""
        known = self.before.files.get(name)
        if (self.path / name).exists():
            self._wanted[name] = known[0] if known else self._digest(self.path / name) or ""

    def link(self, name: str, target: str) -> None:
        """OUT/name as a symbolic link."""
        path = self._next / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.unlink(missing_ok=True)
        path.symlink_to(target)
        self._wanted[name] = _LINK + target

    def part(self, name: str) -> PartFile:
        """OUT/name to be written piece by piece, in a place of its own; `put` makes it part of the output."""
        part = PartFile(self._results / "parts" / f"{name}.part")
        self._parts.append(part)
        return part

    def put(self, part: PartFile, name: str) -> None:
        """The part, complete, as OUT/name."""
        part.close()
        (self._next / name).parent.mkdir(parents=True, exist_ok=True)
        os.replace(part.path, self._next / name)
        self._wanted[name] = file_digest(self._next / name).hex()[:32]

    def close(self) -> None:
        """Closes what a run that stops leaves half written."""
        for part in self._parts:
            part.close()

    # --- What is there ------------------------------------------------------------------------------------------------

    def check(self, sets: Sequence[FileSet]) -> list[str]:
        """Whether the sets can be renewed, as far as that can be told before anything is computed.

        Returns:
            What will not be written, in words.

        Raises:
            ChangedFilesError: A set that an earlier run wrote would get another meaning, and files of it were changed.
        """
        said, problems = [], []
        for files in sets:
            if self._overwrite or not self._changes_meaning(files):
                continue
            before = {name: known for name, known in self.before.files.items() if files.owns(name)}
            found = self._found(files, before)
            changed = [name for name, content in found.items() if name in before and content not in before[name]]
            added = files.others(found, before)
            if before and (changed or added):
                problems.append((files, changed, added))
            elif not before and files.table is not None and files.is_data is not None:
                said.append(_stays(files, f"{files.table[0]} is {FOREIGN}, and says something else"))
        if problems:
            reasons = {
                name: FOREIGN if name in added else CHANGED if self.before.files[name] else UNKNOWN
                for _, changed, added in problems
                for name in [*changed, *added]
            }
            listed = "".join(f"\n  {name}: {reason}" for name, reason in list(reasons.items())[:MOST_SHOWN])
            raise ChangedFilesError(
                f"{self.path} holds {len(reasons)} file{'s' * (len(reasons) > 1)} that would mean something else "
                f"beside what is asked for now (other classes, order or parameters), so nothing is written:{listed}\n"
                "choose another --out, or write over them with --overwrite"
            )
        return said

    def plan(self, sets: Sequence[FileSet]) -> tuple[list[_Plan], list[Kept]]:
        """What becomes of each file, and which are kept as they are."""
        plans = [self._plan(files) for files in sets]
        kept = []
        for plan in plans:
            if plan.blocked is not None:
                kept.append(Kept(plan.files.name, plan.blocked))
            kept += [Kept(name, reason) for name, reason in plan.kept.items()]
        return plans, kept

    def apply(self, plans: Sequence[_Plan]) -> list[Kept]:
        """Puts everything in place. Returns files that somebody changed at that very moment: they are kept."""
        done = [plan for plan in plans if plan.blocked is None]
        after = Written(dict(self.before.files), dict(self.before.sets), self.images, self.root)
        both = Written(dict(self.before.files), dict(self.before.sets), self.images, self.root)
        for plan in done:
            for name in [*self.before.files, *self._wanted]:
                if not plan.files.owns(name) or name in plan.kept:
                    continue
                if name in self._wanted:
                    after.files[name] = [self._wanted[name]]
                    both.files[name] = [self._wanted[name], *self.before.files.get(name, [])]
                else:
                    after.files.pop(name, None)
            if plan.files.meaning is not None:
                after.sets[plan.files.name] = [plan.files.meaning]
                both.sets[plan.files.name] = [plan.files.meaning, *self.before.sets.get(plan.files.name, [])]
        late: list[str] = []
        with uninterrupted():
            both.save(self._list)  # a run that is killed from here on leaves files that the next one knows
            for plan in done:
                late += self._put_in_place(plan)
            for name in late:
                after.files.pop(name, None)
            after.save(self._list)
        shutil.rmtree(self._next, ignore_errors=True)
        return [Kept(name, CHANGED) for name in late]

    def _put_in_place(self, plan: _Plan) -> list[str]:
        top = plan.files.tops[0]
        inside = all(name.startswith(f"{top}/") for name in [*plan.write, *plan.remove])
        if not plan.write and not plan.remove:
            return []
        if not inside or not plan.write:
            replace_files(self.path, self._next, plan.write, plan.remove)
            return []
        below = [[name.removeprefix(f"{top}/") for name in names] for names in (plan.write, plan.remove)]
        late = swap_folder(self.path / top, self._next / top, self._results / "whole" / top, *below)
        return [f"{top}/{name}" for name in late]

    def _plan(self, files: FileSet) -> _Plan:
        plan = _Plan(files)
        wanted = {name: content for name, content in self._wanted.items() if files.owns(name)}
        before = {name: known for name, known in self.before.files.items() if files.owns(name)}
        found = self._found(files, wanted.keys() | before.keys())
        for name, content in wanted.items():
            here, known = found.get(name), before.get(name)
            if here is None:
                plan.write.append(name)
            elif here != content:
                if self._overwrite or (known and here in known):
                    plan.write.append(name)
                elif here.startswith(_LINK) and content.startswith(_LINK) and self._leads_alike(name, content):
                    plan.write += [name] if known is not None else []  # one's own link does as well
                else:
                    plan.kept[name] = FOREIGN if known is None else CHANGED if known else UNKNOWN
        for name in before.keys() - wanted.keys():
            here = found.get(name)
            if here is None:
                continue
            if self._overwrite or here in before[name]:
                plan.remove.append(name)
            else:
                plan.kept[name] = f"{CHANGED if before[name] else UNKNOWN}; its image is gone or has another name"
        plan.remove += self._outdated_caches(files, plan, found)
        plan.blocked = self._obstacle(files, plan, found) or self._blocked(files, plan, found)
        return plan

    def _blocked(self, files: FileSet, plan: _Plan, found: dict[str, str]) -> str | None:
        """Why the set has to stay as it is as a whole."""
        if self._overwrite or not self._changes_meaning(files):
            return None
        added = files.others(found, self.before.files)
        plan.kept.update(dict.fromkeys(added, FOREIGN))
        return _stays(files, "these files would mean something else beside the new ones") if plan.kept else None

    def _obstacle(self, files: FileSet, plan: _Plan, found: dict[str, str]) -> str | None:
        """A file where a folder has to be, or the other way round."""
        staying = found.keys() - set(plan.remove) - set(plan.write)
        folders = {str(parent): name for name in staying for parent in PurePosixPath(name).parents}
        for name in plan.write:
            above = next((str(parent) for parent in PurePosixPath(name).parents if str(parent) in staying), None)
            if above is not None:
                return _stays(files, f"{above} is no folder, and {name} has to lie in it")
            if name in folders:
                return _stays(files, f"{name} has to be a file, and {folders[name]} lies there")
        return None

    def _outdated_caches(self, files: FileSet, plan: _Plan, found: dict[str, str]) -> Iterator[str]:
        """What YOLO's loader keeps of labels beside them: it notices changed labels by their size alone."""
        if files.name == "yolo" and any(name.endswith(".txt") for name in [*plan.write, *plan.remove]):
            yield from (name for name in found if name.endswith(".cache"))

    def _changes_meaning(self, files: FileSet) -> bool:
        if files.meaning is None:
            return False
        known = self.before.sets.get(files.name)
        if known is not None and all(meaning == files.meaning for meaning in known):
            return False
        if known is None and files.is_data is None and not any(files.owns(name) for name in self.before.files):
            return False
        if files.table is None:
            return known is not None or any(files.owns(name) for name in self.before.files)
        name, content = files.table
        here = self._digest(self.path / name)
        return here != content_hash(content) if here is not None else known is not None

    def _leads_alike(self, name: str, content: str) -> bool:
        wanted = os.path.join(os.path.dirname(self.path / name), content.removeprefix(_LINK))
        return os.path.realpath(self.path / name) == os.path.realpath(wanted)

    def _found(self, files: FileSet, interesting: Container[str]) -> dict[str, str]:
        """The files of a set that are there, with the hashes of those that are interesting."""
        names: set[str] = set()
        for top in (name for name in os.listdir(self.path) if files.owns(name)):
            path = self.path / top
            if path.is_dir():
                names |= {f"{top}/{name}" for name in files_below(path)}
            elif os.path.lexists(path):
                names.add(top)
        return {name: (self._digest(self.path / name) or "") if name in interesting else "" for name in sorted(names)}

    @staticmethod
    def _digest(path: Path) -> str | None:
        """The hash of a file; of a link where it leads; None where there is neither."""
        if path.is_symlink():
            return _LINK + os.readlink(path)
        return file_digest(path).hex()[:32] if path.is_file() else None


def _stays(files: FileSet, reason: str) -> str:
    return f"{files.name} stays as it is as a whole: {reason}; choose another --out, or --overwrite"

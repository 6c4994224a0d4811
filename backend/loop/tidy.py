"""What the learning loop leaves behind and nobody needs any more: found, and removed.

What always holds: a snapshot that a version, an unfinished job or the next comparison refers to stays, and so do the
newest of each project; versions are never touched (somebody may roll back to them), nor is a job that has not ended.
What cannot be read is taken for needed.
"""

import json
import os
import shutil
import time
from collections import defaultdict
from collections.abc import Iterator, Set
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from backend.instant.heads import FOLDER as HEADS
from backend.loop.trainings import Trainings, unfinished_jobs
from backend.queue.store import Store
from backend.registry.registry import Registry
from backend.studio.project_id import number_of
from lasagna.errors import RegistryError
from lasagna.files import parse_json

_OF_A_PROJECT = (
    (HEADS, "", "corrections and heads"),
    ("snapshots", "", "snapshots"),
    ("labels", ".json", "histories of labels"),
)
"""What the registry keeps of a project besides its versions: the folder, how names in it end, in words."""


@dataclass(frozen=True)
class Keep:
    """The policy: how much stays.

    Attributes:
        snapshots: The newest of each project, besides those that something refers to.
        jobs: The newest ended jobs of each project, whatever their age.
        days: Younger jobs stay too; so does what Redis knows of a project that is gone.
        log_bytes: Of a log file; of a longer one the end stays, a tenth of it.
        gone: Days without a change after which the corrections, heads and snapshots go of a project that neither Redis
            nor a version knows any more: it was deleted, or nobody has opened it for that long.
    """

    snapshots: int = 3
    jobs: int = 20
    days: float = 30.0
    log_bytes: int = 20_000_000
    gone: float = 180.0


@dataclass(frozen=True)
class Garbage:
    """One thing that may go: a folder, a file (of a log its beginning), or what Redis has of a project (no `path`)."""

    what: str
    why: str
    bytes: int
    path: Path | None = None
    project: str = ""


def find_garbage(registry: Path, logs: Path, store: Store | None, keep: Keep = Keep()) -> list[Garbage]:
    """What may go by the policy; nothing is changed.

    Args:
        registry: The registry's folder.
        logs: The folder of our own processes' logs.
        store: The records in Redis; None: they are left alone.
        keep: The policy.

    Raises:
        RegistryError: A version cannot be read, so that it is not known what it needs.
        redis.RedisError: Redis is gone.
    """
    found = [*_snapshots(registry, keep), *_jobs(registry, keep), *_logs(logs, keep)]
    if store is None:
        return found
    known = {*store.projects(), *Registry(registry).projects()}
    known |= set(map(number_of, known))
    gone = list(_gone(registry, known, keep))
    whole = {garbage.path for garbage in gone}
    return [
        *(garbage for garbage in found if garbage.path is None or garbage.path.parent not in whole),
        *gone,
        *_projects(known, store, keep),
    ]


def remove(garbage: Garbage, store: Store | None) -> None:
    """Removes one thing; what is gone already is fine."""
    if garbage.project and store is not None:
        Trainings(store).forget(garbage.project)
    elif garbage.path is not None and garbage.path.is_dir():
        aside = garbage.path.with_name(f".gone-{garbage.path.name}")  # a reader sees all of it or nothing
        with suppress(OSError):
            garbage.path.rename(aside)
        shutil.rmtree(aside, ignore_errors=True)
    elif garbage.path is not None and garbage.path.suffix == ".log":
        _cut(garbage.path, garbage.bytes)
    elif garbage.path is not None:
        garbage.path.unlink(missing_ok=True)


def tidy(registry: Path, logs: Path, store: Store | None, keep: Keep = Keep()) -> list[Garbage]:
    """Finds and removes; as `find_garbage`."""
    for half_gone in (*registry.glob("*/.gone-*"), *registry.glob("*/*/.gone-*")):  # killed in the midst of `remove`
        shutil.rmtree(half_gone, ignore_errors=True)
    if not unfinished_jobs(registry):
        for link in (path for path in registry.glob("snapshots/*") if path.is_symlink()):
            link.unlink(missing_ok=True)  # of `backend.registry.takeover`, for a fine-tune that has ended
    found = find_garbage(registry, logs, store, keep)
    for garbage in found:
        remove(garbage, store)
    return found


def _snapshots(registry: Path, keep: Keep) -> Iterator[Garbage]:
    needed = {version.snapshot for version in Registry(registry).versions()}
    unfinished = unfinished_jobs(registry)
    for id in unfinished:
        needed.add(_value(registry / "jobs" / id / "snapshot.json", "id"))
    for folder in sorted((registry / "snapshots").glob("[!.]*")):
        if folder.is_symlink():
            continue
        newest = _value(folder / "seen.json", "id")
        mine = [path for path in folder.glob("[!.]*") if path.is_dir() and path.name != "unfinished"]
        mine.sort(key=lambda path: path.stat().st_mtime, reverse=True)
        for path in mine[keep.snapshots :]:
            if path.name not in needed and path.name != newest:
                why = "no version, no job and no comparison needs it"
                yield Garbage(f"snapshot {path.name} of project {number_of(folder.name)}", why, _size(path), path)


def _jobs(registry: Path, keep: Keep) -> Iterator[Garbage]:
    ended: dict[str, list[Path]] = defaultdict(list)
    for end in (registry / "jobs").glob("[!.]*/end.json"):
        ended[_value(end.with_name("job.json"), "project")].append(end)
    for project, ends in ended.items():
        ends.sort(key=lambda end: end.parent.name, reverse=True)  # a name begins with the time
        for end in ends[keep.jobs :]:
            days = (time.time() - end.stat().st_mtime) / 86400
            if days > keep.days:
                why = f"it ended {days:.0f} days ago, and {keep.jobs} newer ones of its project are there"
                yield Garbage(
                    f"job {end.parent.name} of project {number_of(project)}", why, _size(end.parent), end.parent
                )


def _logs(logs: Path, keep: Keep) -> Iterator[Garbage]:
    for path in sorted(logs.rglob("*.log")):
        size = path.stat().st_size
        if size > keep.log_bytes:
            yield Garbage(f"{path}", f"it has {size} bytes; its end stays", size - keep.log_bytes // 10, path)


def _gone(registry: Path, known: Set[str], keep: Keep) -> Iterator[Garbage]:
    """What the instant head and the fine-tunes kept of projects that nobody knows any more."""
    busy = {_value(registry / "jobs" / id / "job.json", "project") for id in unfinished_jobs(registry)}
    for kind, suffix, what in _OF_A_PROJECT:
        for place in sorted(registry.glob(f"{kind}/[!.]*{suffix}")):
            uid = place.name.removesuffix(suffix)
            if place.is_symlink() or {uid, number_of(uid)} & (known | busy):
                continue
            days = (time.time() - max(path.lstat().st_mtime for path in (place, *place.rglob("*")))) / 86400
            if days > keep.gone:
                why = f"nobody has asked for the project, and nothing was changed for {days:.0f} days"
                size = _size(place) if place.is_dir() else place.stat().st_size
                yield Garbage(f"{what} of project {number_of(uid)}", why, size, place)


def _projects(known: Set[str], store: Store, keep: Keep) -> Iterator[Garbage]:
    """Trainings of projects that nobody knows any more."""
    trainings = Trainings(store)
    for project in trainings.projects():
        state = trainings.of(project)
        days = (time.time() - float(state.get("ended") or 0)) / 86400
        if project not in known and state["state"] == "idle" and days > keep.days:
            what = f"training state of project {number_of(project)}"
            yield Garbage(what, "the project is known nowhere else", 0, None, project)


def _value(path: Path, name: str) -> str:
    """A text of a JSON file; "" where the file is not there. Raises RegistryError where it cannot be read."""
    try:
        return str(parse_json(path.read_bytes()).get(name) or "")
    except FileNotFoundError:
        return ""
    except (OSError, ValueError, AttributeError) as error:
        raise RegistryError(f"{path} cannot be read ({error}); correct it or move it away") from error


def _size(folder: Path) -> int:
    """Bytes that come back: a photo that other snapshots have too (a link) takes none."""
    total = 0
    for path in folder.rglob("*"):
        found = path.lstat()
        total += found.st_size if found.st_nlink == 1 else 0
    return total


def _cut(path: Path, away: int) -> None:
    """Takes so many bytes away at the beginning of a log that its process goes on appending to."""
    with path.open("rb+") as file:
        file.seek(away)
        end = file.read()
        file.seek(0)
        file.write(end)
        file.truncate()
        os.fsync(file.fileno())


def as_json(found: list[Garbage]) -> str:
    """For `lasagna gc --json`."""
    return json.dumps([{"what": g.what, "why": g.why, "bytes": g.bytes} for g in found], indent=2, ensure_ascii=False)

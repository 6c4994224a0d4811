"""What was kept by a project's number alone, by releases up to 1.0, becomes that of its uid.

    projects/3.json, labels/3.json, heads/3/, snapshots/3/     ->  projects/3.1698765432.json, ...
    lasagna:training:3 and what begins so                      ->  lasagna:training:3.1698765432

It belongs to the project that served under the number until now: the latest that Redis knows, else that of the newest
fine-tune, else the first that connects, or that a command is about. What always holds: nothing is overwritten or
removed. What the uid has already stays, and so does what is beside it by number; it is moved once nothing stands in its
way.
"""

import fcntl
import json
import logging
from contextlib import suppress
from pathlib import Path

from backend.queue.store import PREFIX, TRAINING, Store, as_text
from backend.registry.known_projects import FOLDERS
from backend.studio.project_id import is_project_name, made_at, number_of

logger = logging.getLogger(__name__)


def take_over(registry: Path, store: Store, connected: str = "") -> list[str]:
    """Moves what is left of earlier releases to the projects that it belongs to.

    Args:
        registry: The registry's folder.
        store: The records in Redis.
        connected: Uid of a project that connects now: only its number is looked at, and it is taken for the owner where
            no record names one.

    Returns:
        The uids that got something.

    Raises:
        redis.RedisError: Redis is gone.
    """
    numbers = [number for number in _left(registry, store, number_of(connected)) if is_project_name(number)]
    if not numbers:
        return []
    taken = []
    try:
        with (registry / ".takeover.lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            for number in numbers:
                uid = _owner(registry, store, number) or connected
                if made_at(uid) and _move(registry, store, number, uid):
                    taken.append(uid)
                    logger.info("what was kept of project %s by its number belongs to %s now", number, uid)
    except OSError as error:
        logger.error(
            "what %s keeps by the projects' numbers cannot be moved: %s; let it be written to", registry, error
        )
    return taken


def is_left(registry: Path, number: str) -> bool:
    """Whether files of a registry are still kept by the number of a project."""
    paths = (registry / folder / f"{number}{end}" for folder, end in FOLDERS)
    return any(path.exists() and not path.is_symlink() for path in paths)


def _left(registry: Path, store: Store, number: str) -> list[str]:
    """Numbers by which something is kept; of one that is given, only it is looked for."""
    found = set[str]()
    for folder, end in FOLDERS if not number else ():
        if (registry / folder).is_dir():
            names = (path.name.removesuffix(end) for path in (registry / folder).iterdir() if not path.is_symlink())
            found.update(name for name in names if name.isdecimal())
    trained = f"{PREFIX}trainings"
    if number:
        found |= {number} if is_left(registry, number) or store.redis.sismember(trained, number) else set()
    else:
        found.update(name for name in map(as_text, store.redis.smembers(trained)) if name.isdecimal())
    if found:
        registry.mkdir(parents=True, exist_ok=True)
    return sorted(found)


def _owner(registry: Path, store: Store, number: str) -> str:
    """The project that a number stood for; "" where no record says it."""
    known = [uid for uid in store.uids(number) if made_at(uid)]
    if known:
        return known[0]
    for path in sorted((registry / "jobs").glob(f"*-{number}-*/job.json"), reverse=True):  # names begin with the time
        with suppress(OSError, ValueError, KeyError, TypeError):
            uid = str(json.loads(path.read_text(encoding="utf-8"))["project"])
            if number_of(uid) == number and made_at(uid):
                return uid
    return ""


def _goes_on(registry: Path, number: str) -> bool:
    """Whether a fine-tune of the number has begun and not ended."""
    begun = (registry / "jobs").glob(f"*-{number}-*/snapshot.json")
    return any(not path.with_name("end.json").exists() for path in begun)


def _move(registry: Path, store: Store, number: str, uid: str) -> bool:
    """Whether anything was moved."""
    moved = 0
    for folder, end in FOLDERS:
        old, new = registry / folder / f"{number}{end}", registry / folder / f"{uid}{end}"
        if old.is_symlink() or not old.exists():
            continue
        if not new.exists():
            old.rename(new)
            moved += 1
        elif old.is_dir():
            for path in old.iterdir():
                if not (new / path.name).exists():
                    path.rename(new / path.name)
                    moved += 1
            with suppress(OSError):  # something is left
                old.rmdir()
        if folder == "snapshots" and not old.exists() and _goes_on(registry, number):
            old.symlink_to(new.name)  # the fine-tune has noted the path
    old_key, new_key = TRAINING + number, TRAINING + uid
    for end in (":changed", ":taken"):
        store.redis.sunionstore(new_key + end, new_key + end, old_key + end)
        moved += store.redis.delete(old_key + end)
    if store.redis.exists(old_key) and not store.redis.exists(new_key):
        store.redis.rename(old_key, new_key)
    if store.redis.sismember(f"{PREFIX}trainings", number):
        store.redis.sadd(f"{PREFIX}trainings", uid)
        store.redis.srem(f"{PREFIX}trainings", number)
        moved += 1
    return bool(moved)

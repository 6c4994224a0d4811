"""What has been corrected and not yet learnt from, by project, in Redis.

What always holds: a task stays noted until a head that knows of it is on disk, so that a worker that is killed at any
moment loses nothing; a task that changes again while it is learnt from stays noted (`done` compares the stamp); a task
that brought the worker down `CRASHES` times is set aside with a reason, and the others go on. Where Redis is new, the
job compares Label Studio's annotations with the store (`EVERYTHING`).
"""

import json
import time
from collections.abc import Iterable, Mapping
from typing import Any
from uuid import uuid4

from rq import Retry

from backend.queue import jobs
from backend.queue.store import KEEP_WORK, PREFIX, Store

EVERYTHING = "*"
"""Stands for "compare all annotated tasks with what was learnt": after a deletion, a promotion, or for a new Redis."""
CRASHES = 3
_QUEUED_SECONDS = 60
"""After so long a job that was queued and never began is queued again."""
_JOB_SECONDS = 600

# One field of the hash goes if it still has the stamp that was read.
_DONE = """
for i = 1, #ARGV, 2 do
  if redis.call('HGET', KEYS[1], ARGV[i]) == ARGV[i + 1] then
    redis.call('HDEL', KEYS[1], ARGV[i])
    redis.call('HDEL', KEYS[2], ARGV[i])
  end
end
return redis.call('HLEN', KEYS[1])
"""


class Changes:
    """The corrections of projects that wait to be learnt from. Every method raises `redis.RedisError`."""

    def __init__(self, store: Store) -> None:
        self.store, self._redis = store, store.redis
        self._done = store.redis.register_script(_DONE)

    def note(self, project: str, tasks: Iterable[int | str]) -> None:
        """Notes tasks that changed, and queues the project's job where none waits.

        Args:
            project: Label Studio's uid of the project.
            tasks: Their numbers, or `EVERYTHING`.
        """
        stamp = uuid4().hex
        fields = {str(task): stamp for task in tasks}
        if fields:
            self._redis.sadd(f"{PREFIX}instant", project)
            self._redis.hset(_key(project, "changed"), mapping=fields)
            self.queue_job(project)

    def queue_job(self, project: str) -> bool:
        """Queues the project's job; False where one waits already."""
        if not self._redis.set(_key(project, "queued"), "1", nx=True, ex=_QUEUED_SECONDS):
            return False
        jobs.queue(self._redis, "instant").enqueue(
            "backend.queue.jobs.learn_corrections",
            args=[project],
            job_timeout=_JOB_SECONDS,
            result_ttl=60,
            failure_ttl=KEEP_WORK,
            description=f"corrections of project {project.split('.')[0]}",
            retry=Retry(max=jobs.CRASHES),
        )
        return True

    def begin(self, project: str) -> None:
        """The project's job has begun: what is noted from now on needs another one."""
        self._redis.delete(_key(project, "queued"))

    def waiting(self, project: str) -> dict[str, str]:
        """Tasks that wait, with the stamp of their last change."""
        return {_text(task): _text(stamp) for task, stamp in self._redis.hgetall(_key(project, "changed")).items()}

    def attempt(self, project: str, task: str) -> int:
        """Notes that a task is about to be learnt from; returns how often that was begun without an end."""
        return int(self._redis.hincrby(_key(project, "attempts"), task, 1))

    def done(self, project: str, stamps: Mapping[str, str]) -> int:
        """Takes out tasks that have not changed since; returns how many still wait."""
        flat = [word for pair in stamps.items() for word in pair]
        return int(self._done(keys=[_key(project, "changed"), _key(project, "attempts")], args=flat))

    def forget(self, project: str) -> None:
        """The project does not learn at once: what waits is let go of."""
        self._redis.delete(_key(project, "changed"), _key(project, "attempts"), _key(project, "queued"))

    def set_aside(self, project: str, task: str, reason: str) -> None:
        """Notes why a task is not learnt from."""
        self._redis.hset(_key(project, "aside"), task, reason[:500])

    def take_back(self, project: str, task: str) -> None:
        """A task that was set aside counts after all, or is gone."""
        self._redis.hdel(_key(project, "aside"), task)

    def aside(self, project: str) -> dict[str, str]:
        """Tasks that are not learnt from, with the reason."""
        return {_text(task): _text(why) for task, why in self._redis.hgetall(_key(project, "aside")).items()}

    def say(self, project: str, **values: Any) -> None:
        """What the last job found, for the status page."""
        kept = {name: json.dumps(value) for name, value in {**values, "at": time.time()}.items()}
        self._redis.hset(_key(project, "state"), mapping=kept)

    def said(self, project: str) -> dict[str, Any]:
        return {_text(k): json.loads(v) for k, v in self._redis.hgetall(_key(project, "state")).items()}

    def projects(self) -> list[str]:
        """Uids of the projects in which anything was corrected."""
        return sorted(_text(project) for project in self._redis.smembers(f"{PREFIX}instant"))


def _key(project: str, name: str) -> str:
    return f"{PREFIX}instant:{project}:{name}"


def _text(value: bytes | str) -> str:
    return value.decode() if isinstance(value, bytes) else value

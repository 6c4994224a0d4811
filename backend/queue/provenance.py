"""What the predictions of tasks were made of: the question of their project, and the task's own images and labels.

The version of a prediction names the question (`lasagna.labels.question`); the rest is here, in Redis:

    lasagna:question:DIGEST     what a digest stands for, to say what has changed since
    lasagna:asked:PROJECT       digest of the question that the project's tasks are asked now
    lasagna:made:PROJECT        task -> `Made`, of the prediction that it has got last
    lasagna:made-by:PROJECT     version -> how many of those

What always holds: `Made` changes in the same step as a prediction counts as delivered (`backend.queue.scripts`). What
is not known here, since it is older than the records or came with a copied project, is taken for unchanged.
"""

import json
from collections.abc import Sequence
from dataclasses import asdict, replace
from typing import Any

from backend.queue.made import Made
from backend.queue.store import GUESS_UNKNOWN, KEEP_PROJECT, PREFIX, Store, as_text
from lasagna.formats.hygiene import Hygiene
from lasagna.labels.configuration import LabelConfig
from lasagna.labels.question import ProjectQuestion
from lasagna.settings import Settings


class Provenance:
    """The records of every project. Every method raises `redis.RedisError` where Redis is gone."""

    def __init__(self, store: Store) -> None:
        self._store, self._redis = store, store.redis

    def hygiene(self, settings: Settings) -> Hygiene:
        """What the worker leaves out of answers; before the first one started, what it would by these settings."""
        told = (self._store.model() or {}).get("left_out")
        try:
            return Hygiene.of(settings) if told is None else Hygiene(**told)
        except TypeError:  # a worker of another release
            return Hygiene.of(settings)

    def params_of(self, uid: str, settings: Settings) -> dict[str, Any]:
        """Parameters of the model for a project: its own, else what the setting `guess_unknown` says."""
        own = {name: value for name, value in (self._store.project(uid).params or {}).items() if value is not None}
        return {GUESS_UNKNOWN: True, **own} if settings.guess_unknown else own

    def question_of(self, uid: str, config: LabelConfig, settings: Settings) -> ProjectQuestion:
        """The question that a project's tasks are asked under a configuration.

        Args:
            uid: Label Studio's name of the project.
            config: Its labelling configuration.
            settings: Of this process; what is left out of answers is the worker's (`hygiene`).
        """
        return ProjectQuestion.of(config.images, self.params_of(uid, settings), asdict(self.hygiene(settings)))

    def note(self, uid: str, question: ProjectQuestion) -> bool:
        """Notes the question that a project's tasks are asked from now on, and what its digest stands for. Returns
        whether another one was asked before."""
        with self._redis.pipeline(transaction=False) as pipe:
            pipe.set(f"{PREFIX}question:{question.digest}", question.text, ex=KEEP_PROJECT)
            pipe.getset(f"{PREFIX}asked:{uid}", question.digest)
            pipe.expire(f"{PREFIX}asked:{uid}", KEEP_PROJECT)
            before = pipe.execute()[1]
        return before is not None and as_text(before) != question.digest

    def question(self, digest: str) -> ProjectQuestion | None:
        """What a digest stands for; None where that is not known here."""
        found = self._redis.get(f"{PREFIX}question:{digest}") if digest else None
        try:
            return None if found is None else ProjectQuestion.from_text(as_text(found))
        except (ValueError, TypeError):  # of another release
            return None

    def question_now(self, uid: str) -> ProjectQuestion | None:
        """The question that a project's tasks are asked now, as far as it was noted."""
        found = self._redis.get(f"{PREFIX}asked:{uid}")
        return None if found is None else self.question(as_text(found))

    def made(self, uid: str, tasks: Sequence[int]) -> list[Made | None]:
        """What the latest predictions of tasks were made of; None where it is not known here."""
        found = self._redis.hmget(f"{PREFIX}made:{uid}", list(map(str, tasks))) if tasks else []
        return [None if text is None else Made(**json.loads(text)) for text in found]

    def made_by(self, uid: str) -> dict[str, int]:
        """How many tasks of a project have got their latest prediction from each version, as far as is known here."""
        found = self._redis.hgetall(f"{PREFIX}made-by:{uid}")
        return {as_text(version): int(count) for version, count in found.items() if int(count) > 0}

    def saw_image(self, uid: str, task: int | None, content: str) -> bool:
        """Notes that an image of a task was fetched; whether it is another than its prediction was made of."""
        made = self.made(uid, [task])[0] if task is not None else None
        if made is None or not made.data or not made.images or content[: len(made.images[0])] in made.images:
            return False
        self._redis.hset(f"{PREFIX}made:{uid}", str(task), json.dumps(asdict(replace(made, data=""))))
        return True

    def forget_tasks(self, uid: str, tasks: Sequence[int]) -> None:
        """Tasks are gone from a project."""
        self._store.run("forget_tasks", uid, *map(str, tasks))

"""`LasagnaBackend`: the same backend as a model class of label-studio-ml, for those who run that server.

Runs unchanged under 1.0.9 (PyPI) and 2.x (git): it leaves construction to the base class, is cheap to construct (2.x
builds one per request), and the model stays in the process of `lasagna worker`. Our own server (`backend.app`) is
the better choice: neither version of label-studio-ml has a queue, and 1.0.9 reports a version of its own to Label
Studio, which then asks for the same predictions again and again.

    echo "from backend.model import LasagnaBackend" > model.py
    label-studio-ml init served --script model.py:LasagnaBackend
    label-studio-ml start served

docs/label-studio-ml.md says how to install it beside this package.
"""

import functools
import logging
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import redis
from label_studio_ml.model import LabelStudioMLBase

from backend.queue.store import Store, connect
from backend.studio.project_id import number_of, uid_of_event
from backend.web.predictions import Predictor, label_config
from lasagna.errors import ConfigError, LasagnaError
from lasagna.settings import Settings

logger = logging.getLogger(__name__)


@functools.cache
def _predictor() -> Predictor:
    """One connection per process, from the environment (LASAGNA_REDIS_URL)."""
    settings = Settings.load()
    url = settings.redis_url
    if not url:
        from backend.queue.own_redis import ensure_redis

        url = ensure_redis(settings)
    return Predictor(settings, Store(connect(url)))


class LasagnaBackend(LabelStudioMLBase):
    """The model class. It has no constructor of its own: 1.0.9 calls it as `(label_config=..., train_output=...,
    hostname=..., access_token=...)`, 2.x as `(project_id=..., label_config=...)`, and both base classes take theirs."""

    def setup(self) -> None:
        """Called by the constructor of 2.x: the version that its `/setup` reports."""
        try:
            project, config = self._project_of([]), self.label_config
            version = _predictor().model_version(project)
            if config:
                version = _predictor().asked_version(project, label_config(config))
            self.set("model_version", version)
        except (LasagnaError, redis.RedisError) as error:
            logger.warning("the model version is not known yet: %s", error)

    def predict(
        self, tasks: Sequence[Any], context: Mapping[str, Any] | None = None, **kwargs: Any
    ) -> list[dict[str, Any]]:
        """One entry per task, in order: a prediction, or [] for what is not ready yet or failed.

        Args:
            tasks: Tasks as Label Studio sends them.
            context: Interactive: `{"result": [the click or box]}`.
            kwargs: `login` and `password` from Label Studio; not used.

        Raises:
            ConfigError: There is no labelling configuration, or it cannot be used.
        """
        config = self.label_config
        if not config:
            raise ConfigError("label-studio-ml gave no labelling configuration; connect the model to a project again")
        self._remember_project(tasks)
        answer = _predictor().predict(tasks, config, self._project_of(tasks), context)
        for position, reason in answer.errors.items():
            logger.warning("task number %d: %s", position + 1, reason)
        return answer.results

    def fit(self, *args: Any, **kwargs: Any) -> dict[str, Any]:
        """Takes both forms, `fit((), event=..., data=...)` of 1.0.9 and `fit(event, data)` of 2.x. Notes the event and
        returns at once: 2.x calls it inside the webhook's request."""
        event = kwargs.get("event") or next((a for a in args if isinstance(a, str)), "")
        data = kwargs.get("data") or next((a for a in args if isinstance(a, Mapping)), {})
        project = data.get("project") if isinstance(data, Mapping) else None
        try:
            _predictor().store.record_event({"action": str(event), "project": uid_of_event(project), "tasks": "[]"})
        except redis.RedisError as error:
            logger.warning("event %s is not noted: Redis is gone (%s)", event, error)
        return {}

    def _project_of(self, tasks: Sequence[Any]) -> str:
        """The project's name in our records. Neither server hands on the one of the request, but tasks carry its id.

        Raises:
            ConfigError: Several Label Studios have a project of this number, and this server does not say which.
        """
        first = next((t for t in tasks if isinstance(t, Mapping) and isinstance(t.get("project"), int)), None)
        number = str(number_of(str(getattr(self, "project_id", "") or "")))
        number = number or (str(first["project"]) if first is not None else "")
        hostname = str(getattr(self, "hostname", "") or "").rstrip("/")
        found = (
            [known.uid for known in _predictor().known.of(number) if hostname in ("", known.server)] if number else []
        )
        if len(found) > 1:
            raise ConfigError(
                f"several Label Studios have a project {number}, and label-studio-ml does not say which one asks: "
                "start `lasagna serve` instead, or one backend for each"
            )
        return found[0] if found else number

    def _remember_project(self, tasks: Sequence[Any]) -> None:
        """1.0.9 hands over the credentials of `/setup`; 2.x does not: there LASAGNA_LABEL_STUDIO_URL must be set."""
        hostname = getattr(self, "hostname", "")
        if hostname:
            token = getattr(self, "access_token", "") or ""
            project, store = self._project_of(tasks), _predictor().store
            store.keep_project(project, replace(store.project(project), url=hostname, token=token))

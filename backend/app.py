"""The web process: Label Studio's ML backend protocol over Flask, in front of the queue. No torch is imported here.

| endpoint | Label Studio allows | answer |
|---|---|---|
| GET /health (and /) | 1 s | 200 `{"status": "UP", ...}` while this process lives; says whether Redis is there |
| GET /ready | not called | 200 where predictions can be made now, else 503; `checks` says what is missing |
| POST /setup | 3 s | `{"model_version": ..., "not_served": [...], "by_people": [...]}`; refuses what cannot be used |
| POST /predict | 100 s | `{"results": [one entry per task], ...}` within the setting `predict_deadline` |
| POST /webhook | 1 s | 201 at once; the event is noted for the learning loop |
| GET /report/PROJECT | not called | the page of edit effort (`backend.effort.page`), for people |
| POST /jobs, GET /jobs, /jobs/ID | not called | pre-labels a whole project (`backend.web.prelabel_jobs`) |
| GET /status, /gate/VERSION | not called | what runs and what failed, and a version's report, for people |
| GET /metrics | not called | for Prometheus (`backend.web.metrics`) |
| GET /versions | 3 s | `{"versions": [...]}`, of `?project=12` or of the worker's own model |

An error is JSON, `{"error": words}`, with the words in the status line too: that line is all of it that Label Studio
shows (under Settings > Model). With a password, every route but `/health` wants it (`backend.web.access`).
"""

from contextlib import suppress

import redis
from flask import Flask

from backend.queue.store import Store, connect
from backend.registry.takeover import take_over
from backend.web.access import Access
from backend.web.effort_page import effort_routes
from backend.web.guards import add_guards
from backend.web.metrics import add_metrics
from backend.web.predictions import Predictor
from backend.web.prelabel_jobs import prelabel_routes
from backend.web.problems import add_problems
from backend.web.protocol import Protocol
from backend.web.status_page import status_routes
from lasagna.errors import ConfigError
from lasagna.settings import Settings


def create_app(settings: Settings) -> Flask:
    """The web application.

    Args:
        settings: `redis_url` must name a Redis (`backend.queue.own_redis.ensure_redis` gives one).

    Raises:
        ConfigError: `redis_url` or `basic_auth` cannot be used.
    """
    if not settings.redis_url:
        raise ConfigError(
            "no Redis is configured: set LASAGNA_REDIS_URL, or start with `lasagna serve`, which runs one"
        )
    app = Flask(__name__)
    app.config["MAX_CONTENT_LENGTH"] = settings.max_request_bytes
    app.json.sort_keys = False  # type: ignore[attr-defined]
    access = Access.from_settings(settings)
    store = Store(connect(settings.redis_url))
    predictor = Predictor(settings, store)
    with suppress(redis.RedisError):  # then the worker does it, or the project's next /setup
        take_over(predictor.registry.folder, store)
    add_problems(app)
    add_metrics(app, store, predictor.registry)
    add_guards(app, access)
    app.register_blueprint(Protocol(settings, store, predictor).routes())
    app.register_blueprint(effort_routes(settings, store))
    app.register_blueprint(prelabel_routes(settings, store))
    app.register_blueprint(status_routes(settings, store, predictor.registry))
    return app

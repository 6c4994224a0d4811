"""The web process in production: gunicorn with one process of threads.

    lasagna serve                                                   starts it, with a Redis of its own if none is set
    gunicorn --worker-class backend.web.patient.PatientWorker --threads 32 backend._wsgi:app
                                                                    the same from the environment (LASAGNA_...)

What always holds, however it is started: logs are masked, and without a password only this machine is answered.

gunicorn, because it replaces a process that hangs and ends gracefully (requests that wait get their answer); threads,
because a request mostly waits: 600 tasks in one `/predict` hold one thread for the deadline.
One process: everything that requests share is in Redis, so more work as well, but each on a port of its own, since each
counts its own requests (`backend.web.metrics`).
"""

import functools
import logging
import threading
from collections.abc import Callable, Iterable
from typing import Any

from flask import Flask
from gunicorn.app.base import BaseApplication
from gunicorn.glogging import Logger

from backend.app import create_app
from backend.web.patient import PatientWorker
from backend.web.prelabel_jobs import PrelabelRunner
from backend.web.protocol import MAX_WAITING_REQUESTS
from lasagna.logs import start_logging
from lasagna.settings import Settings

THREADS = MAX_WAITING_REQUESTS + 8

_making = threading.Lock()


@functools.cache
def _from_environment() -> Flask:
    settings = Settings.load()
    start_logging(settings)
    for name in ("gunicorn.error", "gunicorn.access"):  # of whoever started it: through the handler that masks
        _through_ours(logging.getLogger(name))
    application = create_app(settings)
    PrelabelRunner(settings).start()
    return application


def app(environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
    """The WSGI application, made from the environment at the first request."""
    with _making:  # the first requests may come at the same time
        application = _from_environment()
    return application(environ, start_response)


class _Logger(Logger):
    """gunicorn's log without handlers of its own: the process's handlers print it."""

    def setup(self, cfg: Any) -> None:
        super().setup(cfg)
        _through_ours(self.error_log)


def _through_ours(log: logging.Logger) -> None:
    for handler in list(log.handlers):
        log.removeHandler(handler)
        log.propagate = True


def bound(settings: Settings) -> str:
    """HOST:PORT, as in an address."""
    host = settings.host
    return f"{f'[{host}]' if ':' in host and not host.startswith('[') else host}:{settings.port}"


class WebServer(BaseApplication):
    """gunicorn around an application that exists already. `run` returns when the server was told to stop."""

    def __init__(self, application: Flask, settings: Settings) -> None:
        self._application = application
        self._settings = settings
        super().__init__()

    def load_config(self) -> None:
        deadline = int(self._settings.predict_deadline)
        for name, value in {
            "bind": bound(self._settings),
            "worker_class": PatientWorker,
            "workers": 1,
            "threads": THREADS,
            "keepalive": 5,
            "timeout": 60,
            "graceful_timeout": deadline + 5,
            "control_socket_disable": True,
            "forwarder_headers": "",
            "proc_name": "lasagna-serve",
            "loglevel": "warning",
            "logger_class": _Logger,
        }.items():
            if name in self.cfg.settings:
                self.cfg.set(name, value)

    def load(self) -> Flask:
        """Called in the process that answers, each time that one is started."""
        PrelabelRunner(self._settings).start()
        return self._application

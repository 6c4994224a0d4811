"""The logs of every process: lines for people, or one JSON object per line for a log store (the setting `log_format`).

What always holds:

- A JSON line has `time` (ISO 8601, UTC), `level`, `logger` and `message`; `project`, `task` and `job` where they are
  known (`logged`), and `error` with the traceback where there is one. Label Studio's numbers, as text, name project and
  task; `job` is RQ's id, a training job's, or that of a `POST /jobs`.
- No secret gets into a line of either form: tokens and passwords that this process was given (`keep_secret`) are
  masked wherever they appear, as are tokens and passwords that can be told by what is around them.
"""

import base64
import json
import logging
import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from datetime import UTC, datetime
from typing import Any
from urllib.parse import quote, quote_plus, unquote, urlsplit

from pythonjsonlogger.json import JsonFormatter

from lasagna.settings import Settings, is_secret

_ids: ContextVar[dict[str, str]] = ContextVar("ids", default={})  # noqa: B039  # never changed in place
_secrets: set[str] = set()

_LONGEST_TEXT, _LONGEST_SECRET = 20_000, 5_000
"""Characters of a line."""
_SHORTEST_SECRET = 4
"""Shorter ones would be masked within words."""
_TOLD_BY_CONTEXT = (
    (re.compile(r"//[^/@\s\"']+@"), "//***@"),  # user and password in an address
    (re.compile(r"(?i)\b((?:redis|rediss|https?|amqp|unix)://)[^@\s\"']*:[^@\s\"']*@"), r"\1***@"),  # "/" in it
    (re.compile(r"\beyJ[\w-]+\.[\w-]+\.[\w-]*"), "***"),  # a JWT
    (re.compile(r"\b(Token|Bearer|Basic) +[\w.~+/=-]{8,}"), r"\1 ***"),
    (
        re.compile(
            r"(?i)([?&\s;,(]|^)([\w-]*(?:signature|credential|token|sig|secret|password|passwd|key)=)[^&\s\"']+"
        ),
        r"\1\2***",
    ),  # presigned, or in a query
)


@contextmanager
def logged(**ids: Any) -> Iterator[None]:
    """Adds ids (`project`, `task`, `job`) to every line that is logged inside, in this thread; None is left out."""
    token = _ids.set({**_ids.get(), **{name: str(value) for name, value in ids.items() if value is not None}})
    try:
        yield
    finally:
        _ids.reset(token)


def keep_secret(text: str) -> None:
    """Masks a token or password in every line from now on, also as it is written in an address."""
    if len(text) >= _SHORTEST_SECRET:
        _secrets.update((text, quote(text), quote(text, safe=""), quote_plus(text), unquote(text)))
        _secrets.update((json.dumps(text)[1:-1], repr(text)[1:-1]))
        if ":" in text:  # of user:password, as a header carries it
            _secrets.add(base64.b64encode(text.encode("utf-8", "surrogatepass")).decode())


def mask(text: str) -> str:
    """The text with *** in place of every secret; of an endless one the beginning."""
    length = len(text)
    text = text[: _LONGEST_TEXT + _LONGEST_SECRET]  # masked before it is cut: no beginning of a secret remains
    for secret in sorted(_secrets, key=len, reverse=True):  # one may be a part of another
        text = text.replace(secret, "***")
    for pattern, instead in _TOLD_BY_CONTEXT:
        text = pattern.sub(instead, text)
    return text if length <= _LONGEST_TEXT else f"{text[:_LONGEST_TEXT]}... ({length} characters)"


def start_logging(settings: Settings) -> None:
    """Sends what this process logs to stderr, in the form and from the level that the settings say."""
    for name, field in Settings.model_fields.items():
        if is_secret(field) and (value := getattr(settings, name)):
            keep_secret(value)
            keep_secret(value.partition(":")[2])  # of user:password
    for address in (settings.redis_url, settings.label_studio_url):
        keep_secret(_password(address))
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(_Json() if settings.log_format == "json" else _Text())
    logging.basicConfig(level=settings.log_level, handlers=[handler], force=True)
    for noisy in ("rq.worker", "rq.registry", "rq.job", "urllib3", "PIL"):
        logging.getLogger(noisy).setLevel(logging.WARNING)
    logging.getLogger("rq.worker").addFilter(_shorten)


def _password(address: str) -> str:
    try:
        return urlsplit(address).password or ""
    except ValueError:  # no address; who uses it says so
        return ""


class _Text(logging.Formatter):
    def __init__(self) -> None:
        super().__init__("%(asctime)s %(levelname)-7s %(message)s", "%Y-%m-%d %H:%M:%S")

    def format(self, record: logging.LogRecord) -> str:
        """One line, and a traceback indented below: nothing that was sent to us can begin a line, or colour one."""
        return mask(_plain(super().format(record)).replace("\n", "\n    "))


def _plain(text: str) -> str:
    """The text with what moves a terminal's cursor, or hides letters, spelt out; new lines stay."""
    return "".join(c if c.isprintable() or c == "\n" else c.encode("unicode_escape").decode() for c in text)


class _Json(JsonFormatter):
    def __init__(self) -> None:
        super().__init__(
            "%(asctime)s %(levelname)s %(name)s %(message)s",
            rename_fields={"asctime": "time", "levelname": "level", "name": "logger", "exc_info": "error"},
            json_serializer=json.dumps,
        )

    def formatTime(self, record: logging.LogRecord, datefmt: str | None = None) -> str:  # noqa: N802
        return datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds")

    def process_log_record(self, log_data: dict[str, Any]) -> dict[str, Any]:
        found = super().process_log_record({**log_data, **_ids.get()})
        return {name: mask(value) if isinstance(value, str) else value for name, value in found.items()}


def _shorten(record: logging.LogRecord) -> bool:
    """RQ prints a traceback of a hundred lines when Redis goes away; what happened fits into one."""
    import redis

    error = record.exc_info[1] if record.exc_info else None
    if isinstance(error, redis.RedisError):
        record.msg, record.args = "Redis is gone: %s", (error,)
        record.exc_info = record.exc_text = None
    return True

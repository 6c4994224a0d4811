"""Errors as answers: JSON with the words, which are in the status line too (all of it that Label Studio shows)."""

import json
import logging
import re
from typing import Any

import redis
from flask import Flask, Response, g, request
from werkzeug.exceptions import HTTPException, RequestEntityTooLarge

from lasagna.errors import LasagnaError, ServiceError, in_words

logger = logging.getLogger(__name__)


def problem(status: int, message: str) -> Response:
    """An error as JSON; to a request with tasks it also has an empty entry for each."""
    body: dict[str, Any] = {"error": message}
    if "tasks" in g:
        body["results"] = [[] for _ in range(g.tasks)]
    response = Response(json.dumps(body), mimetype="application/json")
    response.status = f"{status} {status_line(message)}"
    g.said = message
    return response


def status_line(message: str) -> str:
    """A message as the line that HTTP begins an answer with, at most 300 characters long.

    Label Studio shows this line and not the body. It holds Latin-1 (RFC 9110, 4), so umlauts stay. What has other
    letters, a name in Cyrillic, say, becomes a number, and the end says where it is to be read.
    """
    text = _CONTROL.sub("?", " ".join(message.translate(_PLAIN).split()))
    names: list[str] = []

    def number(match: re.Match[str]) -> str:
        if match[0] not in names:
            names.append(match[0])
        return f"[name {names.index(match[0]) + 1}]"

    text = _NOT_LATIN.sub(number, text)
    if not names:
        return text[:300]
    hint = " (names in other letters than this line can carry: see `lasagna doctor`, or the log of `lasagna serve`)"
    return text[: 300 - len(hint)] + hint


_PLAIN = str.maketrans({"→": "->", "…": "...", "–": "-", "—": "-", "“": '"', "”": '"', "‘": "'", "’": "'"})
_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f]")
_NOT_LATIN = re.compile(r"""'[^']*[^\x00-\xff][^']*'|"[^"]*[^\x00-\xff][^"]*"|[^\s'"<>=]*[^\x00-\xff][^\s'"<>=]*""")


def add_problems(app: Flask) -> None:
    """Has every error of the application answered as a `problem`."""
    app.register_error_handler(LasagnaError, _refused)
    app.register_error_handler(redis.RedisError, _without_redis)
    app.register_error_handler(RequestEntityTooLarge, _too_large)
    app.register_error_handler(HTTPException, _http_error)
    app.register_error_handler(Exception, _unexpected)


def _refused(error: LasagnaError) -> Response:
    return problem(503 if isinstance(error, ServiceError) else 400, str(error))


def _without_redis(error: redis.RedisError) -> Response:
    logger.warning("Redis is gone: %s", error)
    return problem(503, f"the backend cannot reach its Redis ({error}); start it, or correct LASAGNA_REDIS_URL")


def _too_large(error: RequestEntityTooLarge) -> Response:
    limit = request.max_content_length
    return problem(413, f"the request has more than {limit} bytes, the limit (LASAGNA_MAX_REQUEST_BYTES)")


def _http_error(error: HTTPException) -> Response:
    return problem(error.code or 500, error.description or error.name)


def _unexpected(error: Exception) -> Response:
    logger.exception("%s %s failed", request.method, request.path)
    return problem(500, in_words(error))
